//! `docs/regressions.md`: each known defect of the predecessors and of the first experiments, and the tests that hold it
//! off. The tests are found in the sources by the ids that their names start with.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::golden::golden;

/// Every defect, in the words of whoever would meet it.
const DEFECTS: [&str; 55] = [
    "Two protocols on one port: only the first is served, or one displaces the other",
    "The late deletion of an unknown pod creates rules to a dead address",
    "Several stale owners of a port crash the agent, again after every restart",
    "Among several owners the wrong one wins, depending on their order",
    "After a long downtime the first event removes every rule",
    "Removing one mapping of a pod removes what its other mappings need",
    "Two pods that want one port displace each other at every resync",
    "One mapping that the kernel refuses keeps all others from being programmed",
    "The late deletion of a pod removes the rules of its successor with the same address or name",
    "An edited or removed annotation leaves the old port open",
    "What was deleted while the agent was down stays programmed",
    "A list after a lost watch, or an unreadable object, crashes the agent or leaves the dead alive",
    "A removal that failed is never made up for",
    "Pods that ended keep their ports, and unready ones lose theirs by accident",
    "Nodes with the same short name take each other's pods",
    "Every event writes to the API server, also when nothing changed",
    "A pod cannot reach itself by its external address",
    "A pod cannot reach its neighbour by the external address",
    "The node cannot reach a pod by its external address",
    "With two external addresses, which one a pod leaves with changes, and some protocols leave with neither",
    "A hostNetwork pod's mapping rewrites the traffic of the whole node",
    "Under a FORWARD policy of DROP, answers do not pass",
    "The accept for a mapping opens the pod to direct traffic, too",
    "UDP clients stay with an old or no pod after a change",
    "Networks inside the cluster are rewritten unless they are RFC 1918, and private ones outside never",
    "What others flush or edit is not restored, or only in part",
    "Any address can be claimed, also somebody else's",
    "A mapping of the other IP family makes a rule that fails",
    "No IPv6, SCTP, ranges or source lists, or rules that do not mean what was asked for",
    "A list of restricted ports that is half understood protects half of them",
    "The node's address is read once, private or not",
    "Long names are cut by the kernel, and compared with what was written for ever",
    "A long prefix makes names that the kernel refuses, and the agent reports success",
    "A jump that moves is missing for a moment, and moves without a reason",
    "A CNI's MASQUERADE in front takes the fixed source away",
    "A removed jump, chain or table stays removed for minutes, or until a restart",
    "An agent that cannot program the node reports health",
    "Writers that do not share the xtables lock lose each other's rules",
    "Rules in the wrong flavour of iptables do nothing, and looking for the right one leaves traces",
    "Uninstalling leaves the rules, or moving over loses connections",
    "Every event looks at every rule, by a program for each",
    "A slow kernel blocks the watches",
    "With the last rule the kernel stops tracking, and established connections break",
    "Before the pod is there, the node answers in its place, and UDP flows stay lost",
    "Connections are lost while rules are replaced",
    "A change that failed half is left so",
    "Foreign edits make our next change fail for ever",
    "Changes of others are not noticed, or our own are taken for theirs",
    "Ranges lack the guard and the accept that single ports have",
    "Sets of intervals for single ports make every look-up slow",
    "Counters restart when a neighbour changes",
    "50 000 mappings take quadratic time or too much memory",
    "A changed source list cuts established connections, or leaves a gap",
    "A reply of a pod on another node does not return by the gateway",
    "Packets that conntrack rejects leave with the pod's own address",
];

const EVERY_BACKEND: &str = "nftables, iptables-nft, iptables-legacy";
const IPTABLES: &str = "iptables-nft, iptables-legacy";

struct Test {
    file: String,
    name: String,
    backends: String,
}

/// The test functions of one source file whose names start with ids.
fn tests_of(file: &str, source: &str) -> Vec<(Vec<String>, Test)> {
    let mut found = Vec::new();
    for (at, _) in source.match_indices("fn r") {
        let name: String =
            source[at + 3..].chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
        let is_id = |word: &&str| word.len() == 3 && word.starts_with('r') && word[1..].parse::<u8>().is_ok();
        let ids: Vec<_> = name.split('_').take_while(is_id).map(str::to_uppercase).collect();
        if !ids.is_empty() {
            let backends = backends(file, source, at, &name);
            found.push((ids, Test { file: file.to_owned(), name, backends }));
        }
    }
    found
}

