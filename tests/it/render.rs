//! `pinhole render`: the rules of a node for manifests.

use crate::golden::golden;
use crate::program::Program;

#[test]
fn the_rules_of_the_examples_are_those_written_down() {
    let output = Program::new(&[
        "render",
        "--node-ip=203.0.113.7,2001:db8::7",
        "examples/mail-server.yaml",
        "examples/game-server.yaml",
    ])
    .run();
    assert_eq!(output.code, 0, "{}", output.stderr);
    golden("tests/golden/render-examples.txt", &output.stdout);
    assert_eq!(
        output.stderr,
        "note: Pod default/mail has no address yet; 10.244.0.10 and fd00:10:244::10 stand in\n\
         note: StatefulSet default/game has no address yet; 10.244.0.11 and fd00:10:244::11 stand in\n"
    );
}

#[test]
fn the_rules_of_the_examples_for_nftables_are_those_written_down() {
    let output = Program::new(&[
        "render",
        "--firewall=nftables",
        "--node-ip=203.0.113.7,2001:db8::7",
        "examples/mail-server.yaml",
        "examples/game-server.yaml",
    ])
    .run();
    assert_eq!(output.code, 0, "{}", output.stderr);
    golden("tests/golden/render-examples-nftables.txt", &output.stdout);
}

#[test]
fn a_pod_s_own_address_is_used_where_the_manifest_has_it() {
    let pod = "kind: Pod\nmetadata: {name: a, annotations: {pinhole.dev/expose: '80:8080'}}\n\
               status: {podIPs: [{ip: 10.9.8.7}]}\n";
    let output = Program::new(&["render", "--node-ip=203.0.113.7", "-"]).input(pod).run();
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert!(output.stdout.contains("-j DNAT --to-destination 10.9.8.7:8080\n"), "{}", output.stdout);
    assert!(!output.stdout.contains("ip6tables-restore"), "{}", output.stdout);
}

#[test]
fn a_port_by_ordinal_leads_to_the_pod_with_that_ordinal() {
    let output = Program::new(&[
        "render",
        "--node-ip=203.0.113.7",
        "--include-net=203.0.113.30/32",
        "examples/port-by-ordinal.yaml",
    ])
    .run();
    assert_eq!(output.code, 0, "{}", output.stderr);
    for ordinal in 0..3 {
        let note =
            format!("note: Pod default/world-{ordinal} has no address yet; 10.244.0.1{ordinal} stands in\n");
        assert!(output.stderr.contains(&note), "{}", output.stderr);
        let forwarded = output.stdout.lines().any(|line| {
            line.contains(&format!("--dport 3000{ordinal} "))
                && line.ends_with(&format!("-j DNAT --to-destination 10.244.0.1{ordinal}:25565"))
        });
        assert!(forwarded, "{}", output.stdout);
    }
}

#[test]
fn what_is_refused_is_told_and_gets_no_rules() {
    let output = Program::new(&[
        "render",
        "--node-ip=203.0.113.7",
        "examples/web.yaml",
        "examples/refused/restricted-port.yaml",
        "examples/deployment.yaml",
    ])
    .run();
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("22/tcp: is restricted in this cluster"), "{}", output.stderr);
    assert!(output.stderr.contains("203.0.113.25 is not an address of this node"), "{}", output.stderr);
    assert!(
        output.stdout.contains("--dport 80 ") && !output.stdout.contains("--dport 22 "),
        "{}",
        output.stdout
    );
}

#[test]
fn a_node_has_one_own_address_of_each_family() {
    for (addresses, problem) in [
        ("203.0.113.7,203.0.113.8", "203.0.113.8 is a second IPv4 address"),
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
        ("node-1", "\"node-1\" is not an IP address"),
    ] {
        let output = Program::new(&["render", "--node-ip", addresses, "examples/web.yaml"]).run();
        assert_eq!(output.code, 2);
        assert!(output.stderr.contains("--node-ip") && output.stderr.contains(problem), "{}", output.stderr);
    }
}
