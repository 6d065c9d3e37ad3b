//! How the kernel is brought to what is wanted: from any state, past any failure, and back to nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pinhole::dataplane::DataplaneError;
use pinhole::dataplane::cleanup::cleanup;
use pinhole::dataplane::counters::Counters;
use pinhole::dataplane::probe;
use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;
use pinhole::dataplane::settings::FlavorChoice;
use pinhole::dataplane::settings::ReturnPath;
use pinhole::model::holder::ObjectName;
use pinhole::ruleset::desired::desired;
use pinhole::ruleset::endpoint::Endpoint;

use crate::kernel::lab::A;
use crate::kernel::lab::B;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::lab::only_from;
use crate::kernel::lab::to_port;
use crate::kernel::with_backend;
use crate::kernel::with_every_backend;
use crate::kernel::with_iptables;

fn web() -> [Endpoint; 3] {
    [to_port("80/tcp", "a", A, 8080), endpoint("53/udp", "b", B), endpoint("7000-7100/tcp", "a", A)]
}

fn r05_a_restarted_agent_finds_everything_and_changes_nothing(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&web());
    let before = lab.saved();
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    established.ask().unwrap();
    let observed = lab.read();
    assert_eq!(observed.ruleset, desired(&web(), &Lab::facts()).ruleset);
    let applied = lab.apply(&web());
    assert_eq!((applied.transactions.len(), applied.changes.len()), (0, 0));
    assert_eq!(lab.saved(), before);
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
}

fn r08_an_entry_that_the_kernel_refuses_blocks_no_other(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let mut wanted = web().to_vec();
    wanted.push(endpoint("666/tcp", "cursed", B));
    wanted.extend((1000..1020).map(|port| endpoint(&format!("{port}/tcp"), "b", B)));
    let cursed =
        if lab.is_nftables() { "ip PINHOLE.* tcp . 666 |^\t203.* tcp . 666 " } else { "--dport 666 " };
    replace_program(
        lab,
        &format!("grep -Eq -- '{cursed}' \"$input\" && {{ echo 'RULE_APPEND failed' >&2; exit 1; }}"),
    );
    let applied = lab.apply_ruleset(&desired(&wanted, &Lab::facts()).ruleset);
    assert!(applied.failures.is_empty(), "{:?}", applied.failures);
    let refused: Vec<_> =
        applied.refused.iter().map(|refused| (refused.entry.to_string(), &refused.error)).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].0, "203.0.113.7:666/tcp -> 10.244.1.10:666");
    assert!(refused[0].1.contains("RULE_APPEND failed"), "{}", refused[0].1);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    let served = lab.read().ruleset.len();
    assert_eq!(served, 2 * wanted.len() - 1, "all but one family of one entry");
}

fn r13_a_failed_removal_is_made_up_for(lab: &mut Lab) {
    lab.apply(&web());
    let tools = lab.settings.tools.clone();
    replace_program(lab, "grep -q 'ip6 PINHOLE' \"$input\" || { echo 'no memory' >&2; exit 1; }");
    let applied = lab.apply_ruleset(&desired(&[], &Lab::facts()).ruleset);
    assert_eq!(applied.failures.len(), 1, "IPv6 is not kept from being emptied");
    assert!(applied.failures[0].to_string().contains("exit status 1: no memory"), "{}", applied.failures[0]);
    assert_eq!(applied.observed.ruleset.len(), 3, "what could not be removed is told to be there");

    lab.settings.tools = tools;
    lab.read();
    lab.apply(&[]);
    assert!(lab.read().ruleset.is_empty());
    assert!(!lab.saved().contains("10.244.1.9"), "{}", lab.saved());
}

