//! How often entries were used.
//!
//! NAT rules see the first packet of a connection only, so these count new connections and their first packets. They
//! live in the kernel and survive rewrites of the rules around them.

use std::ops::AddAssign;

/// Packets and bytes that a rule let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counters {
    /// First packets of connections: one per connection.
    pub packets: u64,
    /// The bytes in them.
    pub bytes: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}
