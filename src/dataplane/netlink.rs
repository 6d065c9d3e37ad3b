//! A socket to the kernel, as netlink(7) has it: requests with their answers, and what the kernel tells by itself.
//!
//! The kernel works while it is asked, so the answers are there when the sending returns: one request takes some tens of
//! microseconds and starts no program. What a message says is for others to read.

pub(crate) mod message;
pub(crate) mod route;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::Protocol;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netlink;
use rustix::net::sockopt;

use crate::dataplane::netlink::message::ACKNOWLEDGE;
use crate::dataplane::netlink::message::Builder;
use crate::dataplane::netlink::message::DONE;
use crate::dataplane::netlink::message::DUMP;
use crate::dataplane::netlink::message::ERROR;
use crate::dataplane::netlink::message::INTERRUPTED;
use crate::dataplane::netlink::message::Message;
use crate::dataplane::netlink::message::REQUEST;

const BUFFER: usize = 64 * 1024;
/// Requests are numbered from here, so that they are not taken for messages of a batch, which are numbered from 1.
const FIRST_SEQUENCE: u32 = 1 << 31;

/// A socket in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace, to hear what these groups are told.
    pub(crate) fn open(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, groups))?;
        Ok(Self { fd, sequence: FIRST_SEQUENCE, buffer: vec![0; BUFFER] })
    }

    /// Waits for an answer no longer than this: the kernel answers at once, and a surprise must not become a hang.
    pub(crate) fn patient_for(self, patience: Duration) -> io::Result<Self> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, Some(patience))?;
        Ok(self)
    }

    /// Holds this much of what the kernel tells by itself, until it is heard.
    pub(crate) fn with_room_for(self, bytes: usize) -> Self {
        // Without the right to more it holds what it can.
        let _ = sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes);
        self
    }

    /// Sends a request and hands on its answers; false when they do not fit together.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        describe: impl FnOnce(&mut Builder<'_>),
        mut found: impl FnMut(&Message<'_>),
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        let mut message = Builder::new(&mut request, kind, REQUEST | flags, self.sequence, header);
        describe(&mut message);
        message.end();
        rustix::net::send(&self.fd, &request, SendFlags::empty())?;
        let has_one_answer = flags & (DUMP | ACKNOWLEDGE) == 0;
        let mut is_consistent = true;
        loop {
            let (received, _) = rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty())?;
            let mut rest = self.buffer.get(..received).unwrap_or_default();
            while let Some(message) = Message::take(&mut rest) {
                if message.sequence != self.sequence {
                    continue;
                }
                is_consistent &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    DONE => return Ok(is_consistent),
                    ERROR if message.error() == 0 => return Ok(is_consistent),
                    ERROR => return Err(io::Error::from_raw_os_error(message.error())),
                    _ => found(&message),
                }
                if has_one_answer {
                    return Ok(is_consistent);
                }
            }
        }
    }

    /// Sends messages together.
    pub(crate) fn send(&self, messages: &[u8]) -> io::Result<()> {
        // They must be sent at once, whatever their length. Without the right to more, short ones still go through.
        let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, messages.len().saturating_mul(2));
        rustix::net::send(&self.fd, messages, SendFlags::empty())?;
        Ok(())
    }

    /// Hands on everything that is there and waits for nothing; false when more came than there was room for.
    pub(crate) fn hear(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let mut is_all = true;
        loop {
            let received = match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((received, _)) => received,
                Err(Errno::AGAIN) => return Ok(is_all),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    is_all = false;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut rest = self.buffer.get(..received).unwrap_or_default();
            while let Some(message) = Message::take(&mut rest) {
                each(&message);
            }
        }
    }
}