fn r26_what_a_third_party_flushes_is_restored_whole(lab: &mut Lab) {
    let _client = lab.client.serve("client", "[::]:9000");
    lab.apply(&[endpoint("203.0.113.8:80/tcp", "a", A)]);
    let intact = lab.saved();
    for damage in [
        "-t nat -F PINHOLE-SNAT",
        "-t nat -F PINHOLE-DNAT",
        "-t nat -F POSTROUTING",
        "-t nat -F",
        "-F PINHOLE-FWD",
        "-D FORWARD 1",
        "-F",
        "-t nat -I PINHOLE-SNAT 1 -d 10.0.0.0/8 -j MASQUERADE",
        "-t nat -A PINHOLE-T-CB007108-001 -p tcp --dport 82 -j DNAT --to-destination 10.244.1.10:82",
    ] {
        lab.iptables(damage);
        lab.read();
        let repaired = lab.apply(&[endpoint("203.0.113.8:80/tcp", "a", A)]);
        assert_eq!(repaired.transactions.len(), 1, "{damage}");
        assert_eq!(lab.saved(), intact, "{damage}");
    }
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()));
    assert_eq!(
        lab.a.tcp("10.244.1.10:9"),
        Err(std::io::ErrorKind::ConnectionRefused),
        "pods are not rewritten"
    );
}

fn r32_names_of_300_bytes_are_read_back_as_they_were_written(lab: &mut Lab) {
    let mut long = endpoint("80/tcp", "a", A);
    long.pod = ObjectName::new("n".repeat(63), "p".repeat(253));
    lab.apply(std::slice::from_ref(&long));
    let read = lab.read().ruleset;
    assert_eq!(read, desired(std::slice::from_ref(&long), &Lab::facts()).ruleset);
    assert!(lab.apply(&[long]).transactions.is_empty(), "no endless drift");
}

fn r33_the_longest_prefix_gives_names_that_the_kernel_takes(lab: &mut Lab) {
    lab.settings.prefix = "LONGEST8".parse().unwrap();
    lab.apply(&[endpoint("65535/sctp", "a", A), endpoint("65535/tcp", "a", A)]);
    let saved = lab.saved();
    let longest =
        saved.lines().filter_map(|line| line.strip_prefix(":LONGEST8")).map(str::len).max().unwrap();
    assert!(saved.contains(":LONGEST8-T-CB007107-3FF -"), "{saved}");
    assert_eq!(longest + "LONGEST8".len() - " -".len(), 28, "{saved}");
}

fn r37_a_node_that_cannot_be_programmed_says_so(lab: &mut Lab) {
    lab.settings.tools.directory = Some("/nonexistent".into());
    let applied = lab.apply_ruleset(&desired(&web(), &Lab::facts()).ruleset);
    assert_eq!(applied.failures.len(), 2);
    let text = applied.failures[0].to_string();
    let program = if lab.is_nftables() { "/nonexistent/nft" } else { "/nonexistent/iptables-" };
    assert!(text.contains(program) && text.contains("not found; install it"), "{text}");
    assert!(applied.observed.ruleset.is_empty());
}

fn r39_finding_the_flavour_out_has_no_side_effects(lab: &mut Lab) {
    let state = "nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names";
    let probe = |lab: &Lab| {
        let tools = lab.settings.tools.clone();
        lab.on_node(async || probe::flavor(FlavorChoice::Auto, &tools).await).unwrap()
    };
    assert_eq!(probe(lab).flavor, Flavor::Nft, "nothing decides");
    assert_eq!(lab.node.sh(state), "");
    lab.iptables("-A FORWARD -j ACCEPT");
    let before = lab.node.sh(state);
    let found = probe(lab);
    assert_eq!(found.flavor, lab.flavor, "{}", found.reason);
    assert!(found.version.starts_with("iptables v1.8"), "{}", found.version);
    assert_eq!(lab.node.sh(state), before);
    lab.iptables("-t mangle -N KUBE-IPTABLES-HINT");
    assert_eq!(probe(lab).flavor, lab.flavor);
}

