//! What becomes in a chain of connections whose destination was rewritten, as ours are.
//!
//! Only rules are looked at that every packet of such a connection meets: those without a condition, and those whose only
//! condition it is. Whoever accepts by another condition may mean ours or not, and is not believed to.

/// How deep chains are followed.
const DEPTH: usize = 16;

/// What a rule does to whatever it meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Lets it pass.
    Accept,
    /// Drops or rejects it.
    Refuse,
    /// Sends it back to where it came from.
    Return,
    /// Lets another chain decide, and goes on when that returns.
    Jump(String),
    /// Lets another chain decide, and does not go on.
    Goto(String),
}

/// How a connection leaves a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    Refused,
    /// Nobody in there decided.
    Returned,
}

/// How a connection leaves a chain, or the name of the chain whose verdicts must be known to tell.
pub(super) fn fate<'a>(
    chain: &'a str,
    verdicts: &impl Fn(&str) -> Option<&'a [Verdict]>,
) -> Result<Fate, &'a str> {
    fate_of(verdicts(chain).ok_or(chain)?, verdicts, DEPTH)
}

fn fate_of<'a>(
    met: &'a [Verdict],
    verdicts: &impl Fn(&str) -> Option<&'a [Verdict]>,
    depth: usize,
) -> Result<Fate, &'a str> {
    for verdict in met {
        let (chain, goes_on) = match verdict {
            Verdict::Accept => return Ok(Fate::Accepted),
            Verdict::Refuse => return Ok(Fate::Refused),
            Verdict::Return => return Ok(Fate::Returned),
            Verdict::Jump(chain) => (chain, true),
            Verdict::Goto(chain) => (chain, false),
        };
        let inside = match depth.checked_sub(1) {
            Some(depth) => fate_of(verdicts(chain).ok_or(chain.as_str())?, verdicts, depth)?,
            None => Fate::Returned,
        };
        if inside != Fate::Returned || !goes_on {
            return Ok(inside);
        }
    }
    Ok(Fate::Returned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(chains: &[(&str, &[Verdict])]) -> Result<Fate, String> {
        let verdicts = |name: &str| chains.iter().find(|(known, _)| *known == name).map(|(_, met)| *met);
        fate("forward", &verdicts).map_err(str::to_owned)
    }

    #[test]
    fn the_first_rule_that_decides_counts_also_inside_other_chains() {
        use Verdict::Accept;
        use Verdict::Refuse;
        use Verdict::Return;
        let jump = |chain: &str| Verdict::Jump(chain.to_owned());
        let goto = |chain: &str| Verdict::Goto(chain.to_owned());
        assert_eq!(of(&[("forward", &[])]), Ok(Fate::Returned));
        assert_eq!(of(&[("forward", &[Accept, Refuse])]), Ok(Fate::Accepted));
        assert_eq!(of(&[("forward", &[Refuse, Accept])]), Ok(Fate::Refused));
        for (inner, expected) in [
            (Vec::new(), Fate::Accepted),
            (vec![Return, Refuse], Fate::Accepted),
            (vec![Refuse], Fate::Refused),
            (vec![jump("forward")], Fate::Accepted),
        ] {
            let forward = [jump("inner"), Accept];
            assert_eq!(of(&[("forward", &forward), ("inner", &inner)]), Ok(expected), "{inner:?}");
        }
        assert_eq!(of(&[("forward", &[goto("inner"), Refuse]), ("inner", &[])]), Ok(Fate::Returned));
        assert_eq!(of(&[("forward", &[jump("unread"), Refuse])]), Err("unread".to_owned()));
        assert_eq!(of(&[("forward", &[Accept, jump("unread")])]), Ok(Fate::Accepted), "not needed");
    }
}
