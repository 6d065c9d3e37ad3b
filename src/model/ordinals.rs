//! The numbers of a StatefulSet's pods.

/// The ordinals that a StatefulSet of so many replicas gives to its pods: consecutive numbers, as a rule from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordinals {
    first: u64,
    count: u64,
}

impl Ordinals {
    /// So many, from this one on. What is negative counts as 0.
    pub fn new(first: i64, count: i64) -> Self {
        Self { first: first.try_into().unwrap_or_default(), count: count.try_into().unwrap_or_default() }
    }

    /// Whether the set of this name has a pod of that name, or is about to.
    pub fn has_pod(self, set: &str, pod: &str) -> bool {
        ordinal(set, pod)
            .and_then(|ordinal| ordinal.checked_sub(self.first))
            .is_some_and(|nth| nth < self.count)
    }
}

/// The ordinal of a pod of the set of this name, by its name: 3 of `lobby-3`.
fn ordinal(set: &str, pod: &str) -> Option<u64> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal: u64 = digits.parse().ok()?;
    // The set writes no sign and no zeros in front.
    (ordinal.to_string() == digits).then_some(ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_pods_of_its_ordinals_and_no_others() {
        let cases = [
            (Ordinals::new(0, 3), "lobby-0", true),
            (Ordinals::new(0, 3), "lobby-2", true),
            (Ordinals::new(0, 3), "lobby-3", false),
            (Ordinals::new(0, 0), "lobby-0", false),
            (Ordinals::new(5, 2), "lobby-4", false),
            (Ordinals::new(5, 2), "lobby-6", true),
            (Ordinals::new(5, 2), "lobby-7", false),
            (Ordinals::new(-1, 3), "lobby-0", true),
            (Ordinals::new(0, -3), "lobby-0", false),
            (Ordinals::new(i64::MAX, i64::MAX), "lobby-18446744073709551615", false),
            (Ordinals::new(0, 3), "lobby-00", false),
            (Ordinals::new(0, 3), "lobby-+1", false),
            (Ordinals::new(0, 3), "lobby-", false),
            (Ordinals::new(0, 3), "lobby", false),
            (Ordinals::new(0, 3), "lobby-eu-1", false),
            (Ordinals::new(0, 3), "hall-1", false),
        ];
        for (ordinals, pod, expected) in cases {
            assert_eq!(ordinals.has_pod("lobby", pod), expected, "{ordinals:?} {pod}");
        }
    }
}
