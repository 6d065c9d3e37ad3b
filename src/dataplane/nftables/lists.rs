//! Lists of sources, of which a table has as many as entries refer to: a set of networks and a chain that returns what comes
//! from one of them and drops the rest. Entries go there through a map, so a list that many share is there once, and a look-up
//! takes no longer for other lists, and hardly longer for a long one. One set over the ports and sources of all entries would
//! compare a packet with every element.
//!
//! A list is named by what is in it. One that changes is another set and another chain, made before the entries are
//! led there, so that no packet ever sees a part of it; the old one goes when nothing leads there any more.

use std::fmt::Write as _;

use crate::dataplane::nftables::element::Collection;
use crate::dataplane::nftables::element::Data;
use crate::dataplane::nftables::skeleton::family_name;
use crate::model::address::Family;
use crate::ruleset::sources::ListId;

const SET: &str = "s_list_";
const CHAIN: &str = "c_list_";

/// The comments by which the rules of a list's chain are recognised.
pub(crate) const COMMENTS: [&str; 2] = ["pinhole:list:0", "pinhole:list:1"];

/// The name of a list's set.
pub(crate) fn set_name(id: ListId) -> String {
    format!("{SET}{id}")
}

/// The name of a list's chain.
pub(crate) fn chain_name(id: ListId) -> String {
    format!("{CHAIN}{id}")
}

/// The list whose set has this name.
pub(crate) fn of_set(name: &str) -> Option<ListId> {
    ListId::parse(name.strip_prefix(SET)?)
}

/// The list whose chain has this name.
pub(crate) fn of_chain(name: &str) -> Option<ListId> {
    ListId::parse(name.strip_prefix(CHAIN)?)
}

/// The commands that make a list, whatever there is under its name.
pub(crate) fn write(text: &mut String, family: Family, table: &str, id: ListId, networks: &Data) {
    let (set, chain, ip) = (set_name(id), chain_name(id), family_name(family));
    let [admits, drops] = COMMENTS;
    let declaration = Collection::Lists.declaration(family);
    let (_, kind) = declaration.split_once('{').unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "add set {table} {set} {{{kind}\n\
         flush set {table} {set}\n\
         add element {table} {set} {{ {networks} }}\n\
         add chain {table} {chain}\n\
         flush chain {table} {chain}\n\
         add rule {table} {chain} {ip} saddr @{set} return comment \"{admits}\"\n\
         add rule {table} {chain} drop comment \"{drops}\"\n"
    );
}

/// The commands that remove a list to which nothing leads.
pub(crate) fn remove(text: &mut String, table: &str, id: ListId) {
    let (set, chain) = (set_name(id), chain_name(id));
    // Adding what exists does not fail, and deleting what does not would.
    let _ =
        write!(text, "add chain {table} {chain}\ndelete chain {table} {chain}\ndelete set {table} {set}\n");
}
