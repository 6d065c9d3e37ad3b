//! Reads our table from the kernel: whether its chains and rules are ours, and its elements.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;

use crate::dataplane::counters::Counters;
use crate::dataplane::netlink::message::Attributes;
use crate::dataplane::netlink::message::Builder;
use crate::dataplane::nftables::codec::COUNTER;
use crate::dataplane::nftables::codec::EXPRESSION_NAME;
use crate::dataplane::nftables::codec::Reader;
use crate::dataplane::nftables::codec::comment;
use crate::dataplane::nftables::element::Collection;
use crate::dataplane::nftables::element::Data;
use crate::dataplane::nftables::element::ElementKey;
use crate::dataplane::nftables::element::Elements;
use crate::dataplane::nftables::element::Field;
use crate::dataplane::nftables::element::Held;
use crate::dataplane::nftables::element::Value;
use crate::dataplane::nftables::lists;
use crate::dataplane::nftables::netlink::Socket;
use crate::dataplane::nftables::plan::State;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::nftables::skeleton::Chain;
use crate::dataplane::nftables::skeleton::OURS;
use crate::dataplane::nftables::skeleton::Skeleton;
use crate::dataplane::settings::Prefix;
use crate::model::address::Family;
use crate::model::digest::fnv1a;

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENT: u16 = 13;

/// The table's name is the first attribute of whatever is in it.
const TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_USE: u16 = 3;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_LENGTH: u16 = 7;
const ACCEPT: u32 = 1;
/// Sets of several fields in whose keys the kernel tells the fields apart, and other marks that say nothing of ours.
const ANONYMOUS: u32 = 1;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;

/// A table and a digest of its rules as the kernel spells them.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) table: Table,
    /// Equal for equal rules; nothing else is to be read from it.
    pub(crate) rules: u64,
}

/// Reads the table.
pub(crate) fn read(socket: &mut Socket, skeleton: &Skeleton) -> io::Result<Reading> {
    let (mut flags, mut parts) = (0, 0);
    let is_there = socket.get(GET_TABLE, skeleton.family, named(skeleton), |table| {
        flags = table.int(TABLE_FLAGS).unwrap_or_default();
        parts = table.int(TABLE_USE).unwrap_or(u32::MAX);
    })?;
    if !is_there {
        return Ok(Reading { table: Table::default(), rules: 0 });
    }
    let mut damages = Vec::new();
    if flags != 0 {
        damages.push("the table is asleep or owned".to_owned());
    }
    let mut rules = Vec::new();
    for chain in &skeleton.chains {
        damages.extend(damage_of_chain(socket, skeleton, chain, &mut rules)?);
    }
    let mut elements = Elements::new();
    let mut unread = BTreeSet::new();
    for collection in Collection::ALL {
        let held = match damage_of_set(socket, skeleton, collection)? {
            Some(damage) => Err(damage),
            None => read_elements(socket, skeleton, collection, collection.name())?,
        };
        match held {
            Ok(held) if held.is_empty() => {}
            Ok(held) => drop(elements.insert(collection, held)),
            Err(damage) => {
                damages.push(damage);
                unread.insert(collection);
            }
        }
    }
    leave_out_unrestricted(&mut elements, &unread);
    let sets = names_of_sets(socket, skeleton)?;
    let lists = read_lists(socket, skeleton, &sets, &mut damages)?;
    damages.extend(chain_of_others(socket, skeleton, parts, &sets, &lists)?);
    if !lists.is_empty() {
        elements.insert(Collection::Lists, lists);
    }
    let state = damages.into_iter().next().map_or(State::Intact, State::Damaged);
    Ok(Reading { table: Table { state, elements: Some(elements) }, rules: fnv1a(&rules) })
}

/// What cannot be told to be open to all is not told at all.
fn leave_out_unrestricted(elements: &mut Elements, unread: &BTreeSet<Collection>) {
    for (restricted, open) in
        [(Collection::Restricted, Collection::Ports), (Collection::RestrictedRanges, Collection::Ranges)]
    {
        if unread.contains(&restricted) {
            elements.remove(&open);
        }
    }
}

/// The names of tables that could be ours.
pub(crate) fn names_like_ours(socket: &mut Socket, family: Family) -> io::Result<Vec<Prefix>> {
    let listed = socket.list(
        GET_TABLE,
        family,
        |_| {},
        Vec::new,
        |list, table| {
            list.extend(table.text(TABLE).and_then(|name| name.parse::<Prefix>().ok()));
        },
    )?;
    Ok(listed.unwrap_or_default())
}

