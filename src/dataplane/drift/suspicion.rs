//! Whether somebody may have changed what is watched since it was found right, from how far the kernel has counted and what
//! it told of each change: pure.
//!
//! A change that touched other tables only is no reason to look at ours, however often there are such changes. Whoever
//! does not hear of every change must look.

use crate::dataplane::nftables::netlink::Heard;

/// What there is to doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nothing.
    None,
    /// What is watched was touched.
    Touched,
    /// There were changes that nothing was heard of.
    Unheard,
}

/// Everything that was heard since the watched was found right, which stays until it is found right again.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// How far the kernel had counted then.
    right_at: Option<u32>,
    heard: Heard,
}

impl Suspicion {
    /// Hears more.
    pub(super) fn hear(&mut self, heard: Heard) {
        self.heard.generation = heard.generation.or(self.heard.generation);
        self.heard.is_touched |= heard.is_touched;
        self.heard.is_lost |= heard.is_lost;
        self.heard.by.extend(heard.by);
    }

    /// What there is to doubt when the kernel has counted this far.
    pub(super) fn doubt(&mut self, generation: Option<u32>) -> Doubt {
        if generation == self.right_at {
            return Doubt::None;
        }
        if self.heard.is_touched {
            return Doubt::Touched;
        }
        if self.heard.is_lost || self.heard.generation != generation {
            return Doubt::Unheard;
        }
        self.settle(generation);
        Doubt::None
    }

    /// The watched was found right, when the kernel had counted this far.
    pub(super) fn settle(&mut self, generation: Option<u32>) {
        self.right_at = generation;
        self.heard = Heard { generation: self.heard.generation, ..Heard::default() };
    }

    /// The programs that touched the watched since then, as far as they were heard.
    pub(super) fn culprits(&self) -> Vec<String> {
        self.heard.by.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn heard(generation: u32, is_touched: bool, is_lost: bool) -> Heard {
        let by = is_touched.then(|| format!("program-{generation}")).into_iter().collect::<BTreeSet<_>>();
        Heard { generation: Some(generation), is_touched, is_lost, by }
    }

    fn right_at(generation: u32) -> Suspicion {
        let mut suspicion = Suspicion::default();
        suspicion.settle(Some(generation));
        suspicion
    }

    #[test]
    fn changes_of_other_tables_are_no_reason_to_look_and_nobody_is_named_for_them() {
        let mut suspicion = right_at(7);
        for generation in 8..20 {
            suspicion.hear(heard(generation, false, false));
            assert_eq!(suspicion.doubt(Some(generation)), Doubt::None);
        }
        suspicion.hear(heard(20, true, false));
        assert_eq!(suspicion.doubt(Some(20)), Doubt::Touched);
        assert_eq!(suspicion.culprits(), ["program-20"]);
    }

    #[test]
    fn what_was_not_heard_to_its_end_is_doubted() {
        let mut suspicion = right_at(7);
        assert_eq!(suspicion.doubt(Some(8)), Doubt::Unheard, "nothing was heard");
        suspicion.hear(heard(8, false, false));
        assert_eq!(suspicion.doubt(Some(9)), Doubt::Unheard, "one was");
        suspicion.hear(heard(9, false, true));
        suspicion.hear(heard(10, false, false));
        assert_eq!(suspicion.doubt(Some(10)), Doubt::Unheard, "one in between was not");
        assert_eq!(right_at(7).doubt(Some(7)), Doubt::None);
    }

    #[test]
    fn a_doubt_stays_until_a_look_was_taken_to_its_end() {
        let mut suspicion = right_at(7);
        suspicion.hear(heard(8, true, false));
        // The look that follows fails; others change their own tables meanwhile.
        for generation in [8, 8, 9] {
            suspicion.hear(heard(generation, false, false));
            assert_eq!(suspicion.doubt(Some(generation)), Doubt::Touched);
        }
        suspicion.settle(Some(9));
        assert_eq!(suspicion.doubt(Some(9)), Doubt::None);
        suspicion.hear(heard(10, false, false));
        assert_eq!(suspicion.doubt(Some(10)), Doubt::None);
    }

    #[test]
    fn a_kernel_without_nf_tables_raises_no_doubt() {
        assert_eq!(Suspicion::default().doubt(None), Doubt::None);
    }
}
