//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

/// The kernel's limit, without the zero at the end.
const LONGEST: usize = 15;

/// The name of a network interface, such as `eth0`, `wg0` or `eth0.100`.
///
/// Nothing in it means anything to a shell, to iptables (where a final `+` stands for any ending) or to nft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName {
    bytes: [u8; LONGEST + 1],
}

/// Why a text is no name of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not the name of a network interface: 1 to 15 letters, digits, '-', '_' and '.', without wildcards"
)]
pub struct InterfaceNameError;

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        let name = self.bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        str::from_utf8(name).unwrap_or_default()
    }

    /// The name as the kernel compares it: filled up with zeros.
    pub const fn padded(&self) -> &[u8; 16] {
        &self.bytes
    }

    /// Reads what [`InterfaceName::padded`] gives.
    pub fn from_padded(bytes: &[u8]) -> Option<Self> {
        let name = bytes.split(|byte| *byte == 0).next()?;
        str::from_utf8(name).ok()?.parse().ok()
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty()
            || LONGEST < text.len()
            || !text.bytes().all(is_plain)
            || [".", ".."].contains(&text)
        {
            return Err(InterfaceNameError);
        }
        let mut bytes = [0; LONGEST + 1];
        for (place, byte) in bytes.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        Ok(Self { bytes })
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_and_wildcards_and_anything_else_refused() {
        for name in ["eth0", "wg0", "eth0.100", "cni-podman_0", "fifteen-letters"] {
            let parsed: InterfaceName = name.parse().unwrap();
            assert_eq!(parsed.to_string(), name);
            assert_eq!(InterfaceName::from_padded(parsed.padded()), Some(parsed));
        }
        for wrong in ["", ".", "..", "eth+", "eth*", "eth0 ", "a/b", "sixteen-letters-", "ü"] {
            assert_eq!(wrong.parse::<InterfaceName>(), Err(InterfaceNameError), "{wrong}");
        }
    }
}
