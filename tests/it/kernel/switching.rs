//! From one backend to another on a node that serves, and who decides.

use std::fs;

use pinhole::dataplane::Dataplane;
use pinhole::dataplane::choice::Chosen;
use pinhole::dataplane::choice::FirewallChoice;
use pinhole::dataplane::choice::choose;
use pinhole::dataplane::cleanup::cleanup;
use pinhole::dataplane::former::Successor;
use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;
use pinhole::dataplane::settings::FlavorChoice;
use pinhole::dataplane::settings::Prefix;
use pinhole::ruleset::desired::desired;

use crate::kernel::lab::A;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::rewriting::while_connecting;

const NFTABLES: Firewall = Firewall::Nftables;
const NFT: Firewall = Firewall::Iptables(Flavor::Nft);
const LEGACY: Firewall = Firewall::Iptables(Flavor::Legacy);

/// What is ours in each of them.
fn ours(lab: &Lab) -> Vec<Firewall> {
    let look = |script: &str| lab.node.sh(&format!("{script} | grep -c PINHOLE || true")).trim() != "0";
    let mut ours = Vec::new();
    if look("nft list tables") {
        ours.push(NFTABLES);
    }
    for flavor in Flavor::ALL {
        if look(&format!("(iptables-{flavor}-save; ip6tables-{flavor}-save) 2>/dev/null")) {
            ours.push(Firewall::Iptables(flavor));
        }
    }
    ours
}

fn switch(from: Firewall, to: Firewall) {
    let mut lab = Lab::new(from);
    let _a = lab.a.serve("a", "[::]:80");
    let wanted =
        [endpoint("80/tcp", "a", A), endpoint("9000-9009/udp", "a", A), endpoint("90/tcp", "b", &[])];
    lab.apply(&wanted);
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    established.ask().unwrap();
    assert_eq!(ours(&lab), [from]);
    let there_and_back = [to, from, to];
    while_connecting(&mut lab, |lab| {
        for next in there_and_back {
            lab.switch_to(next);
            let observed = lab.read();
            assert_eq!(observed.ruleset.len(), 2 * wanted.len(), "what the other one serves is told");
            let applied = lab.apply(&wanted);
            assert!(!applied.transactions.is_empty());
            assert_eq!(applied.changes, [], "nobody is told of a change");
            assert_eq!(ours(lab), [next]);
        }
    });
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
    lab.read();
    assert!(lab.apply(&wanted).transactions.is_empty());
    lab.apply(&[]);
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
}

#[test]
fn r43_r45_a_switch_from_nftables_to_iptables_nft_loses_no_connection() {
    switch(NFTABLES, NFT);
}

#[test]
fn r43_r45_a_switch_from_nftables_to_iptables_legacy_loses_no_connection() {
    switch(NFTABLES, LEGACY);
}

#[test]
fn r43_r45_a_switch_from_one_flavour_of_iptables_to_the_other_loses_no_connection() {
    switch(NFT, LEGACY);
}

/// What has a name with this prefix, in all of them.
fn named(lab: &Lab, prefix: &str) -> bool {
    let all = "nft list ruleset; iptables-legacy-save; ip6tables-legacy-save";
    lab.node.sh(&format!("({all}) 2>/dev/null | grep -c '\\b{prefix}\\b' || true")).trim() != "0"
}

/// A changed `--resource-prefix` is a switch, too: what served under the old one is known by its comments.
#[test]
fn r45_a_change_of_the_prefix_loses_no_connection_and_leaves_nothing_behind() {
    for (before, after) in [(NFTABLES, NFTABLES), (NFT, NFT), (LEGACY, NFTABLES)] {
        let mut lab = Lab::new(before);
        let _a = lab.a.serve("a", "[::]:80");
        let wanted =
            [endpoint("80/tcp", "a", A), endpoint("9000-9009/udp", "a", A), endpoint("90/tcp", "b", &[])];
        lab.settings.prefix = "FORMER".parse().unwrap();
        lab.apply(&wanted);
        let mut established = lab.client.connect("203.0.113.7:80").unwrap();
        established.ask().unwrap();
        lab.settings.prefix = Prefix::default();
        lab.switch_to(after);
        let desired = desired(&wanted, &Lab::facts()).ruleset;
        while_connecting(&mut lab, |lab| {
            let successor = Successor::new(lab.backend(), lab.settings.clone());
            lab.on_node(async || {
                let observed = successor.read().await.unwrap();
                assert_eq!(observed.ruleset.len(), 2 * wanted.len(), "what the other one serves is told");
                let applied = successor.apply(&desired, observed).await;
                assert!(applied.failures.is_empty(), "{:?}", applied.failures);
                assert_eq!(applied.changes, [], "nobody is told of a change");
                assert_eq!(applied.observed.ruleset, desired);
            });
            assert_eq!((named(lab, "FORMER"), named(lab, "PINHOLE")), (false, true), "{before}");
        });
        assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
        lab.read();
        assert!(lab.apply(&wanted).transactions.is_empty());
    }
}

