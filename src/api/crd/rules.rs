//! CEL rules that several fields share, and the messages of a refusal by them.

/// What is an IPv4 address, as the begin of a regular expression.
macro_rules! v4 {
    () => {
        "'^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])[.]){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    };
}

/// What looks like an IPv6 address in lower case, as the begin of a regular expression.
macro_rules! v6 {
    () => {
        "'^[0-9a-f]{0,4}(:[0-9a-f]{0,4}){2,7}"
    };
}

/// Whether a value is an address, followed by what the two expressions allow.
macro_rules! address {
    ($value:literal, $end4:literal, $end6:literal) => {
        concat!(
            $value,
            ".matches(",
            v4!(),
            $end4,
            "') || (",
            $value,
            ".matches(",
            v6!(),
            $end6,
            "') && !",
            $value,
            ".matches('::.*::') && !",
            $value,
            ".contains(':::'))"
        )
    };
}

/// One address.
pub(super) const ADDRESS: &str = address!("self", "$", "$");

/// A list of addresses.
pub(super) const ADDRESSES: &str = concat!("self.all(item, ", address!("item", "$", "$"), ")");

/// The message for both.
pub(super) const ADDRESS_MESSAGE: &str =
    "must be IPv4 or IPv6, in lower case and without a prefix length: 203.0.113.7 or 2001:db8::1";

/// A list of networks.
pub(super) const NETWORKS: &str = concat!(
    "self.all(item, ",
    address!("item", "/(3[0-2]|[12]?[0-9])$", "/(12[0-8]|1[01][0-9]|[1-9]?[0-9])$"),
    ")"
);

/// The message for it.
pub(super) const NETWORK_MESSAGE: &str = "must be networks with their prefix length: 203.0.113.0/24 or 2001:db8::/64; one address is 203.0.113.7/32";

/// A list of addresses and networks.
pub(super) const ADDRESSES_OR_NETWORKS: &str = concat!(
    "self.all(item, ",
    address!("item", "(/(3[0-2]|[12]?[0-9]))?$", "(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?$"),
    ")"
);

/// The message for it.
pub(super) const ADDRESS_OR_NETWORK_MESSAGE: &str =
    "must be addresses or networks: 203.0.113.7, 203.0.113.0/28, 2001:db8::1 or 2001:db8::/120";
