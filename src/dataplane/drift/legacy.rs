//! The sizes of the tables of iptables-legacy.
//!
//! Asking for a table that the kernel does not have yet makes it, so only those are asked for that
//! `/proc/net/ip_tables_names` lists.

use std::ffi::c_int;
use std::ffi::c_void;
use std::fs;
use std::io;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use rustix::net::AddressFamily;
use rustix::net::Protocol;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

use crate::model::address::Family;

/// The tables that rules of ours are in, or stand beside.
const TABLES: [&str; 3] = ["filter", "mangle", "nat"];
/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: c_int = 64;
const NAME_LENGTH: usize = 32;
/// A name, the hooks, two numbers for each of five hooks, the number of entries and their size.
const INFO_LENGTH: usize = NAME_LENGTH + 4 + 2 * 5 * 4 + 4 + 4;
const ENTRIES: usize = NAME_LENGTH + 4;

/// How large a table is, and where its chains are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Size {
    family: Family,
    table: &'static str,
    numbers: Vec<u8>,
}

/// The sizes of all tables that there are.
pub(super) fn sizes() -> io::Result<Vec<Size>> {
    let mut sizes = Vec::new();
    for (family, names) in [
        (Family::V4, "/proc/thread-self/net/ip_tables_names"),
        (Family::V6, "/proc/thread-self/net/ip6_tables_names"),
    ] {
        let names = match fs::read_to_string(names) {
            Ok(names) => names,
            // A kernel without them.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for table in TABLES.into_iter().filter(|table| names.lines().any(|name| name == *table)) {
            sizes.push(Size { family, table, numbers: numbers(family, table)? });
        }
    }
    Ok(sizes)
}

fn numbers(family: Family, table: &str) -> io::Result<Vec<u8>> {
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::INET, libc::IPPROTO_IP),
        Family::V6 => (AddressFamily::INET6, libc::IPPROTO_IPV6),
    };
    let raw = u32::try_from(libc::IPPROTO_RAW).ok().and_then(std::num::NonZeroU32::new);
    let protocol = raw.map(Protocol::from_raw);
    let socket = rustix::net::socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    let mut info = [0_u8; INFO_LENGTH];
    info.iter_mut().zip(table.bytes()).for_each(|(place, byte)| *place = byte);
    get_info(&socket, level, &mut info)?;
    Ok(info.get(ENTRIES..).unwrap_or_default().to_vec())
}

#[expect(unsafe_code, reason = "no safe crate has this socket option")]
fn get_info(socket: &OwnedFd, level: c_int, info: &mut [u8; INFO_LENGTH]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(info.len()).unwrap_or_default();
    let place: *mut c_void = info.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes at most `length` bytes at `place`, which are those of `info`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, place, &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
