//! Both forms of the annotation: what they mean, and what a wrong one is told.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::admission::effective;
use crate::admission::subject::Subject;
use crate::admission::wanted;
use crate::api::keys;
use crate::model::address::ExternalAddress;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

#[track_caller]
fn granted_mappings(object: Value) -> Vec<String> {
    let decision = Cluster::new().create(object);
    assert_granted(&decision);
    decision.mappings.iter().map(|mapping| format!("{mapping} -> {}", mapping.target())).collect()
}

#[test]
fn the_predecessor_s_annotation_means_what_it_always_meant() {
    let object = nat(r#"{"ifaceAuto":true,"srcPort":25,"dstPort":25,"proto":"tcp"},
           {"ifaceAuto":false,"srcIP":"203.0.113.7","srcPort":587,"dstPort":1587,"proto":"TCP"},
           {"srcPort":5353,"dstPort":53,"proto":"udp"}"#);
    assert_eq!(granted_mappings(object), ["25/tcp -> 25", "203.0.113.7:587/tcp -> 1587", "5353/udp -> 53"]);
}

#[test]
fn every_default_and_extension_of_the_json_form_is_understood() {
    let cases = [
        (r#"{"srcPort":80,"dstPort":8080}"#, "80/tcp -> 8080"),
        (r#"{"srcIP":"2001:db8::1","srcPort":443,"dstPort":8443}"#, "[2001:db8::1]:443/tcp -> 8443"),
        (r#"{"srcIP":"","srcPort":80,"dstPort":80}"#, "80/tcp -> 80"),
        (
            r#"{"ifaceAuto":true,"srcIP":null,"srcPort":80,"dstPort":80,"proto":null,"srcPortEnd":null,"allowedSources":null}"#,
            "80/tcp -> 80",
        ),
        (r#"{"srcPort":7000,"srcPortEnd":7010,"dstPort":9000,"proto":"Udp"}"#, "7000-7010/udp -> 9000-9010"),
        (r#"{"srcPort":7000,"srcPortEnd":7000,"dstPort":9000,"proto":"sctp"}"#, "7000/sctp -> 9000"),
        (r#"{"srcPort":80,"dstPort":80,"allowedSources":["192.0.2.0/24","2001:db8::/32"]}"#, "80/tcp -> 80"),
    ];
    for (entry, expected) in cases {
        assert_eq!(granted_mappings(nat(entry)), [expected], "{entry}");
    }
}

#[test]
fn the_short_form_has_docker_s_grammar() {
    let cases = [
        ("80", "80/tcp -> 80"),
        ("8080:80", "8080/tcp -> 80"),
        ("5353/udp", "5353/udp -> 5353"),
        (" 5353 : 53 / UDP ", "5353/udp -> 53"),
        ("7000-7010", "7000-7010/tcp -> 7000-7010"),
        ("7000-7010:9000", "7000-7010/tcp -> 9000-9010"),
        ("7000-7010:9000-9010/udp", "7000-7010/udp -> 9000-9010"),
        ("203.0.113.7:80", "203.0.113.7:80/tcp -> 80"),
        ("203.0.113.7:80:8080/sctp", "203.0.113.7:80/sctp -> 8080"),
        ("[2001:db8::1]:443:8443", "[2001:db8::1]:443/tcp -> 8443"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443/tcp -> 443"),
    ];
    for (item, expected) in cases {
        assert_eq!(granted_mappings(exposing("web", item)), [expected], "{item}");
    }
    let several = granted_mappings(exposing("web", "80,8080:80,7000-7010,[2001:db8::1]:443:8443"));
    assert_eq!(several.len(), 4);
}

const JSON: &str = "metadata.annotations[pinhole.dev/nat]";
const SHORT: &str = "metadata.annotations[pinhole.dev/expose]";

#[test]
fn a_wrong_entry_is_told_the_field_the_value_the_rule_and_what_to_do() {
    let cases = [
        (r#"{"srcPort":0,"dstPort":80}"#, ".srcPort: 0: is not a port; ports are 1 to 65535"),
        (r#"{"srcPort":70000,"dstPort":80}"#, ".srcPort: 70000: is not a port; ports are 1 to 65535"),
        (r#"{"srcPort":-1,"dstPort":80}"#, ".srcPort: -1: is not a port; ports are 1 to 65535"),
        (
            r#"{"srcPort":"80","dstPort":80}"#,
            ".srcPort: \"80\": is text; write the number without quotes: 80",
        ),
        (
            r#"{"srcPort":"http","dstPort":80}"#,
            ".srcPort: \"http\": is not a port; write a whole number from 1 to 65535, or \"auto\" or \"fixed\" for one that a pool finds",
        ),
        (
            r#"{"srcPort":80.5,"dstPort":80}"#,
            ".srcPort: 80.5: is not a port; write a whole number from 1 to 65535, or \"auto\" or \"fixed\" for one that a pool finds",
        ),
        (r#"{"srcPort":null,"dstPort":80}"#, ".srcPort: null: is null; give a value, or leave the key out"),
        (
            r#"{"srcPort":80}"#,
            ".dstPort: is missing; every entry needs srcPort (outside) and dstPort (the pod's)",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcport":81}"#,
            ".srcport: is not a key of this object; did you mean \"srcPort\"?",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"host":"a"}"#,
            ".host: is not a key of this object; the keys are ifaceAuto, srcIP, srcPort, srcPortEnd, dstPort, proto, allowedSources, terminateExisting",
        ),
        (
            r#"{"srcPort":80,"srcPort":81,"dstPort":80}"#,
            ".srcPort: is given more than once in the same object; keep one",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"proto":"tpc"}"#,
            ".proto: \"tpc\": is not a protocol; write tcp, udp or sctp; did you mean \"tcp\"?",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"proto":"icmp"}"#,
            ".proto: \"icmp\": is not a protocol; write tcp, udp or sctp",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"proto":6}"#,
            ".proto: 6: is not text; write \"tcp\", \"udp\" or \"sctp\"",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"ifaceAuto":"true"}"#,
            ".ifaceAuto: \"true\": is neither true nor false; write one of them without quotes",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"ifaceAuto":false}"#,
            ".ifaceAuto: false: leaves the entry without an address; give srcIP, or set ifaceAuto to true for the node's own",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"ifaceAuto":true,"srcIP":"203.0.113.7"}"#,
            ".ifaceAuto: true: contradicts srcIP; remove srcIP to use the node's own address, or ifaceAuto to use srcIP",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"localhost"}"#,
            ".srcIP: localhost: is not an IP address; write one such as 203.0.113.7 or 2001:db8::7 (names are not looked up)",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"203.0.113.0/24"}"#,
            ".srcIP: 203.0.113.0/24: is not an IP address; write one such as 203.0.113.7 or 2001:db8::7 (leave out the prefix length)",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"::ffff:203.0.113.7"}"#,
            ".srcIP: ::ffff:203.0.113.7: is an IPv4 address written as IPv6; write 203.0.113.7",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"224.0.0.1"}"#,
            ".srcIP: 224.0.0.1: is a multicast address; NAT needs a unicast address",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"127.0.0.1"}"#,
            ".srcIP: 127.0.0.1: is a loopback address, which is reachable only from the same machine; name an external address",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"fe80::1"}"#,
            ".srcIP: fe80::1: is a link-local address, which no router forwards; name an external address",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"0.0.0.0"}"#,
            ".srcIP: 0.0.0.0: is the unspecified address; name one address, or leave it out to use the node's own",
        ),
        (
            r#"{"srcPort":80,"srcPortEnd":70,"dstPort":80}"#,
            ".srcPortEnd: 70: lies below srcPort 80; swap the two",
        ),
        (
            r#"{"srcPort":7000,"srcPortEnd":7010,"dstPort":65530}"#,
            ".dstPort: 65530: the 11 ports of 7000-7010 would pass 65535 at the pod from 65530 on; 65525 is the highest first port",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"allowedSources":[]}"#,
            ".allowedSources: []: would let nobody connect; list networks such as \"192.0.2.0/24\", or leave the key out for everybody",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"allowedSources":["192.0.2.7"]}"#,
            ".allowedSources[0]: 192.0.2.7: is one address, not a network; write 192.0.2.7/32",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"allowedSources":["192.0.2.7/24"]}"#,
            ".allowedSources[0]: 192.0.2.7/24: has bits beyond its prefix length; did you mean 192.0.2.0/24?",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"srcIP":"203.0.113.7","allowedSources":["2001:db8::/32"]}"#,
            ".allowedSources[0]: 2001:db8::/32: is of the other family than srcIP; list IPv4 networks here",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"allowedSources":"a"}"#,
            ".allowedSources: \"a\": is not a list; write [\"192.0.2.0/24\"]",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"terminateExisting":"yes"}"#,
            ".terminateExisting: \"yes\": is neither true nor false; write one of them without quotes",
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"allowedSources":[1]}"#,
            ".allowedSources[0]: 1: is not text; write the network in quotes, as in \"192.0.2.0/24\"",
        ),
    ];
    for (entry, expected) in cases {
        assert_refused(&Cluster::new().create(nat(entry)), &format!("{JSON}.entries[0]{expected}"));
    }
}

