//! The name of the machine, or of the pod.

use std::fs;

use anyhow::Context;

/// The host's name, where `flag` did not say another.
pub(crate) fn read(flag: &str) -> anyhow::Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname");
    let name = name.with_context(|| format!("{flag} is not given, and the host's name cannot be read"))?;
    Ok(name.trim().to_owned())
}