fn r40_cleanup_leaves_what_was_there_before(lab: &mut Lab) {
    for family in ["iptables", "ip6tables"] {
        lab.node.sh(&lab.command(family, "-A FORWARD -i eth0 -j ACCEPT"));
        lab.node.sh(&lab.command(family, "-t nat -N PINHOLE-CUSTOM"));
        lab.node.sh(&lab.command(family, "-t nat -A POSTROUTING -o eth0 -j MASQUERADE"));
    }
    // The kernel's built-in chains appear with the first rule and stay.
    let before = lab.saved();
    lab.read();
    lab.apply(&web());
    assert_ne!(lab.saved(), before);
    let settings = lab.settings.clone();
    let removed = lab.on_node(async || cleanup(&settings).await).unwrap();
    assert_eq!(removed.len(), 2, "one backend, two families");
    assert_eq!(lab.saved(), before);
    assert_eq!(lab.on_node(async || cleanup(&settings).await).unwrap(), []);
}

fn r40_what_cannot_be_read_keeps_nothing_else_from_being_removed(lab: &mut Lab) {
    lab.apply(&web());
    replace_program(lab, "true");
    let save = lab.directory().join(format!("programs/iptables-{}-save", lab.flavor));
    fs::remove_file(&save).unwrap();
    std::os::unix::fs::symlink("/bin/false", &save).unwrap();
    let settings = lab.settings.clone();
    let left = lab.on_node(async || cleanup(&settings).await).unwrap_err();
    assert_eq!((left.removed.len(), left.errors.len()), (1, 1), "the other family is removed: {left}");
    assert!(left.to_string().contains("exit status 1: ; the rest is removed"), "{left}");
    lab.settings.tools.directory = None;
    let settings = lab.settings.clone();
    assert_eq!(lab.on_node(async || cleanup(&settings).await).unwrap().len(), 1);
}

fn r46_a_table_that_failed_is_unchanged_and_finished_by_the_next_attempt(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let tools = lab.settings.tools.clone();
    replace_program(lab, "sed -i 's/^-I PREROUTING.*/-I PREROUTING -j NOWHERE/' \"$input\"");
    let applied = lab.apply_ruleset(&desired(&web(), &Lab::facts()).ruleset);
    assert_eq!(applied.failures.len(), 1, "{applied:?}");
    let saved = lab.iptables("-save");
    assert!(
        saved.contains("-j PINHOLE-ACCEPT"),
        "the filter table, which is written first, is as it should be: {saved}"
    );
    assert!(!saved.contains("PINHOLE-DNAT"), "the nat table is as it was: {saved}");

    lab.settings.tools = tools;
    lab.read();
    lab.apply(&web());
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
}

fn r46_a_batch_that_failed_has_changed_nothing(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let tools = lab.settings.tools.clone();
    replace_program(lab, "echo 'add element ip PINHOLE nowhere { 1 }' >> \"$input\"");
    for wanted in [web().to_vec(), Vec::new()] {
        let before = lab.saved();
        let applied = lab.apply_ruleset(&desired(&wanted, &Lab::facts()).ruleset);
        assert!(!applied.failures.is_empty(), "{applied:?}");
        assert_eq!(lab.saved(), before);
        lab.settings.tools = tools.clone();
        lab.read();
        lab.apply(&web());
        assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
        lab.settings.tools.directory = Some(lab.directory().join("programs"));
    }
}

fn r47_edits_since_the_last_look_do_not_keep_a_change_from_being_made(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&web());
    lab.iptables("-t nat -F PINHOLE-T-CB007107");
    lab.iptables("-t nat -F PINHOLE-T-CB007107-001");
    lab.iptables("-t nat -X PINHOLE-T-CB007107-001");
    lab.apply(&[endpoint("53/udp", "b", B)]);
    lab.iptables("-t nat -D PREROUTING 1");
    lab.iptables("-t nat -D OUTPUT 1");
    lab.iptables("-t nat -F PINHOLE-DNAT");
    lab.iptables("-t nat -F PINHOLE-SNAT");
    lab.iptables("-t nat -F PINHOLE-U-CB007107");
    lab.iptables("-t nat -F PINHOLE-U-CB007107-000");
    for chain in ["PINHOLE-DNAT", "PINHOLE-U-CB007107", "PINHOLE-U-CB007107-000"] {
        lab.iptables(&format!("-t nat -X {chain}"));
    }
    lab.apply(&web());
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
}