/// Whether the rules of a table with the skeleton's name are ours, of whatever version.
pub(crate) fn is_ours(socket: &mut Socket, skeleton: &Skeleton) -> io::Result<bool> {
    for chain in &skeleton.chains {
        if rules_of(socket, skeleton, chain.name)?.iter().any(|(comment, _)| comment.starts_with(OURS)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn named(skeleton: &Skeleton) -> impl Fn(&mut Builder<'_>) {
    |message| {
        message.text(TABLE, &skeleton.table);
    }
}

/// What is wrong with a chain; the expressions of its rules go to `rules`.
fn damage_of_chain(
    socket: &mut Socket,
    skeleton: &Skeleton,
    chain: &Chain,
    rules: &mut Vec<u8>,
) -> io::Result<Option<String>> {
    let mut is_right = false;
    let describe = |message: &mut Builder<'_>| {
        message.text(TABLE, &skeleton.table).text(CHAIN_NAME, chain.name);
    };
    socket.get(GET_CHAIN, skeleton.family, describe, |found| is_right = is_as_made(chain, found))?;
    if !is_right {
        return Ok(Some(format!("the chain {} is missing or called from elsewhere", chain.name)));
    }
    let listed = rules_of(socket, skeleton, chain.name)?;
    let is_whole = listed.iter().map(|(comment, _)| comment).eq(&skeleton.comments(chain));
    rules.extend(listed.into_iter().flat_map(|(_, expressions)| expressions));
    Ok((!is_whole).then(|| format!("the rules of the chain {} are others", chain.name)))
}

/// The rules of a chain of ours: their comments and their expressions.
fn rules_of(socket: &mut Socket, skeleton: &Skeleton, chain: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let describe = |message: &mut Builder<'_>| {
        message.text(TABLE, &skeleton.table).text(RULE_CHAIN, chain);
    };
    let listed = socket.list(GET_RULE, skeleton.family, describe, Vec::new, |list, rule| {
        // Old kernels list more than was asked for.
        let is_here = rule.text(TABLE) == Some(&skeleton.table) && rule.text(RULE_CHAIN) == Some(chain);
        if is_here {
            let comment = rule.find(RULE_USERDATA).and_then(comment).unwrap_or_default().to_owned();
            list.push((comment, rule.find(RULE_EXPRESSIONS).unwrap_or_default().to_vec()));
        }
    })?;
    Ok(listed.unwrap_or_default())
}

/// A digest of a chain's rules and policy: equal for equal rules, whatever they counted. A chain that does not exist has
/// one, too.
pub(crate) fn digest_of_chain(
    socket: &mut Socket,
    family: Family,
    table: &str,
    chain: &str,
) -> io::Result<u64> {
    let mut policy = Vec::new();
    let describe = |message: &mut Builder<'_>| {
        message.text(TABLE, table).text(CHAIN_NAME, chain);
    };
    let is_there = socket.get(GET_CHAIN, family, describe, |found| {
        policy.extend(found.find(CHAIN_POLICY).unwrap_or_default());
    })?;
    if !is_there {
        return Ok(0);
    }
    let describe = |message: &mut Builder<'_>| {
        message.text(TABLE, table).text(RULE_CHAIN, chain);
    };
    let begin = || policy.clone();
    let rules = socket.list(GET_RULE, family, describe, begin, |rules, rule| {
        if rule.text(TABLE) != Some(table) || rule.text(RULE_CHAIN) != Some(chain) {
            return;
        }
        // Where one rule ends and another begins counts, too.
        rules.push(0);
        for (_, expression) in rule.nested(RULE_EXPRESSIONS).into_iter().flatten() {
            if Attributes(expression).text(EXPRESSION_NAME) != Some(COUNTER) {
                rules.extend(expression);
            }
        }
        rules.extend(rule.find(RULE_USERDATA).unwrap_or_default());
    })?;
    Ok(rules.map_or(0, |rules| fnv1a(&rules)))
}

fn is_as_made(chain: &Chain, found: &Attributes<'_>) -> bool {
    let hook = found.nested(CHAIN_HOOK);
    match (chain.base, hook) {
        (None, None) => true,
        (Some(base), Some(hook)) => {
            hook.int(HOOK_NUMBER) == Some(base.number)
                && hook.int(HOOK_PRIORITY) == Some(base.priority.cast_unsigned())
                && found.text(CHAIN_TYPE) == Some(base.kind)
                && found.int(CHAIN_POLICY) == Some(ACCEPT)
        }
        _ => false,
    }
}

