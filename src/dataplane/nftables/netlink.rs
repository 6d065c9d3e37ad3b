//! Talks to the kernel's nf_tables over one netlink socket that stays open.
//!
//! A socket belongs to the network namespace in which it was opened.

use std::collections::BTreeSet;
use std::io;
use std::io::ErrorKind;
use std::time::Duration;

use rustix::net::netlink::NETFILTER;

use crate::dataplane::netlink;
use crate::dataplane::netlink::message::ACKNOWLEDGE;
use crate::dataplane::netlink::message::Attributes;
use crate::dataplane::netlink::message::Builder;
use crate::dataplane::netlink::message::DUMP;
use crate::dataplane::netlink::message::ERROR;
use crate::dataplane::netlink::message::Message;
use crate::dataplane::netlink::message::REQUEST;
use crate::dataplane::netlink::message::number;
use crate::model::address::Family;

/// nf_tables among netfilter's message kinds.
const NF_TABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const GET_GENERATION: u16 = 16;
const GENERATION_ID: u16 = 1;
const NEW_GENERATION: u16 = 15;
const GENERATION_PROCESS: u16 = 3;
/// The group of listeners, as a bit.
const NF_TABLES_CHANGES: u32 = 1 << (7 - 1);

const PATIENCE: Duration = Duration::from_secs(5);
/// How often a list is asked for again that changed while it was read.
const ATTEMPTS: usize = 10;

/// A socket.
#[derive(Debug)]
pub(crate) struct Socket(netlink::Socket);

/// Hears who changes nf_tables.
#[derive(Debug)]
pub(crate) struct Listener(netlink::Socket);

/// Changes that the kernel makes together or not at all.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

/// A change of a batch that the kernel did not make; none of the batch was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which message of the batch, counted from 0.
    pub(crate) message: usize,
    /// The error number.
    pub(crate) code: i32,
}

/// netfilter's header: a family, a version, and a resource in network order.
fn header(family: Option<Family>, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    // Zero is no family.
    [family.map_or(0, number), 0, high, low]
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        open(0)?.patient_for(PATIENCE).map(Self)
    }

    /// What the kernel counts up with every change of any table in this namespace.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let mut generation = None;
        self.ask(GET_GENERATION, None, 0, |_| {}, |attributes| generation = attributes.int(GENERATION_ID))?;
        generation.ok_or_else(|| io::Error::other("the kernel did not tell nf_tables' generation"))
    }

    /// Asks for one object; false when it does not exist.
    pub(crate) fn get(
        &mut self,
        kind: u16,
        family: Family,
        describe: impl Fn(&mut Builder<'_>),
        found: impl FnMut(&Attributes<'_>),
    ) -> io::Result<bool> {
        match self.ask(kind, Some(family), 0, describe, found) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for a list. It begins anew, by `again`, when it changed while it was read; false when it does not exist.
    pub(crate) fn list<T>(
        &mut self,
        kind: u16,
        family: Family,
        describe: impl Fn(&mut Builder<'_>),
        again: impl Fn() -> T,
        mut found: impl FnMut(&mut T, &Attributes<'_>),
    ) -> io::Result<Option<T>> {
        for _ in 0..ATTEMPTS {
            let mut list = again();
            match self.ask(kind, Some(family), DUMP, &describe, |attributes| found(&mut list, attributes)) {
                Ok(true) => return Ok(Some(list)),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("nf_tables keeps changing while it is listed"))
    }

    /// Sends a request and reads its answers; false when they do not fit together.
    fn ask(
        &mut self,
        kind: u16,
        family: Option<Family>,
        flags: u16,
        describe: impl Fn(&mut Builder<'_>),
        mut found: impl FnMut(&Attributes<'_>),
    ) -> io::Result<bool> {
        let found = |message: &Message<'_>| found(&message.attributes());
        self.0.ask(NF_TABLES << 8 | kind, flags, &header(family, 0), describe, found)
    }

    /// Makes all changes of a batch.
    pub(crate) fn commit(&mut self, batch: Batch) -> io::Result<Result<(), Vec<Refusal>>> {
        let Batch { mut bytes, messages } = batch;
        Builder::new(&mut bytes, BATCH_END, REQUEST, messages + 1, &header(None, NF_TABLES)).end();
        self.0.send(&bytes)?;
        let mut refused = Vec::new();
        let mut is_done = false;
        // There can be so many refusals that not all of them are told.
        self.0.hear(|message| match (message.kind, message.error()) {
            (ERROR, 0) => is_done |= message.sequence == messages,
            (ERROR, code) => {
                let index = usize::try_from(message.sequence).unwrap_or_default().saturating_sub(1);
                refused.push(Refusal { message: index, code });
            }
            _ => {}
        })?;
        if !refused.is_empty() {
            return Ok(Err(refused));
        }
        if messages != 0 && !is_done {
            return Err(io::Error::other("the kernel did not confirm a change of nf_tables"));
        }
        Ok(Ok(()))
    }
}

impl Listener {
    /// Begins to hear of the changes in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        open(NF_TABLES_CHANGES).map(Self)
    }

    /// The names of the programs that changed something since this was asked last, as far as they were heard: who
    /// changes much at once may drown the end of it, where the name is.
    pub(crate) fn names(&mut self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let _ = self.0.hear(|message| {
            if message.kind == NF_TABLES << 8 | NEW_GENERATION {
                names.extend(message.attributes().text(GENERATION_PROCESS).map(str::to_owned));
            }
        });
        names
    }
}

fn open(groups: u32) -> io::Result<netlink::Socket> {
    netlink::Socket::open(Some(NETFILTER), groups)
}

impl Batch {
    /// A batch without changes.
    pub(crate) fn new() -> Self {
        let mut bytes = Vec::new();
        Builder::new(&mut bytes, BATCH_BEGIN, REQUEST, 0, &header(None, NF_TABLES)).end();
        Self { bytes, messages: 0 }
    }

    /// Adds a change; the last one tells that all were made.
    pub(crate) fn add(
        &mut self,
        kind: u16,
        family: Family,
        flags: u16,
        is_last: bool,
        describe: impl FnOnce(&mut Builder<'_>),
    ) {
        self.messages += 1;
        let flags = REQUEST | flags | if is_last { ACKNOWLEDGE } else { 0 };
        let header = header(Some(family), 0);
        let mut message = Builder::new(&mut self.bytes, NF_TABLES << 8 | kind, flags, self.messages, &header);
        describe(&mut message);
        message.end();
    }
}