/// Which backends a test runs with: told by the macro that lists it, by what it makes itself, or by its module.
fn backends(file: &str, source: &str, at: usize, name: &str) -> String {
    if let Some(rest) = file.strip_prefix("src/") {
        return match rest.strip_prefix("dataplane/") {
            Some(rest) if rest.starts_with("nftables") => "nftables".to_owned(),
            Some(rest) if rest.starts_with("iptables") => IPTABLES.to_owned(),
            _ => "none".to_owned(),
        };
    }
    let listed = source.rfind(&format!("    {name},")).or_else(|| source.rfind(&format!("!({name})")));
    let macros =
        [("with_every_backend!", EVERY_BACKEND), ("with_iptables!", IPTABLES), ("with_backend!", "nftables")];
    let last = |listed: usize| {
        let before = &source[..listed + 2];
        macros
            .into_iter()
            .filter_map(|(name, backends)| Some((before.rfind(&name[..name.len() - 1])?, backends)))
            .max()
    };
    if let Some((_, backends)) = listed.and_then(last) {
        return backends.to_owned();
    }
    let body = &source[at..source[at..].find("\n}\n").map_or(source.len(), |length| at + length)];
    let used = [
        ("nftables", &["NFTABLES", "Firewall::Nftables", "with_nftables"][..]),
        ("iptables-nft", &["NFT)", "NFT,", "Flavor::Nft", "with_iptables_nft"]),
        ("iptables-legacy", &["LEGACY", "Flavor::Legacy", "with_iptables_legacy"]),
    ];
    let is_named = |words: &[&str]| words.iter().any(|word| body.contains(word));
    let used: Vec<_> = used.into_iter().filter(|(_, words)| is_named(words)).map(|(name, _)| name).collect();
    used.join(", ")
}

fn read(directory: &Path, root: &Path, tests: &mut BTreeMap<String, Vec<Test>>) {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read(&path, root, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = path.strip_prefix(root).unwrap().display().to_string();
            if file == "tests/it/regressions.rs" {
                continue;
            }
            for (ids, test) in tests_of(&file, &fs::read_to_string(&path).unwrap()) {
                for id in ids {
                    let Test { file, name, backends } = &test;
                    let test = Test { file: file.clone(), name: name.clone(), backends: backends.clone() };
                    tests.entry(id).or_default().push(test);
                }
            }
        }
    }
}

#[test]
fn every_known_defect_has_a_test_and_the_documentation_lists_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeMap::new();
    for directory in ["src", "tests/it"] {
        read(&root.join(directory), root, &mut tests);
    }
    let mut page = String::from(
        "# Regressions\n\nDefects of what Pinhole replaces, and of experiments before it was written, and the tests that hold \
         each off. A test carries the ids of its defects in its name; `make generate` writes this page from the sources. \
         Where none of the backends is named, the matter is decided before one is asked.\n\n| id | defect | test | backends |\n|---|---|---|---|\n",
    );
    let mut missing = Vec::new();
    for (number, defect) in (1..).zip(DEFECTS) {
        let id = format!("R{number:02}");
        let Some(tests) = tests.remove(&id) else {
            missing.push(id);
            continue;
        };
        for (index, Test { file, name, backends }) in tests.iter().enumerate() {
            let (id, defect) = if index == 0 { (id.as_str(), defect) } else { ("", "") };
            assert!(!backends.is_empty(), "{file}: no macro runs {name}");
            writeln!(page, "| {id} | {defect} | [`{name}`](../{file}) | {backends} |").unwrap();
        }
    }
    assert!(missing.is_empty(), "no test's name starts with these ids: {missing:?}");
    assert!(tests.is_empty(), "there are no such ids: {:?}", tests.keys());
    golden("docs/regressions.md", &page);
}

#[test]
fn tests_are_found_with_their_ids_and_backends() {
    let source = "fn r01_r02_a(lab: &mut Lab) {\n}\nfn r03_b(lab: &mut Lab) {\n}\nwith_every_backend!(\n    r01_r02_a,\n);\n\
                  with_iptables!(\n    r03_b,\n);\n#[test]\nfn r04_c() {\n    Lab::new(Firewall::Nftables)\n}\nfn read() {}\n";
    let found: Vec<_> = tests_of("tests/it/kernel/x.rs", source)
        .into_iter()
        .map(|(ids, test)| (ids.join(" "), test.backends))
        .collect();
    assert_eq!(
        found,
        [
            ("R01 R02".to_owned(), EVERY_BACKEND.to_owned()),
            ("R03".to_owned(), IPTABLES.to_owned()),
            ("R04".to_owned(), "nftables".to_owned())
        ]
    );
}