#[test]
fn a_clean_up_takes_whatever_is_ours_under_any_prefix() {
    for firewall in [NFTABLES, NFT, LEGACY] {
        let mut lab = Lab::new(firewall);
        lab.apply(&[endpoint("80/tcp", "a", A)]);
        lab.node.sh("nft add table ip THEIRS; nft add chain ip THEIRS c_ingress; nft add rule ip THEIRS c_ingress accept");
        lab.settings.prefix = "OTHER".parse().unwrap();
        let settings = lab.settings.clone();
        let removed = lab.on_node(async || cleanup(&settings).await).unwrap();
        assert_eq!(removed.len(), 2, "one of each family: {removed:?}");
        assert!(!named(&lab, "PINHOLE"), "{firewall}");
        assert!(lab.node.sh("nft list tables").contains("ip THEIRS"));
    }
}

fn chosen(lab: &Lab, choice: FirewallChoice, flavor: FlavorChoice) -> Chosen {
    let settings = lab.settings.clone();
    lab.on_node(async || choose(choice, flavor, &settings).await).unwrap()
}

#[test]
fn an_empty_node_gets_nftables_where_it_can_and_else_iptables() {
    let mut lab = Lab::new(NFTABLES);
    let auto = |lab: &Lab| chosen(lab, FirewallChoice::Auto, FlavorChoice::Auto);
    let state = "nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names";
    assert_eq!(auto(&lab).firewall, NFTABLES);
    assert_eq!(lab.node.sh(state), "", "asking has made nothing");
    lab.iptables("-A FORWARD -j ACCEPT");
    assert_eq!(auto(&lab).firewall, NFTABLES, "rules of others do not decide");

    let directory = lab.directory().join("without-nft");
    fs::create_dir(&directory).unwrap();
    for flavor in Flavor::ALL {
        for name in ["iptables", "ip6tables"].map(|name| format!("{name}-{flavor}")) {
            for program in [name.clone(), format!("{name}-save")] {
                let real = lab.node.sh(&format!("command -v {program}"));
                std::os::unix::fs::symlink(real.trim(), directory.join(program)).unwrap();
            }
        }
    }
    lab.settings.tools.directory = Some(directory);
    let without = auto(&lab);
    assert_eq!(without.firewall, NFT);
    assert!(without.reason.contains("nft") && without.reason.contains("not found"), "{}", without.reason);
}

#[test]
fn a_node_that_has_entries_keeps_its_firewall_until_another_is_named() {
    for firewall in [NFTABLES, NFT, LEGACY] {
        let mut lab = Lab::new(firewall);
        lab.apply(&[endpoint("80/tcp", "a", A)]);
        let auto = chosen(&lab, FirewallChoice::Auto, FlavorChoice::Auto);
        assert_eq!(auto.firewall, firewall, "{}", auto.reason);
        let named = chosen(&lab, FirewallChoice::Nftables, FlavorChoice::Auto);
        assert_eq!(named.firewall, NFTABLES);
        let named = chosen(&lab, FirewallChoice::Iptables, FlavorChoice::Auto);
        assert_eq!(named.firewall, if firewall == LEGACY { LEGACY } else { NFT }, "{}", named.reason);
        let named = chosen(&lab, FirewallChoice::Iptables, FlavorChoice::Always(Flavor::Legacy));
        assert_eq!(named.firewall, LEGACY);
    }
}