#[test]
fn a_wrong_annotation_as_a_whole_is_told_how_to_write_it() {
    let example = r#"{"entries":[{"srcPort":8080,"dstPort":80}]}"#;
    let cases = [
        ("", format!(": is empty; write JSON such as {example}, or remove the annotation")),
        (
            "8080:80",
            format!(
                ": 8080:80: is not JSON; write it as {example}, or use pinhole.dev/expose for the short form"
            ),
        ),
        (
            "{entries}",
            format!(
                ": {{entries}}: is not JSON (key must be a string at line 1 column 2); write it as {example}"
            ),
        ),
        ("[]", format!(": []: is not an object; write {example}")),
        ("{}", format!(".entries: is missing; write {example}")),
        (r#"{"entries":{}}"#, format!(".entries: {{}}: is not a list; write {example}")),
        (
            r#"{"entries":[]}"#,
            format!(".entries: []: asks for nothing; add an entry as in {example}, or remove the annotation"),
        ),
        (r#"{"entries":[80]}"#, format!(".entries[0]: 80: is not an object; write it as in {example}")),
    ];
    for (text, expected) in cases {
        let decision = Cluster::new().create(pod("web", json!({"pinhole.dev/nat": text})));
        assert_refused(&decision, &format!("{JSON}{expected}"));
    }
    let misspelt = r#"{"entry":[{"srcPort":80,"dstPort":80}],"entries":[{"srcPort":80,"dstPort":80}]}"#;
    assert_refused(
        &Cluster::new().create(pod("web", json!({"pinhole.dev/nat": misspelt}))),
        &format!("{JSON}.entry: is not a key of this object; the keys are entries"),
    );
}

#[test]
fn a_wrong_item_of_the_short_form_is_told_what_to_write() {
    let cases = [
        ("80,", "[1]: is an empty item; remove the extra comma"),
        ("http", "[0]: http: is not a port; write a number from 1 to 65535"),
        ("80/tpc", "[0]: 80/tpc: \"tpc\" is not a protocol; write /tcp, /udp or /sctp; did you mean tcp?"),
        ("90-80", "[0]: 90-80: runs backwards; write \"80-90\""),
        (
            "80:80:80:80",
            "[0]: 80:80:80:80: has too many colons; put an IPv6 address in brackets, as in [2001:db8::1]:443",
        ),
        (
            "2001:db8::1:443",
            "[0]: 2001:db8::1:443: has too many colons; put an IPv6 address in brackets, as in [2001:db8::1]:443",
        ),
        (
            "[2001:db8::1]",
            "[0]: [2001:db8::1]: has no ports after its address; write [2001:db8::1]:443 or [2001:db8::1]:443:8443",
        ),
        (
            "node-1:80:80",
            "[0]: node-1:80:80: node-1 is not an IP address; write one such as 203.0.113.7 or 2001:db8::7 (names are not looked up)",
        ),
        (
            "127.0.0.1:80",
            "[0]: 127.0.0.1:80: 127.0.0.1 is a loopback address, which is reachable only from the same machine; name an external address",
        ),
        (
            "7000-7010:80-85",
            "[0]: 7000-7010:80-85: 7000-7010 has 11 ports and 80-85 has 6; both sides must be equally long, so write 7000-7010:80",
        ),
        ("auto", "[0]: auto: leaves open which port of the pod is meant; write auto:9000"),
        (
            "203.0.113.7:auto:80",
            "[0]: 203.0.113.7:auto:80: leaves the port to a pool and names the address 203.0.113.7; leave the address to it too, or name the port",
        ),
        (
            "auto:7000-7010",
            "[0]: auto:7000-7010: \"7000-7010\" is not a port; write a number from 1 to 65535, as in auto:9000",
        ),
        (
            r#"{"entries":[]}"#,
            r#": {"entries":[]}: is JSON; put it under pinhole.dev/nat, or write the short form 8080:80"#,
        ),
    ];
    for (text, expected) in cases {
        assert_refused(&Cluster::new().create(exposing("web", text)), &format!("{SHORT}{expected}"));
    }
}

#[test]
fn all_problems_of_all_entries_come_at_once_and_the_good_entries_still_count() {
    let decision = Cluster::new().create(nat(
        r#"{"srcPort":0,"dstPort":"x"},{"srcPort":80,"dstPort":80},{"srcPort":22,"dstPort":22}"#,
    ));
    assert_refused(
        &decision,
        "3 problems: \
         (1) metadata.annotations[pinhole.dev/nat].entries[0].dstPort: \"x\": is not a port; write a whole number from 1 to 65535; \
         (2) metadata.annotations[pinhole.dev/nat].entries[0].srcPort: 0: is not a port; ports are 1 to 65535; \
         (3) metadata.annotations[pinhole.dev/nat].entries[2].srcPort: 22/tcp: is restricted in this cluster \
         (restricted: 22, 53, 6443); choose another external port",
    );
    assert_eq!(decision.mappings.len(), 2);
}

#[test]
fn a_broken_key_hides_nothing_else_in_its_entry() {
    let field = "metadata.annotations[pinhole.dev/nat].entries[0]";
    let not_a_port = "is not a port; ports are 1 to 65535";
    let cases = [
        (
            r#"{"srcIP":"nowhere","srcPort":99999,"dstPort":80}"#,
            format!(
                "2 problems: (1) {field}.srcIP: nowhere: is not an IP address; write one such as 203.0.113.7 or 2001:db8::7 \
                 (names are not looked up); (2) {field}.srcPort: 99999: {not_a_port}"
            ),
        ),
        (
            r#"{"ifaceAuto":false,"srcPort":80,"srcPortEnd":70,"dstPort":0}"#,
            format!(
                "3 problems: (1) {field}.dstPort: 0: {not_a_port}; \
                 (2) {field}.ifaceAuto: false: leaves the entry without an address; give srcIP, or set ifaceAuto to true \
                 for the node's own; (3) {field}.srcPortEnd: 70: lies below srcPort 80; swap the two"
            ),
        ),
        (
            r#"{"ifaceAuto":false,"srcip":"203.0.113.7","srcPort":80,"dstPort":80}"#,
            format!("{field}.srcip: is not a key of this object; did you mean \"srcIP\"?"),
        ),
        (
            r#"{"srcPort":80,"dstPort":80,"proto":"tpc","allowedSources":[7]}"#,
            format!(
                "2 problems: (1) {field}.allowedSources[0]: 7: is not text; write the network in quotes, as in \"192.0.2.0/24\"; \
                 (2) {field}.proto: \"tpc\": is not a protocol; write tcp, udp or sctp; did you mean \"tcp\"?"
            ),
        ),
    ];
    for (entry, expected) in cases {
        assert_refused(&Cluster::new().create(nat(entry)), &expected);
    }
}

#[test]
fn one_pod_asks_with_one_annotation() {
    let both = pod(
        "web",
        json!({"pinhole.dev/expose": "80", "pinhole.dev/nat": r#"{"entries":[{"srcPort":80,"dstPort":80}]}"#}),
    );
    assert_refused(
        &Cluster::new().create(both),
        "metadata.annotations[pinhole.dev/expose]: pinhole.dev/nat is given too; a pod asks with one annotation, so remove one of the two",
    );
}

#[test]
fn an_entry_that_asks_for_the_same_port_again_is_refused() {
    assert_refused(
        &Cluster::new().create(exposing("web", "80,8080,80:81")),
        "metadata.annotations[pinhole.dev/expose][2]: 80/tcp: is asked for twice by this pod; remove one of the two",
    );
    assert_refused(
        &Cluster::new().create(exposing("web", "7000-7010,7005-7020")),
        "metadata.annotations[pinhole.dev/expose][1]: 7005-7020/tcp: 7005-7010/tcp is asked for by \
         metadata.annotations[pinhole.dev/expose][0] too (7000-7010/tcp); make the ranges disjoint",
    );
}

#[test]
fn r01_tcp_and_udp_on_one_port_are_two_different_ports() {
    let decision = Cluster::new().create(exposing("dns", "5353:53/tcp,5353:53/udp"));
    assert_granted(&decision);
    assert_eq!(decision.mappings.len(), 2);
}

#[test]
fn further_keys_are_read_where_the_operator_names_them() {
    let object = pod("web", json!({"bln.space/podnat": r#"{"entries":[{"srcPort":80,"dstPort":80}]}"#}));
    assert!(Cluster::new().create(object.clone()).mappings.is_empty());
    let policy = Policy { more_annotation_keys: vec![keys::PODNAT.to_owned()], ..Policy::default() };
    assert_eq!(Cluster::with_policy(policy).create(object).mappings.len(), 1);
}

fn any_mapping() -> impl Strategy<Value = Mapping> {
    let address = prop_oneof![
        Just(Address::Node),
        (1u32..0x7f00_0000).prop_filter_map("external", |bits| {
            ExternalAddress::new(std::net::Ipv4Addr::from(bits).into()).ok().map(Address::Fixed)
        }),
        any::<u128>().prop_filter_map("external", |bits| {
            ExternalAddress::new(std::net::Ipv6Addr::from(bits).into()).ok().map(Address::Fixed)
        }),
    ];
    let protocol = prop::sample::select(Protocol::ALL.to_vec());
    (address, protocol, 1u16.., 0u16..20, 1u16..).prop_filter_map(
        "fits",
        |(address, protocol, first, span, target)| {
            let first = Port::new(first)?;
            let external = PortRange::new(first, first.checked_add(span)?)?;
            Mapping::new(address, protocol, external, Port::new(target)?)
        },
    )
}

proptest! {
    #[test]
    fn the_parsers_never_panic_whatever_they_read(text in any::<String>(), json in any::<bool>()) {
        let key = if json { keys::NAT } else { keys::EXPOSE };
        Cluster::new().create(pod("web", json!({key: text})));
    }

    #[test]
    fn a_text_that_is_almost_right_never_panics(text in r#"[\[\]{}:,/"a-z0-9.\-]{0,60}"#, json in any::<bool>()) {
        let key = if json { keys::NAT } else { keys::EXPOSE };
        Cluster::new().create(pod("web", json!({key: text})));
    }

    #[test]
    fn reading_the_normalised_form_gives_the_same_mappings(mapping in any_mapping()) {
        let text = serde_json::to_string(&effective::annotation(std::slice::from_ref(&mapping), &[])).unwrap();
        let asking = slim(pod("web", json!({keys::NAT: text})));
        let wanted = wanted::of(&Subject::of(&asking).unwrap(), &Policy::default()).unwrap();
        prop_assert_eq!(wanted.mappings().cloned().collect::<Vec<_>>(), [mapping]);
    }
}
