//! `pinhole demo`: it is a test that can be watched, and the README shows what it prints.
//!
//! It needs network namespaces, iproute2 and iptables, as the kernel tests do.

use std::fs;

use crate::golden::golden;
use crate::program::Output;
use crate::program::Program;

/// Whatever the machine's speed was.
fn without_time(text: &str) -> String {
    let (head, tail) = text.rsplit_once(", in ").unwrap_or_else(|| panic!("no time in {text}"));
    let (seconds, rest) = tail.split_once(" s.").unwrap();
    assert!(seconds.parse::<f64>().unwrap() < 20.0, "the demo took {seconds} s");
    format!("{head}, in 1.5 s.{rest}")
}

/// The README with this text in the place of its transcript.
fn readme_with(transcript: &str) -> String {
    const BEGIN: &str = "<!-- what `make demo` prints -->\n```text\n";
    const END: &str = "```\n<!-- end -->";
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (head, rest) = readme.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    format!("{head}{BEGIN}{transcript}{END}{tail}")
}

fn succeeded(output: &Output) {
    assert_eq!(output.code, 0, "{}\n{}", output.stdout, output.stderr);
    assert_eq!(output.stderr, "");
}

#[test]
fn everything_happens_as_the_transcript_in_the_readme_tells() {
    let output = Program::new(&["demo"]).run();
    succeeded(&output);
    golden("README.md", &readme_with(&without_time(&output.stdout)));
}

#[test]
fn a_user_without_rights_sees_the_same_and_the_host_stays_as_it_was() {
    let host = || {
        let devices = fs::read_to_string("/proc/self/net/dev").unwrap();
        let names: Vec<_> = devices
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.to_owned())
            .collect();
        (names, fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap())
    };
    let before = host();
    // Without this capability root makes no namespaces, as any other user.
    let output = Program::under(&["setpriv", "--bounding-set=-sys_admin"], &["demo"]).run();
    succeeded(&output);
    golden("README.md", &readme_with(&without_time(&output.stdout)));
    assert_eq!(host(), before);
}

#[test]
fn where_no_namespace_is_granted_the_rest_is_shown_and_the_demo_says_what_is_missing() {
    let no_more = "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$0\" \"$@\"";
    let output =
        Program::under(&["unshare", "--user", "--map-root-user", "sh", "-c", no_more], &["demo"]).run();
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stdout.contains("The Pod \"bastion\" is invalid: "), "{}", output.stdout);
    assert!(!output.stdout.contains("3. Packets"), "{}", output.stdout);
    for expected in ["cannot be shown here", "Run the demo as root", "user namespaces"] {
        assert!(output.stderr.contains(expected), "{}", output.stderr);
    }
}

#[test]
fn missing_programs_are_named_with_their_packages() {
    let output = Program::new(&["demo"]).env("PATH", "/nonexistent").run();
    assert_eq!(output.code, 1, "{}", output.stdout);
    assert!(output.stderr.contains("apt-get install iproute2 iptables"), "{}", output.stderr);
}
