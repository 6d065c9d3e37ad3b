//! `pinhole check`: every kind of manifest, with the texts that its users read.

use std::fs;
use std::path::Path;

use crate::golden::golden;
use crate::program::Program;

fn examples(directory: &str) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let names =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

#[test]
fn every_example_is_granted_also_beside_all_others() {
    let files: Vec<_> = examples("examples").into_iter().map(|name| format!("examples/{name}")).collect();
    let arguments: Vec<_> = std::iter::once("check").chain(files.iter().map(String::as_str)).collect();
    let output = Program::new(&arguments).run();
    assert_eq!(output.code, 0, "{}", output.stdout);
    let expected =
        format!("Checked {0} objects in {0} files: {0} ask for external ports, granted.\n", files.len());
    assert_eq!(output.stdout, expected);
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/README.md")).unwrap();
    assert!(readme.contains(&expected), "examples/README.md shows another outcome");
    for name in examples("examples").iter().chain(&examples("examples/refused")) {
        assert!(readme.contains(&format!("{name})")), "examples/README.md does not name {name}");
    }
}

#[test]
fn every_refused_example_is_refused_by_itself() {
    for name in examples("examples/refused") {
        let output = Program::new(&["check", &format!("examples/refused/{name}")]).run();
        assert_eq!(output.code, 1, "{name}: {}", output.stdout);
    }
}

#[test]
fn refusals_read_as_written_down() {
    let output = Program::new(&["check", "examples/refused"]).run();
    assert_eq!(output.code, 1);
    golden("tests/golden/check-refused.txt", &output.stdout);
}

#[test]
fn pinholes_are_judged_by_the_same_rules() {
    let output = Program::new(&["check", "tests/data/check/pinholes.yaml"]).run();
    assert_eq!(output.code, 2, "{}", output.stdout);
    golden("tests/golden/check-pinholes.txt", &output.stdout);
}

#[test]
fn the_annotations_of_ack_are_judged_where_they_are_read() {
    let example = Program::new(&["check", "--compat=ack", "examples/claims/pod-dnat.yaml"]).run();
    assert_eq!(example.stdout, "Checked 3 objects in 1 file: 1 asks for external ports, granted.\n");
    let output = Program::new(&["check", "--compat=ack", "tests/data/check/pod-dnat.yaml"]).run();
    assert_eq!(output.code, 1, "{}", output.stdout);
    golden("tests/golden/check-pod-dnat.txt", &output.stdout);
}

#[test]
fn where_pools_are_given_they_have_to_grant_what_is_asked_for() {
    let manifests = "tests/data/check/granted-by-pools.yaml";
    let without = Program::new(&["check", manifests]).run();
    assert_eq!(without.code, 0, "no pools, no refusal for the lack of one: {}", without.stdout);
    let output = Program::new(&["check", "--pool=tests/data/check/pools.yaml", manifests]).run();
    assert_eq!(output.code, 1, "{}", output.stdout);
    golden("tests/golden/check-pools.txt", &output.stdout);
    let example = "examples/claims/pod-dnat.yaml";
    let output = Program::new(&["check", "--compat=ack", "--pool", example, example]).run();
    assert_eq!(output.stdout, "Checked 3 objects in 1 file: 1 asks for external ports, granted.\n");
}

#[test]
fn a_pool_that_cannot_be_read_is_named_and_nothing_counts_as_granted() {
    let broken = "tests/data/check/broken-pool.yaml";
    let output = Program::new(&["check", "--pool", broken, "examples/web.yaml"]).run();
    assert_eq!(output.code, 2, "{}", output.stdout);
    golden("tests/golden/check-broken-pool.txt", &output.stdout);
    let output = Program::new(&["check", "--pool=examples/web.yaml", "examples/web.yaml"]).run();
    assert_eq!(output.code, 2, "{}", output.stdout);
    assert!(output.stdout.contains("examples/web.yaml: --pool names no NatPool"), "{}", output.stdout);
}

#[test]
fn every_workload_is_judged_and_nothing_hides_anything_else() {
    let output = Program::new(&["check", "tests/data/check/workloads.yaml"]).run();
    assert_eq!(output.code, 2, "{}", output.stdout);
    golden("tests/golden/check-workloads.txt", &output.stdout);
    let output = Program::new(&["check", "-o", "json", "tests/data/check/workloads.yaml"]).run();
    assert_eq!(output.code, 2);
    golden("tests/golden/check-workloads.json", &output.stdout);
}

#[test]
fn standard_input_takes_json_and_the_default_namespace() {
    let pod = r#"{"kind":"Pod","metadata":{"name":"a","annotations":{"pinhole.dev/expose":"22"}}}"#;
    let output = Program::new(&["check", "-n", "mail", "-"]).input(pod).run();
    assert_eq!(output.code, 1);
    assert!(output.stdout.starts_with("<stdin>:1: Pod mail/a: metadata.annotations"), "{}", output.stdout);
}

#[test]
fn the_operator_s_flags_decide() {
    let ports =
        Program::new(&["check", "--restricted-ports=", "examples/refused/restricted-port.yaml"]).run();
    assert_eq!(ports.code, 0, "{}", ports.stdout);
    let namespace = Program::new(&["check", "--allowed-namespaces=mail", "examples/web.yaml"]).run();
    assert_eq!(namespace.code, 1);
    assert!(
        namespace.stdout.contains("metadata.namespace: default: may not publish ports"),
        "{}",
        namespace.stdout
    );
    let half = Program::new(&["check", "--restricted-ports=22,,53", "examples/web.yaml"]).run();
    assert_eq!(half.code, 2);
    assert!(half.stderr.contains("--restricted-ports"), "{}", half.stderr);
}

#[test]
fn input_that_is_not_there_is_no_yes() {
    let output = Program::new(&["check", "examples/none.yaml", "examples/web.yaml"]).run();
    assert_eq!(output.code, 2);
    assert_eq!(
        output.stdout,
        "examples/none.yaml: cannot be read: No such file or directory (os error 2)\n\
         Checked 1 object in 1 file: 1 asks for external ports, granted; 1 could not be read.\n"
    );
}
