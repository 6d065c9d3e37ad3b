//! How the dataplane marks what is its own, and which programs it uses.

use std::fmt;
use std::str::FromStr;

use crate::dataplane::command::Tools;
use crate::dataplane::links::LinksInUse;

/// What every chain of ours starts with.
///
/// At most 8 characters, because the kernel's limit for a whole name is 28 (R33).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// The longest prefix.
    pub const MAX_LENGTH: usize = 8;

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("PINHOLE".to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text cannot start the names of chains.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot start the names of chains: write 1 to 8 of A-Z, 0-9, '_' and '-', a letter first and no '-' last"
)]
pub struct PrefixError(pub String);

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        let good = text.len() <= Self::MAX_LENGTH
            && text.bytes().all(known)
            && text.starts_with(|first: char| first.is_ascii_uppercase())
            && !text.ends_with('-');
        good.then(|| Self(text.to_owned())).ok_or_else(|| PrefixError(text.to_owned()))
    }
}

/// The one bit of the connection mark that tells connections to our external ports. All other bits stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkBit(u32);

impl MarkBit {
    /// `None` unless exactly one bit is set.
    pub const fn new(mark: u32) -> Option<Self> {
        if mark.is_power_of_two() { Some(Self(mark)) } else { None }
    }

    /// The mark with only this bit set.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for MarkBit {
    /// Free of what is known to use connection marks on nodes: the AWS CNI has 0x80, Tailscale 0xff0000, Calico the
    /// upper half.
    fn default() -> Self {
        Self(0x1000)
    }
}

impl fmt::Display for MarkBit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why a text is not a mark bit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one bit of a mark: write a power of two, such as 0x1000")]
pub struct MarkBitError(pub String);

impl FromStr for MarkBit {
    type Err = MarkBitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        number.and_then(Self::new).ok_or_else(|| MarkBitError(text.to_owned()))
    }
}

/// Which of the kernel's two sets of tables iptables writes to. Rules of one do not order against those of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flavor {
    /// `iptables-nft`: `nf_tables`.
    Nft,
    /// `iptables-legacy`: `x_tables`.
    Legacy,
}

impl Flavor {
    /// Both flavours.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The name, as in the names of its programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What rules are in the kernel by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Firewall {
    /// Tables of our own in nf_tables.
    Nftables,
    /// Chains in the tables of iptables.
    Iptables(Flavor),
}

impl fmt::Display for Firewall {
    /// `nftables`, `iptables-legacy`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("nftables"),
            Self::Iptables(flavor) => write!(f, "iptables-{flavor}"),
        }
    }
}

/// Which flavour to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlavorChoice {
    /// The one that the node's other programs use.
    #[default]
    Auto,
    /// This one.
    Always(Flavor),
}

/// Why a text is not a choice of flavour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a flavour of iptables: write auto, nft or legacy")]
pub struct FlavorChoiceError(pub String);

impl FromStr for FlavorChoice {
    type Err = FlavorChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "nft" => Ok(Self::Always(Flavor::Nft)),
            "legacy" => Ok(Self::Always(Flavor::Legacy)),
            _ => Err(FlavorChoiceError(text.to_owned())),
        }
    }
}

impl fmt::Display for FlavorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Always(flavor) => flavor.fmt(f),
        }
    }
}

/// How replies of pods on other nodes find their way back through this one, which rewrote the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReturnPath {
    /// The pod sees this node's address instead of the client's, and answers to it.
    #[default]
    Masquerade,
    /// The network routes what the pod answers through this node, so the pod sees the client's address.
    Routed,
}

impl ReturnPath {
    /// The name, as in the flag.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Routed => "routed",
        }
    }
}

impl fmt::Display for ReturnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is no return path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way for replies to come back: write masquerade or routed")]
pub struct ReturnPathError(pub String);

impl FromStr for ReturnPath {
    type Err = ReturnPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = [Self::Masquerade, Self::Routed].into_iter().find(|path| path.name() == text);
        known.ok_or_else(|| ReturnPathError(text.to_owned()))
    }
}

/// Everything that decides how the same rules look in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What every chain of ours starts with.
    pub prefix: Prefix,
    /// The bit that tells connections to our external ports.
    pub mark: MarkBit,
    /// The links to the outside between which replies are told apart; none where there is one.
    pub links: LinksInUse,
    /// How replies of pods on other nodes come back.
    pub return_path: ReturnPath,
    /// Where programs are found.
    pub tools: Tools,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r33_a_prefix_leaves_room_for_the_longest_chain_name() {
        for good in ["PINHOLE", "P", "A-B_C", "PINHOLE8"] {
            assert!(good.parse::<Prefix>().is_ok(), "{good}");
        }
        for bad in ["", "PINHOLES9", "pinhole", "8PIN", "PIN-", "P N", "P;N", "É"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mark_is_exactly_one_bit() {
        assert_eq!("0x1000".parse(), Ok(MarkBit::default()));
        assert_eq!("4096".parse(), Ok(MarkBit::default()));
        for bad in ["0", "3", "0x3000", "", "0xg", "0x100000000"] {
            assert!(bad.parse::<MarkBit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_choice_of_flavour_is_read_as_it_is_written() {
        for text in ["auto", "nft", "legacy"] {
            assert_eq!(text.parse::<FlavorChoice>().unwrap().to_string(), text);
        }
        assert!("iptables".parse::<FlavorChoice>().is_err());
    }
}