fn r47_elements_that_others_added_or_removed_do_not_keep_a_change_from_being_made(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&web());
    // What is to be removed is gone.
    lab.node.sh("nft delete element ip PINHOLE m_ports { 203.0.113.7 . tcp . 80 }");
    lab.apply(&[endpoint("53/udp", "b", B)]);
    // What is to be added is there already, and leads elsewhere.
    lab.node.sh("nft add element ip PINHOLE m_ports { 203.0.113.7 . tcp . 80 : 10.244.1.10 . 1 }");
    lab.apply(&web());
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    // The table is gone altogether.
    lab.node.sh("nft delete table ip PINHOLE");
    lab.apply(&[endpoint("53/udp", "b", B)]);
    lab.apply(&web());
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
}

fn r26_whatever_a_third_party_does_to_the_table_is_put_right(lab: &mut Lab) {
    let _client = lab.client.serve("client", "[::]:9000");
    let wanted = [endpoint("203.0.113.8:80/tcp", "a", A), endpoint("203.0.113.8:90/tcp", "later", &[])];
    let backend = lab.backend();
    lab.repair(&backend, &wanted);
    let intact = lab.saved();
    let altered = "h=$(nft -a list chain ip PINHOLE c_forward | sed -n 's/.*\\(comment.*\\) # handle \\(.*\\)/\\2 \\1/p' | head -n 1); \
                   nft replace rule ip PINHOLE c_forward handle ${h%% *} ip saddr 192.0.2.1 drop \"${h#* }\"";
    for damage in [
        "nft flush ruleset",
        "nft delete table ip PINHOLE",
        "nft flush table ip PINHOLE",
        "nft flush chain ip PINHOLE c_ingress",
        "nft insert rule ip PINHOLE c_prerouting accept",
        "nft add rule ip PINHOLE c_forward drop",
        "nft 'chain ip PINHOLE c_forward { policy drop; }'",
        "nft 'table ip PINHOLE { flags dormant; }'",
        altered,
        "nft flush map ip PINHOLE m_ports",
        "nft flush set ip PINHOLE s_addresses",
        "nft flush set ip PINHOLE s_pods",
        "nft add element ip PINHOLE m_ports { 203.0.113.8 . tcp . 82 : 10.244.1.10 . 82 }",
        "nft add element ip PINHOLE s_pods { 10.9.9.1-10.9.9.2 }",
        "nft add element ip PINHOLE m_egress { 10.244.1.10 : 203.0.113.8 }",
        "nft delete element ip PINHOLE s_closed { 203.0.113.8 . tcp . 90 }",
    ] {
        lab.node.sh(damage);
        assert_ne!(lab.saved(), intact, "{damage}");
        let repaired = lab.repair(&backend, &wanted);
        assert!(repaired.transactions.len() <= 2, "{damage}: one per family");
        assert_eq!(lab.saved(), intact, "{damage}");
    }
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()));
}

fn what_a_table_of_another_version_serves_is_known_and_kept_when_it_is_made_anew(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let mut wanted = web().to_vec();
    wanted.push(only_from(to_port("8443/tcp", "a", A, 8080), &["192.0.2.0/24"]));
    lab.apply(&wanted);
    let served = lab.read().ruleset;
    lab.client.tcp("203.0.113.7:80").unwrap();
    lab.settings.return_path = ReturnPath::Routed;
    for damage in ["true", "nft add rule ip PINHOLE c_ingress counter"] {
        lab.node.sh(damage);
        let observed = lab.read();
        assert_eq!(observed.ruleset, served, "{damage}");
        let applied = lab.apply_ruleset(&observed.ruleset);
        assert!(applied.failures.is_empty() && applied.changes.is_empty(), "{applied:?}");
    }
    assert!(lab.read().counters.values().any(|counters| counters.packets == 1), "they are counted on");
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    assert!(lab.apply(&wanted).transactions.is_empty(), "it is as this version makes it");
    assert!(lab.client.tcp("203.0.113.7:8443").is_err(), "and as closed as before");
}

