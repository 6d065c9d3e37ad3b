//! What a fuzzer does to the reading of elements: anything can come, nothing may panic, and what is taken for an element
//! of ours is written as it was read.

use std::collections::BTreeMap;

use crate::dataplane::netlink::message::Builder;
use crate::dataplane::netlink::message::Message;
use crate::dataplane::nftables::codec::Reader;
use crate::dataplane::nftables::codec::write;
use crate::dataplane::nftables::element::Collection;
use crate::dataplane::nftables::element::ElementKey;
use crate::dataplane::nftables::element::Held;
use crate::dataplane::nftables::is_simple;
use crate::dataplane::nftables::plan::Step;
use crate::model::address::Family;

/// Reads messages as if the kernel had sent them: the first byte says for which set or map, and of which family.
pub fn read_messages(input: &[u8]) {
    let Some((first, messages)) = input.split_first() else { return };
    let family = if first & 0x80 == 0 { Family::V4 } else { Family::V6 };
    let Some(collection) = Collection::ALL.get(usize::from(first & 0x7f)) else { return };
    let Ok(held) = read(*collection, family, messages) else { return };
    if !is_simple(*collection) {
        return;
    }
    let mut written = Vec::new();
    for (key, Held { value, counters }) in &held {
        let step = Step { collection: *collection, key: *key, add: Some((value.clone(), *counters)) };
        let mut message = Builder::new(&mut written, 0, 0, 0, &[0; 4]);
        write(&mut message, "PINHOLE", &step);
        message.end();
    }
    let again = read(*collection, family, &written);
    let values = |held: &BTreeMap<ElementKey, Held>| {
        held.iter().map(|(key, held)| (*key, held.value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(again.map(|held| values(&held)), Ok(values(&held)));
}

fn read(
    collection: Collection,
    family: Family,
    mut messages: &[u8],
) -> Result<BTreeMap<ElementKey, Held>, String> {
    let mut reader = Reader::new(collection, family);
    while let Some(message) = Message::take(&mut messages) {
        let _ = message.error();
        reader.read(&message.attributes());
    }
    reader.finish()
}
