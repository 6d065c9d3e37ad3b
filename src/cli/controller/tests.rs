//! The flags; and, as only this module knows them all, controller and agents together.

mod interleavings;

use super::*;
use crate::cli::testing;

#[test]
fn a_lease_is_named_with_its_namespace() {
    let flags = testing::parse::<ControllerFlags>(&["--lease=theirs/leader"]).unwrap();
    assert_eq!(flags.lease, ObjectName::new("theirs", "leader"));
    for wrong in ["leader", "/leader", "theirs/"] {
        let error = testing::parse::<ControllerFlags>(&[&format!("--lease={wrong}")]).unwrap_err();
        assert!(error.contains("pinhole-system/pinhole-controller"), "{error}");
    }
}
