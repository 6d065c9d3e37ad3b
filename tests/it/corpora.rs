//! What fuzzing found worth keeping, replayed: `make fuzz` looks for more.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/inputs.rs"]
mod inputs;

fn replay(corpus: &str, target: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        // The harness shows what is printed before a panic.
        eprintln!("{}", path.display());
        target(&fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(0 < inputs, "{} is empty", directory.display());
}

#[test]
fn elements_of_nftables_are_read_whatever_comes() {
    replay("netlink", inputs::netlink);
}

#[test]
fn routes_rules_and_addresses_are_read_whatever_comes() {
    replay("rtnetlink", inputs::rtnetlink);
}

#[test]
fn the_text_of_conntrack_is_read_whatever_comes() {
    replay("conntrack", inputs::conntrack);
}

#[test]
fn the_text_of_iptables_save_is_read_whatever_comes() {
    replay("iptables-save", inputs::iptables_save);
}

#[test]
fn annotations_are_read_whatever_they_hold() {
    replay("annotation", inputs::annotation);
}
