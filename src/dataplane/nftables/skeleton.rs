//! What does not depend on who is served: the sets, chains and rules of our table, always the same number.
//!
//! ```text
//! prerouting, output -110   an external address of ours? -> c_ingress
//!   c_ingress               mark; drop what leads nowhere or comes from nobody allowed; send to the pod; unmark the rest
//!     c_sources -> c_list_... not of the constant part: one for each list of sources, which returns what is from there
//! forward -10               drop what conntrack rejects, or it would leave with the pod's own address, and what would begin
//!                           an ended connection again
//! prerouting -150           which link a connection came in by, and its replies must leave by; only with links
//! postrouting 90            hairpin; pods of other nodes; destinations inside the cluster; the pod's fixed address; the
//!                           node's address
//!   c_keep                  rewrite the source to what it is, which ends what others would rewrite it to
//! ```
//! The priorities stand before those of iptables and kube-proxy (-100, 100), and the first rewriting of a connection
//! counts, so nothing has to be kept in front of anything.

use std::fmt::Write as _;

use crate::dataplane::nftables::element::Collection;
use crate::dataplane::settings::ReturnPath;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::model::digest::fnv1a;

/// What the comments of our rules begin with.
pub(crate) const OURS: &str = "pinhole:";

/// The packet mark by which kube-proxy asks for masquerading. Its rule for that stands behind ours.
const KUBE_MASQUERADE: u32 = 0x4000;

/// Where a chain is called from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// The hook's name.
    pub hook: &'static str,
    /// The hook's number.
    pub number: u32,
    /// The order among chains of this hook.
    pub priority: i32,
}

/// A chain of our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// The hook that calls it; none for a chain that only rules lead to.
    pub base: Option<Base>,
    /// Its rules, each with the comment by which it is recognised.
    rules: Vec<String>,
    /// The number of its first rule.
    first: usize,
}

/// The table of one family without its elements.
#[derive(Clone, Debug)]
pub struct Skeleton {
    /// The family.
    pub family: Family,
    /// The name of the table.
    pub table: String,
    /// The chains, those that others lead to first.
    pub chains: Vec<Chain>,
    digest: u32,
}