fn damage_of_set(
    socket: &mut Socket,
    skeleton: &Skeleton,
    collection: Collection,
) -> io::Result<Option<String>> {
    let length = |fields: &[Field]| {
        let length = |field: &Field| match (field, skeleton.family) {
            // The kernel keeps a verdict in two words.
            (Field::Address, Family::V6) | (Field::Interface | Field::Chain, _) => 16,
            _ => 4,
        };
        fields.iter().map(length).sum::<u32>()
    };
    let expected_flags = if collection.is_interval() { INTERVAL } else { 0 }
        | if collection.data().is_empty() { 0 } else { MAP };
    let mut is_right = false;
    let describe = |message: &mut Builder<'_>| {
        message.text(TABLE, &skeleton.table).text(SET_NAME, collection.name());
    };
    socket.get(GET_SET, skeleton.family, describe, |set| {
        // A single port or address is told with its own length, or with what it takes in a register.
        let is_about = |found: u32, expected: u32| found.next_multiple_of(4) == expected;
        is_right = set.int(SET_FLAGS).unwrap_or_default() & (INTERVAL | MAP) == expected_flags
            && is_about(set.int(SET_KEY_LENGTH).unwrap_or_default(), length(collection.key()))
            && is_about(set.int(SET_DATA_LENGTH).unwrap_or_default(), length(collection.data()));
    })?;
    Ok((!is_right).then(|| format!("{} is missing or of another type", collection.name())))
}

fn read_elements(
    socket: &mut Socket,
    skeleton: &Skeleton,
    collection: Collection,
    set: &str,
) -> io::Result<Result<BTreeMap<ElementKey, Held>, String>> {
    let describe = |message: &mut Builder<'_>| {
        message.text(TABLE, &skeleton.table).text(SET_NAME, set);
    };
    let reader = || Reader::new(collection, skeleton.family);
    let read = socket.list(GET_ELEMENT, skeleton.family, describe, reader, Reader::read)?;
    Ok(read.map_or_else(|| Ok(BTreeMap::new()), Reader::finish))
}

/// The names of the sets and maps in the table, without those that stand inside rules.
fn names_of_sets(socket: &mut Socket, skeleton: &Skeleton) -> io::Result<Vec<String>> {
    let listed = socket.list(GET_SET, skeleton.family, named(skeleton), Vec::new, |list, set| {
        let is_constant = set.int(SET_FLAGS).unwrap_or_default() & ANONYMOUS != 0;
        if set.text(TABLE) == Some(&skeleton.table) && !is_constant {
            list.extend(set.text(SET_NAME).map(str::to_owned));
        }
    })?;
    Ok(listed.unwrap_or_default())
}

/// A chain that is none of ours, told as damage: it would be called with packets that are none of its business. The kernel
/// lists those of all tables, so they are listed only when our table has more parts than we know.
fn chain_of_others(
    socket: &mut Socket,
    skeleton: &Skeleton,
    parts: u32,
    sets: &[String],
    lists: &BTreeMap<ElementKey, Held>,
) -> io::Result<Option<String>> {
    let known = skeleton.chains.len() + sets.len() + lists.len();
    if usize::try_from(parts).is_ok_and(|parts| parts <= known) {
        return Ok(None);
    }
    let is_ours = |name: &str| {
        skeleton.chains.iter().any(|chain| chain.name == name)
            || lists::of_chain(name).is_some_and(|id| lists.contains_key(&ElementKey::List(id)))
    };
    let found = socket.list(
        GET_CHAIN,
        skeleton.family,
        named(skeleton),
        || None,
        |found, chain| {
            let name = chain.text(CHAIN_NAME).filter(|name| !is_ours(name));
            if chain.text(TABLE) == Some(&skeleton.table) && found.is_none() {
                *found = name.map(str::to_owned);
            }
        },
    )?;
    Ok(found.flatten().map(|name| format!("the chain {name} is none of ours")))
}

/// The lists that there are. One whose chain is not ours any more is told as damage.
fn read_lists(
    socket: &mut Socket,
    skeleton: &Skeleton,
    sets: &[String],
    damages: &mut Vec<String>,
) -> io::Result<BTreeMap<ElementKey, Held>> {
    let mut read = BTreeMap::new();
    for id in sets.iter().filter_map(|name| lists::of_set(name)) {
        let (set, chain) = (lists::set_name(id), lists::chain_name(id));
        let comments = rules_of(socket, skeleton, &chain)?;
        if !comments.iter().map(|(comment, _)| comment.as_str()).eq(lists::COMMENTS) {
            damages.push(format!("the rules of the chain {chain} are others"));
        }
        match read_elements(socket, skeleton, Collection::Lists, &set)? {
            Ok(held) => {
                let net = |key| if let ElementKey::Net(net) = key { Some(net) } else { None };
                let mut nets: Vec<_> = held.into_keys().filter_map(net).collect();
                nets.sort();
                let value = Value { data: Data::Networks(nets.into()), comment: None };
                read.insert(ElementKey::List(id), Held { value, counters: Counters::default() });
            }
            Err(damage) => damages.push(damage),
        }
    }
    Ok(read)
}