fn r08_a_range_that_nftables_cannot_shift_blocks_no_other(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let mut wanted = web().to_vec();
    wanted.push(to_port("20000-25000/udp", "b", B, 30000));
    wanted.push(to_port("30000-34095/udp", "b", B, 40000));
    let applied = lab.apply_ruleset(&desired(&wanted, &Lab::facts()).ruleset);
    assert!(applied.failures.is_empty(), "{:?}", applied.failures);
    let refused: Vec<_> = applied.refused.iter().map(|refused| refused.entry.to_string()).collect();
    assert_eq!(refused.len(), 2, "one family each: {refused:?}");
    assert!(applied.refused[0].error.contains("4096; use the same ports"), "{}", applied.refused[0].error);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.read().ruleset.len(), 2 * (wanted.len() - 1));
}

fn r51_counters_go_on_when_their_neighbours_change(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&web());
    let count = |lab: &mut Lab| {
        let observed = lab.read();
        let entry = observed.ruleset.entries().next().unwrap().key;
        observed.counters[&entry]
    };
    for _ in 0..3 {
        lab.client.tcp("203.0.113.7:80").unwrap();
    }
    assert_eq!(count(lab).packets, 3);
    // Connections that come between the last look and a change count too, whether single rules are changed or, when few are
    // left, the whole chain.
    let mut more = web().to_vec();
    more.extend((90..120).map(|port| endpoint(&format!("{port}/tcp"), "b", B)));
    for (wanted, packets, is_rewritten) in [(&more[..], 4, false), (&web()[..], 5, true)] {
        lab.client.tcp("203.0.113.7:80").unwrap();
        let applied = lab.apply(wanted);
        if !lab.is_nftables() {
            let text = &applied.transactions[0].input;
            assert_eq!(text.contains(":PINHOLE-T-CB007107-001 "), is_rewritten, "{text}");
        }
        let Counters { packets: counted, bytes } = count(lab);
        assert_eq!((counted, bytes), (packets, 60 * packets));
    }
}

fn r41_one_change_rewrites_one_chain_or_element_and_no_change_starts_no_program(lab: &mut Lab) {
    let many: Vec<_> = (1000..1500).map(|port| endpoint(&format!("{port}/tcp"), "a", &A[..1])).collect();
    lab.apply(&many);
    lab.settings.tools.directory = Some("/nonexistent".into());
    assert!(lab.apply(&many).transactions.is_empty(), "there is nothing to start");
    if !lab.is_nftables() {
        lab.settings.tools.directory = None;
    }
    let applied = lab.apply(&many[1..]);
    if lab.is_nftables() {
        let elements: Vec<_> = applied.transactions.iter().map(|made| (made.chains, made.elements)).collect();
        assert_eq!(elements, [(0, 1)], "and no program for a change either");
        return;
    }
    let chains: Vec<_> = applied.transactions.iter().map(|transaction| transaction.chains).collect();
    assert_eq!(chains, [1]);
    assert!(applied.transactions[0].input.lines().count() < 70, "{}", applied.transactions[0].input);
}