/// The name of a family in nft.
pub const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl Skeleton {
    /// The table of one family.
    pub fn new(family: Family, settings: &Settings) -> Self {
        let mut chains = chains(family, settings);
        let mut first = 0;
        for chain in &mut chains {
            chain.first = first;
            first += chain.rules.len();
        }
        let mut skeleton = Self { family, table: settings.prefix.to_string(), chains, digest: 0 };
        let digest = fnv1a(skeleton.text().as_bytes());
        skeleton.digest = u32::try_from(digest >> 32).unwrap_or_default();
        skeleton
    }

    /// `ip PINHOLE`, as commands name the table.
    pub fn table_name(&self) -> String {
        format!("{} {}", family_name(self.family), self.table)
    }

    /// The comments of a chain's rules in order: which version of the whole table a rule is of, and its place in it.
    /// Rules of another version, of others, or in another order are told by them.
    pub fn comments(&self, chain: &Chain) -> Vec<String> {
        (chain.first..chain.first + chain.rules.len()).map(|number| self.comment(number)).collect()
    }

    fn comment(&self, number: usize) -> String {
        format!("{OURS}{:08x}:{number}", self.digest)
    }

    /// The commands that make the table, replacing whatever there is under its name, all of them in one transaction.
    pub fn text(&self) -> String {
        let name = self.table_name();
        // Deleting what does not exist would fail, and adding what exists does not.
        let mut text = format!("add table {name}\ndelete table {name}\ntable {name} {{\n");
        for collection in Collection::ALL {
            let _ = writeln!(text, "\t{}", collection.declaration(self.family));
        }
        for chain in &self.chains {
            let _ = writeln!(text, "\tchain {} {{", chain.name);
            if let Some(Base { kind, hook, priority, .. }) = chain.base {
                let _ = writeln!(text, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;");
            }
            for (rule, number) in chain.rules.iter().zip(chain.first..) {
                let _ = writeln!(text, "\t\t{rule} comment \"{}\"", self.comment(number));
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }
}

fn chains(family: Family, settings: &Settings) -> Vec<Chain> {
    let mark = settings.mark.get();
    let ip = family_name(family);
    let multicast = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    let tuple = format!("{ip} daddr . meta l4proto . th dport");
    // A lookup in an interval set of several fields needs the protocol to be known.
    let known = "meta l4proto { tcp, udp, sctp }";
    let name = Collection::name;
    let sources = vec![
        // What the list admits returns from here. What it does not is dropped, not rejected: a port that is closed for some
        // looks like one that nobody has.
        format!("{tuple} vmap @{}", name(Collection::Listed)),
        format!("{known} {tuple} vmap @{}", name(Collection::ListedRanges)),
        // Reached while an entry goes from one list to another, on kernels that show neither for an instant.
        "drop".to_owned(),
    ];
    let ingress = vec![
        format!("ct mark set ct mark | {mark:#x}"),
        format!("{tuple} @{} drop", name(Collection::Closed)),
        format!("{known} {tuple} @{} drop", name(Collection::ClosedRanges)),
        format!("{tuple} @{} jump c_sources", name(Collection::Restricted)),
        format!("{known} {tuple} @{} jump c_sources", name(Collection::RestrictedRanges)),
        format!("dnat {ip} to {tuple} map @{}", name(Collection::Ports)),
        format!("{known} dnat {ip} to {tuple} map @{}", name(Collection::Ranges)),
        // What comes this far is nobody's port of ours, and others may send it on without our accepting it.
        format!("ct mark set ct mark & {:#x}", !mark),
    ];
    let dispatch = || vec![format!("{ip} daddr @{} goto c_ingress", name(Collection::Addresses))];
    let pods = format!("{ip} saddr @{}", name(Collection::Pods));
    let forward = vec![
        format!("{pods} meta l4proto tcp ct state invalid drop"),
        // Likewise of mapped pods of other nodes.
        format!("{ip} saddr @{} meta l4proto tcp ct state invalid drop", name(Collection::Mapped)),
        // A map is no set that could be asked who is in it, so the packet that ends here gets the address that is found; a rule
        // that finds none does nothing.
        format!(
            "meta l4proto tcp ct state invalid {ip} saddr set {ip} saddr map @{} drop",
            name(Collection::Egress)
        ),
        // A connection whose source may no longer connect can be ended, and what its pod still sends would begin it again the
        // other way round.
        format!(
            "{ip} saddr @{} tcp flags & (fin | syn | rst | ack) != syn ct state new drop",
            name(Collection::RestrictedPods)
        ),
    ];
    let ours = format!("ct mark & {mark:#x} == {mark:#x} ct status & dnat == dnat");
    let inside = |collection| format!("{ip} daddr @{}", name(collection));
    let local = inside(Collection::Pods);
    let cluster = [inside(Collection::Cluster), format!("{ip} daddr {multicast}")];
    let unchanged = format!("snat {ip} to {ip} saddr");
    // What we sent on and is for none of this node's pods is for a pod of another node. Its client's address is kept from
    // rules of others, too, such as Flannel's.
    let is_masqueraded = settings.return_path == ReturnPath::Masquerade;
    let remote = if is_masqueraded { "masquerade fully-random" } else { unchanged.as_str() };
    let mut keep = vec![format!("{local} {unchanged}")];
    keep.extend(is_masqueraded.then(|| format!("{ours} return")));
    keep.extend(cluster.iter().map(|destination| format!("{destination} {unchanged}")));
    let kept = format!("{ip} saddr @{}", name(Collection::Kept));
    let excluded = format!("oifname @{}", name(Collection::ExcludedInterfaces));
    let mut postrouting = vec![
        format!("meta mark & {KUBE_MASQUERADE:#x} == {KUBE_MASQUERADE:#x} return"),
        // A pod that connects to its own or a neighbour's external address must get the answer from the node: sent
        // directly, it would come from an address that the pod never talked to (R17, R18).
        format!("{pods} {ours} masquerade fully-random"),
        format!("{kept} jump c_keep"),
        format!("{local} return"),
        format!("{ours} {remote}"),
    ];
    postrouting.extend(cluster.iter().map(|destination| format!("{destination} return")));
    postrouting.extend([
        format!(
            "{ip} daddr != @{} snat {ip} to {ip} saddr map @{}",
            name(Collection::Sheltered),
            name(Collection::Egress)
        ),
        format!("{kept} {excluded} {unchanged}"),
        format!("{excluded} return"),
        format!(
            "{ip} saddr @{} fib daddr type != local masquerade fully-random",
            name(Collection::Masqueraded)
        ),
    ]);
    let links = settings.links.now();
    let others = !links.mask();
    // Whatever comes in remembers its link; what answers to connections of ours leaves by it.
    let arrivals = links.marked(family).map(|(number, link)| {
        format!("iifname \"{}\" ct state new ct mark set ct mark & {others:#x} | {number:#x}", link.interface)
    });
    let replies = links.marked(family).map(|(number, _)| {
        let (looked_at, expected) = (links.mask() | mark, number | mark);
        format!(
            "ct direction reply ct mark & {looked_at:#x} == {expected:#x} meta mark set meta mark & {others:#x} | {number:#x}"
        )
    });
    let linked: Vec<_> = arrivals.chain(replies).collect();
    let base = |kind, hook, number, priority| Some(Base { kind, hook, number, priority });
    let chain = |name, base, rules| Chain { name, base, rules, first: 0 };
    let mut chains = vec![
        chain("c_sources", None, sources),
        chain("c_ingress", None, ingress),
        chain("c_keep", None, keep),
        // Numbered as in linux/netfilter.h.
        chain("c_prerouting", base("nat", "prerouting", 0, -110), dispatch()),
        chain("c_output", base("nat", "output", 3, -110), dispatch()),
        chain("c_forward", base("filter", "forward", 2, -10), forward),
        chain("c_postrouting", base("nat", "postrouting", 4, 90), postrouting),
    ];
    if !linked.is_empty() {
        chains.push(chain("c_links", base("filter", "prerouting", 0, -150), linked));
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::links::LinkMask;
    use crate::dataplane::links::Links;

    #[test]
    fn another_mark_prefix_or_layout_is_another_version() {
        let comments = |settings: &Settings| {
            let skeleton = Skeleton::new(Family::V4, settings);
            skeleton.chains.iter().flat_map(|chain| skeleton.comments(chain)).collect::<Vec<_>>()
        };
        let usual = comments(&Settings::default());
        assert_eq!(usual, comments(&Settings::default()));
        assert_ne!(usual, comments(&Settings { mark: "0x2000".parse().unwrap(), ..Settings::default() }));
        let distinct: std::collections::BTreeSet<_> = usual.iter().collect();
        assert_eq!(distinct.len(), usual.len(), "every rule has its own");
    }

    #[test]
    fn r54_links_are_one_chain_and_two_rules_each_and_nothing_without_them() {
        let rules = |links: &[&str]| {
            let links = links.iter().map(|link| link.parse().unwrap()).collect();
            let links = Links::new(LinkMask::default(), links).unwrap();
            let settings = Settings { links: links.into(), ..Settings::default() };
            let skeleton = Skeleton::new(Family::V4, &settings);
            let chain = skeleton.chains.into_iter().find(|chain| chain.name == "c_links");
            chain.map_or_else(Vec::new, |chain| chain.rules)
        };
        assert_eq!(rules(&[]), [""; 0]);
        assert_eq!(
            rules(&["interface=eth1", "interface=eth2"]),
            [
                "iifname \"eth1\" ct state new ct mark set ct mark & 0xffffff8f | 0x10",
                "iifname \"eth2\" ct state new ct mark set ct mark & 0xffffff8f | 0x20",
                "ct direction reply ct mark & 0x1070 == 0x1010 meta mark set meta mark & 0xffffff8f | 0x10",
                "ct direction reply ct mark & 0x1070 == 0x1020 meta mark set meta mark & 0xffffff8f | 0x20",
            ]
        );
    }

    #[test]
    fn r50_only_ranges_and_networks_are_intervals() {
        let intervals = Collection::ALL.into_iter().filter(|collection| collection.is_interval());
        let names: Vec<_> = intervals.map(Collection::name).collect();
        assert_eq!(
            names,
            [
                "m_ranges",
                "s_closed_ranges",
                "s_restricted_ranges",
                "m_listed_ranges",
                "s_pods",
                "s_cluster",
                "s_sheltered",
                "s_masqueraded",
                "s_kept"
            ]
        );
    }
}
