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
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
/// The table's name is the first attribute of whatever is in it.
const TABLE_NAME: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
/// The group of listeners, as a bit.
const NF_TABLES_CHANGES: u32 = 1 << (7 - 1);

const PATIENCE: Duration = Duration::from_secs(5);
/// Room for what is told of the changes between two looks, of a node with thousands of Services too.
const ROOM: usize = 4 * 1024 * 1024;
/// How often a list is asked for again that changed while it was read.
const ATTEMPTS: usize = 10;

/// A socket.
#[derive(Debug)]
pub(crate) struct Socket(netlink::Socket);

/// Hears who changes nf_tables, and what.
#[derive(Debug)]
pub(crate) struct Listener(netlink::Socket);

/// What was heard of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// How far the kernel had counted after the last of them.
    pub(crate) generation: Option<u32>,
    /// Whether one of them concerned the listener.
    pub(crate) is_touched: bool,
    /// Whether more was said than there was room for.
    pub(crate) is_lost: bool,
    /// The programs that made those that concerned the listener. Who changes much at once may drown the end of it, where
    /// the name is; then all others that were heard may have been it.
    pub(crate) by: BTreeSet<String>,
}

/// What somebody touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touched<'a> {
    pub(crate) family: Family,
    pub(crate) table: &'a str,
    pub(crate) part: Part<'a>,
}

/// Which part of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// The table itself.
    Whole,
    /// A chain or its rules.
    Chain(&'a str),
    /// Sets, elements and other things that rules refer to.
    Other,
}

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
        Ok(Self(open(NF_TABLES_CHANGES)?.with_room_for(ROOM)))
    }

    /// What was changed since this was asked last.
    pub(crate) fn hear(&mut self, concerns: impl Fn(&Touched<'_>) -> bool) -> Heard {
        let mut news = Heard::default();
        // Of each change the kernel tells first what it touched, and last who made it.
        let (mut is_meant, mut others) = (false, BTreeSet::new());
        let heard = self.0.hear(|message| {
            if message.kind == NF_TABLES << 8 | NEW_GENERATION {
                let attributes = message.attributes();
                news.generation = attributes.int(GENERATION_ID).or(news.generation);
                let by = if std::mem::take(&mut is_meant) { &mut news.by } else { &mut others };
                by.extend(attributes.text(GENERATION_PROCESS).map(str::to_owned));
            } else if Touched::read(message).is_some_and(|touched| concerns(&touched)) {
                is_meant = true;
                news.is_touched = true;
            }
        });
        if !heard.unwrap_or(false) {
            news.is_lost = true;
            news.by.append(&mut others);
        }
        news
    }
}

impl<'a> Touched<'a> {
    /// `None` for what is in a table of another family.
    fn read(message: &Message<'a>) -> Option<Self> {
        let family =
            Family::ALL.into_iter().find(|family| message.payload.first() == Some(&number(*family)))?;
        let attributes = message.attributes();
        let chain = |attribute| attributes.text(attribute).map_or(Part::Whole, Part::Chain);
        let part = match message.kind ^ NF_TABLES << 8 {
            NEW_TABLE | DELETE_TABLE => Part::Whole,
            NEW_CHAIN | DELETE_CHAIN => chain(CHAIN_NAME),
            NEW_RULE | DELETE_RULE => chain(RULE_CHAIN),
            _ => Part::Other,
        };
        Some(Self { family, table: attributes.text(TABLE_NAME)?, part })
    }
}

/// Whether an error means that the kernel has no nf_tables, so that nothing can be there: neither the socket, nor anybody who
/// answers for it.
pub(crate) fn is_without(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// Whether an answer means the same: for all that is no change, the kernel says that the request makes no sense.
pub(crate) fn is_unanswered(error: &io::Error) -> bool {
    is_without(error) || error.raw_os_error() == Some(libc::EINVAL)
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