/// Puts a script in front of the program that changes IPv4 rules; `$input` names a file with what it is given.
fn replace_program(lab: &mut Lab, script: &str) {
    let directory = lab.directory().join("programs");
    fs::create_dir(&directory).unwrap();
    let mut names: Vec<String> = ["iptables", "ip6tables"]
        .into_iter()
        .flat_map(|program| {
            ["", "-save", "-restore"].map(|suffix| format!("{program}-{}{suffix}", lab.flavor))
        })
        .collect();
    names.push("nft".into());
    for name in names {
        let real = lab.node.sh(&format!("command -v {name}"));
        std::os::unix::fs::symlink(real.trim(), directory.join(name)).unwrap();
    }
    let name = if lab.is_nftables() { "nft".to_owned() } else { format!("iptables-{}-restore", lab.flavor) };
    let path = directory.join(name);
    let real = fs::read_link(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let script = format!(
        "#!/bin/sh\ninput=$(mktemp -p '{}')\ncat > \"$input\"\n{script}\nexec {} \"$@\" < \"$input\"\n",
        directory.display(),
        real.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    lab.settings.tools.directory = Some(directory);
    lab.by_program = true;
}

with_every_backend!(
    r05_a_restarted_agent_finds_everything_and_changes_nothing,
    r08_an_entry_that_the_kernel_refuses_blocks_no_other,
    r13_a_failed_removal_is_made_up_for,
    r32_names_of_300_bytes_are_read_back_as_they_were_written,
    r37_a_node_that_cannot_be_programmed_says_so,
    r40_cleanup_leaves_what_was_there_before,
    r41_one_change_rewrites_one_chain_or_element_and_no_change_starts_no_program,
    r51_counters_go_on_when_their_neighbours_change,
);

/// What is about chains and jumps.
mod iptables {
    use super::*;

    with_iptables!(
        r26_what_a_third_party_flushes_is_restored_whole,
        r33_the_longest_prefix_gives_names_that_the_kernel_takes,
        r39_finding_the_flavour_out_has_no_side_effects,
        r40_what_cannot_be_read_keeps_nothing_else_from_being_removed,
        r46_a_table_that_failed_is_unchanged_and_finished_by_the_next_attempt,
        r47_edits_since_the_last_look_do_not_keep_a_change_from_being_made,
    );
}

/// What is about sets and maps.
mod elements {
    use super::*;

    with_backend!(
        nftables,
        pinhole::dataplane::settings::Firewall::Nftables,
        r08_a_range_that_nftables_cannot_shift_blocks_no_other,
        r26_whatever_a_third_party_does_to_the_table_is_put_right,
        what_a_table_of_another_version_serves_is_known_and_kept_when_it_is_made_anew,
        r46_a_batch_that_failed_has_changed_nothing,
        r47_elements_that_others_added_or_removed_do_not_keep_a_change_from_being_made,
    );
}

/// A lock that another program holds, which only the legacy flavour has.
#[test]
fn r38_a_held_lock_is_waited_for_and_then_told_as_busy() {
    let mut lab = Lab::new(Firewall::Iptables(Flavor::Legacy));
    let _a = lab.a.serve("a", "[::]:8080");
    let lock = lab.settings.tools.lock_file.clone().unwrap();
    let file = fs::File::create(&lock).unwrap();
    file.lock().unwrap();
    let applied = lab.apply_ruleset(&desired(&web(), &Lab::facts()).ruleset);
    assert!(applied.failures.iter().all(|failure| failure.error.is_busy()), "{:?}", applied.failures);
    assert!(matches!(applied.failures[0].error, DataplaneError::Busy(_)));

    let (started, unlocking) = (std::time::Instant::now(), std::time::Duration::from_secs(1));
    let applied = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(unlocking);
            drop(file);
        });
        lab.apply(&web())
    });
    assert!(unlocking <= started.elapsed() && !applied.transactions.is_empty());
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
}

/// Programs that share the lock file lose no update to each other.
#[test]
fn r38_writers_that_share_the_lock_lose_no_update() {
    let mut lab = Lab::new(Firewall::Iptables(Flavor::Legacy));
    lab.apply(&[]);
    let other = lab.command("iptables", "-t nat -A OTHER -s 192.0.2.$i -j RETURN");
    lab.iptables("-t nat -N OTHER");
    let node = std::mem::replace(&mut lab.node, crate::kernel::namespace::Namespace::new());
    let script = format!("for i in $(seq 1 40); do {other}; done");
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| node.sh(&script));
        for port in 1..41 {
            let applied = node.run(|| {
                let backend = lab.backend();
                let wanted =
                    desired(&[endpoint(&format!("{port}/tcp"), "a", &A[..1])], &Lab::facts()).ruleset;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    use pinhole::dataplane::Dataplane;
                    let observed = backend.read().await.unwrap();
                    backend.apply(&wanted, observed).await
                })
            });
            assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        }
        writing.join().unwrap();
    });
    lab.node = node;
    let nat = lab.iptables("-t nat -S");
    assert_eq!(nat.matches("-A OTHER").count(), 40, "{nat}");
    assert!(nat.contains("--dport 40 "), "{nat}");
}
