//! Whose an entry is, as it is written beside the rule in the kernel: `namespace/pod:` and a digest of the pod's UID.

use std::fmt;
use std::sync::Arc;

use crate::model::digest::fnv1a;
use crate::model::holder::ObjectName;

/// The longest comment: nft keeps 128 bytes, and iptables silently cuts at 255 (R32).
const MAX_LENGTH: usize = 128;
const UID_DIGITS: usize = 8;
const NAME_DIGITS: usize = 16;
/// What stays of a name that is too long, in front of its digest.
const KEPT_NAME: usize = MAX_LENGTH - UID_DIGITS - NAME_DIGITS - 2;

/// The pod that an entry serves.
///
/// # Guarantees
/// At most 128 bytes of `[A-Za-z0-9_./:-]`, so that no program in between quotes, cuts or re-spells it; equal for
/// equal pods and different for different ones, also when a name had to be shortened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The pod with this name and UID.
    pub fn new(pod: &ObjectName, uid: &str) -> Self {
        let uid = fnv1a(uid.as_bytes()) >> 32;
        let name = pod.to_string();
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./-".contains(&byte));
        if plain && name.len() + 1 + UID_DIGITS <= MAX_LENGTH {
            return Self(format!("{name}:{uid:0UID_DIGITS$x}").into());
        }
        let kept: String = name
            .chars()
            .take(KEPT_NAME)
            .map(|c| if c.is_ascii_alphanumeric() || "./-".contains(c) { c } else { '_' })
            .collect();
        Self(format!("{kept}_{:0NAME_DIGITS$x}:{uid:0UID_DIGITS$x}", fnv1a(name.as_bytes())).into())
    }

    /// Reads back what [`Owner::as_str`] wrote; `None` for any other comment.
    pub fn parse(comment: &str) -> Option<Self> {
        let (pod, uid) = comment.rsplit_once(':')?;
        let digits = uid.len() == UID_DIGITS && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
        (digits && pod.contains('/') && comment.len() <= MAX_LENGTH).then(|| Self(comment.into()))
    }

    /// The comment.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The comment, shared.
    pub fn comment(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// `namespace/pod`, shortened with a digest when the names are very long.
    pub fn pod(&self) -> &str {
        self.0.rsplit_once(':').map_or(&self.0, |(pod, _)| pod)
    }
}

impl fmt::Display for Owner {
    /// The pod's name: people know pods by it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pod())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_names_the_pod_and_tells_its_uid() {
        let pod = ObjectName::new("mail", "postfix-0");
        let (first, second) = (Owner::new(&pod, "uid-1"), Owner::new(&pod, "uid-2"));
        assert_eq!(first.pod(), "mail/postfix-0");
        assert_ne!(first, second, "a pod created anew under the same name is another pod (R09)");
        assert_eq!(Owner::parse(first.as_str()), Some(first));
    }

    #[test]
    fn r32_the_longest_names_fit_a_comment_and_stay_distinct() {
        let namespace = "n".repeat(63);
        let pod = |last: &str| ObjectName::new(namespace.as_str(), format!("{}{last}", "p".repeat(252)));
        let (first, second) = (Owner::new(&pod("a"), "uid"), Owner::new(&pod("b"), "uid"));
        assert_eq!(first.as_str().len(), 128);
        assert_ne!(first, second);
        assert_eq!(Owner::parse(first.as_str()), Some(first));
    }

    #[test]
    fn only_harmless_characters_reach_the_kernel() {
        let odd = Owner::new(&ObjectName::new("a b", "c\"; -j ACCEPT é"), "uid");
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:-".contains(&byte);
        assert!(odd.as_str().bytes().all(harmless), "{}", odd.as_str());
    }

    #[test]
    fn other_comments_are_nobodys() {
        for comment in ["", "pinhole:skeleton:1", "default/web", "kube-proxy: mark", "default/web:xyz"] {
            assert_eq!(Owner::parse(comment), None, "{comment}");
        }
    }
}
