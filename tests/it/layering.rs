//! Reads the sources and fails where they break the order of the modules that ARCHITECTURE.md draws.
//!
//! It is a guard rail over text, not a proof. Every rule is shown to fail by a planted violation below.

use std::fmt;
use std::fs;
use std::path::Path;

/// The modules in reading order: what each may use beside itself, and whether it is pure.
const MODULES: &[Module] = &[
    Module { name: "model", may_use: &[], is_pure: true },
    Module { name: "api", may_use: &["model"], is_pure: true },
    Module { name: "allocation", may_use: &["model", "api"], is_pure: true },
    Module { name: "admission", may_use: &["model", "api", "allocation"], is_pure: true },
    Module { name: "certificates", may_use: &[], is_pure: true },
    Module { name: "removal", may_use: &["model"], is_pure: true },
    Module { name: "ruleset", may_use: &["model", "api"], is_pure: true },
    Module { name: "dataplane", may_use: &["model", "ruleset"], is_pure: false },
    Module {
        name: "cluster",
        may_use: &["model", "api", "allocation", "admission", "certificates", "removal"],
        is_pure: false,
    },
    Module { name: "telemetry", may_use: &[], is_pure: false },
    Module { name: "shutdown", may_use: &[], is_pure: false },
    Module {
        name: "webhook",
        may_use: &[
            "model",
            "api",
            "allocation",
            "admission",
            "certificates",
            "cluster",
            "telemetry",
            "shutdown",
        ],
        is_pure: false,
    },
    Module {
        name: "controller",
        may_use: &["model", "api", "allocation", "admission", "cluster", "telemetry", "shutdown"],
        is_pure: false,
    },
    Module {
        name: "agent",
        may_use: &["model", "api", "admission", "ruleset", "dataplane", "cluster", "telemetry", "shutdown"],
        is_pure: false,
    },
    Module { name: "uninstall", may_use: &["removal", "cluster"], is_pure: false },
    Module {
        name: "cli",
        may_use: &[
            "model",
            "api",
            "allocation",
            "admission",
            "certificates",
            "removal",
            "ruleset",
            "dataplane",
            "cluster",
            "telemetry",
            "shutdown",
            "webhook",
            "controller",
            "agent",
            "uninstall",
        ],
        is_pure: false,
    },
];

struct Module {
    name: &'static str,
    may_use: &'static [&'static str],
    is_pure: bool,
}

/// What no pure module may name: time, randomness, files, sockets, processes, logs and waiting are arguments there.
const IMPURE: &[&str] = &[
    "tokio::",
    "tracing::",
    "kube::",
    "axum::",
    "hyper::",
    "std::env",
    "std::fs",
    "std::io",
    "std::process",
    "std::thread",
    "std::os::",
    "TcpStream",
    "UdpSocket",
    "Instant::now",
    "SystemTime",
    "async ",
    ".await",
    "println!",
    "eprintln!",
];

/// Names that belong to one place; everything else asks that place.
const RESERVED: &[Reserved] = &[
    Reserved {
        name: "Command::new",
        only_in: &["src/dataplane/command.rs"],
        reason: "dataplane::command starts every process",
    },
    Reserved {
        name: "std::env",
        only_in: &["src/cli.rs", "src/cli/"],
        reason: "only cli reads the environment",
    },
    Reserved {
        name: "env::var",
        only_in: &["src/cli.rs", "src/cli/"],
        reason: "only cli reads the environment",
    },
    Reserved {
        name: "env::var_os",
        only_in: &["src/cli.rs", "src/cli/"],
        reason: "only cli reads the environment",
    },
];

/// What a pure module may name of a crate that it may not otherwise: derive macros and the trait of what they derive.
const SHAPES: &[&str] =
    &["use kube::CustomResource;", "use kube::CustomResourceExt;", "use kube::KubeSchema;"];

struct Reserved {
    name: &'static str,
    only_in: &'static [&'static str],
    reason: &'static str,
}

/// The crates that the dataplane may not name, so that it never knows Kubernetes.
const KUBERNETES: &[&str] = &["kube::", "k8s_openapi::"];

struct Source {
    path: String,
    text: String,
}

#[derive(Debug, PartialEq)]
struct Problem {
    path: String,
    line: usize,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// A line without its comment; empty where it is all comment.
fn code(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.split_once(" // ").map_or(line, |(code, _)| code)
}

/// Whether `name` stands in `code` as a name of its own, not as a part of a longer one.
fn names(code: &str, name: &str) -> bool {
    let is_of_a_name = |character: char| character.is_alphanumeric() || character == '_';
    let is_whole = |at: usize| {
        let before = code[..at].chars().next_back().is_some_and(is_of_a_name);
        let after = code[at + name.len()..].chars().next().is_some_and(is_of_a_name);
        let is_part = name.starts_with(is_of_a_name) && before || name.ends_with(is_of_a_name) && after;
        !is_part
    };
    code.match_indices(name).any(|(at, _)| is_whole(at))
}

/// Every module that the code names by its full path.
fn modules_named(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices("crate::").map(|(at, path)| {
        let rest = &code[at + path.len()..];
        rest.split(|character: char| !(character.is_alphanumeric() || character == '_')).next().unwrap_or("")
    })
}

fn problems(sources: &[Source]) -> Vec<Problem> {
    sources.iter().flat_map(problems_of).collect()
}

fn problems_of(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut report = |line: usize, text: String| {
        problems.push(Problem { path: source.path.clone(), line, text });
    };
    if !source.text.starts_with("//! ") {
        report(1, "opens without a `//!` paragraph that says what the file is for".to_owned());
    }
    let inside = source.path.strip_prefix("src/").unwrap_or(&source.path);
    let name = inside.split(['/', '.']).next().unwrap_or_default();
    let is_root = ["lib.rs", "main.rs"].contains(&inside);
    let module = MODULES.iter().find(|module| module.name == name);
    if module.is_none() && !is_root {
        report(1, format!("the module {name} is not in the table of tests/it/layering.rs; give it a place"));
        return problems;
    }
    let is_test_file = source.path.ends_with("/tests.rs") || source.path.contains("/tests/");
    let mut in_tests = is_test_file;
    let mut previous = "";
    for (index, line) in source.text.lines().enumerate() {
        let number = index + 1;
        in_tests = in_tests || (previous.trim() == "#[cfg(test)]" && line.starts_with("mod "));
        previous = line;
        let code = code(line);
        if is_root && code.trim_start().starts_with("pub use") {
            report(number, "the root re-exports nothing; callers name the full path".to_owned());
        }
        if code.contains("use crate::") && code.contains('{') {
            report(
                number,
                "one full `use crate::…;` path per line, so that this test can read it".to_owned(),
            );
        }
        if !in_tests && names(code, "super::") {
            report(number, "`super::` outside a test module; name the full path from `crate::`".to_owned());
        }
        if let Some(module) = module {
            for used in modules_named(code).filter(|used| !used.is_empty() && *used != module.name) {
                if !module.may_use.contains(&used) {
                    report(number, format!("{} may not use {used}", module.name));
                }
            }
        }
        if in_tests {
            continue;
        }
        if module.is_some_and(|module| module.is_pure) && !SHAPES.contains(&code.trim()) {
            for impure in IMPURE.iter().filter(|impure| names(code, impure)) {
                report(number, format!("{name} is pure and may not name {}", impure.trim()));
            }
        }
        if name == "dataplane" && KUBERNETES.iter().any(|crate_name| names(code, crate_name)) {
            report(number, "the dataplane does not know Kubernetes".to_owned());
        }
        for reserved in RESERVED.iter().filter(|reserved| names(code, reserved.name)) {
            if !reserved.only_in.iter().any(|place| source.path.starts_with(place)) {
                report(number, format!("{} is named here, but {}", reserved.name, reserved.reason));
            }
        }
    }
    problems
}

fn read_sources(directory: &Path, sources: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let text = fs::read_to_string(&path).unwrap();
            sources.push(Source { path: path.strip_prefix(root).unwrap().display().to_string(), text });
        }
    }
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let mut sources = Vec::new();
    read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the sources were not found");
    let problems = problems(&sources);
    let listed: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert!(listed.is_empty(), "{} problems:\n{}", listed.len(), listed.join("\n"));
}

#[test]
fn the_table_itself_only_points_upwards() {
    for (position, module) in MODULES.iter().enumerate() {
        for used in module.may_use {
            let above = MODULES[..position].iter().any(|above| above.name == *used);
            assert!(above, "{} stands above {used} and may not use it", module.name);
        }
    }
    for process in ["webhook", "agent", "uninstall"] {
        let importers = MODULES.iter().filter(|module| module.may_use.contains(&process));
        assert_eq!(importers.map(|module| module.name).collect::<Vec<_>>(), ["cli"], "{process}");
    }
}

#[test]
fn every_rule_can_fail() {
    // Where, the planted line, and what the checker must say about it.
    let cases = [
        ("src/model/port.rs", "use crate::admission::decide;", "model may not use admission"),
        ("src/webhook.rs", "use crate::agent::sync;", "webhook may not use agent"),
        ("src/controller.rs", "use crate::agent::Agent;", "controller may not use agent"),
        ("src/agent.rs", "let reply = crate::webhook::review::answer();", "agent may not use webhook"),
        ("src/cli/check.rs", "use crate::Everything;", "cli may not use Everything"),
        ("src/api.rs", "use crate::{model::port::Port, admission};", "one full `use crate::…;` path"),
        ("src/api.rs", "use crate::model::port::{Port, PortRange};", "one full `use crate::…;` path"),
        ("src/model/port.rs", "use super::address;", "`super::` outside a test module"),
        ("src/lib.rs", "pub use crate::model::port::Port;", "the root re-exports nothing"),
        ("src/helpers.rs", "fn help() {}", "the module helpers is not in the table"),
        ("src/ruleset.rs", "let text = std::fs::read_to_string(path);", "ruleset is pure"),
        ("src/admission.rs", "let now = Instant::now();", "admission is pure"),
        ("src/admission/index.rs", "pub async fn apply() {}", "admission is pure"),
        ("src/api/object.rs", "use kube::Resource;", "api is pure"),
        ("src/dataplane/iptables.rs", "use kube::Client;", "the dataplane does not know Kubernetes"),
        (
            "src/dataplane/iptables.rs",
            "Command::new(\"iptables\")",
            "dataplane::command starts every process",
        ),
        (
            "src/cli/demo.rs",
            "tokio::process::Command::new(\"ip\")",
            "dataplane::command starts every process",
        ),
        ("src/agent.rs", "let name = std::env::var(\"NODE_NAME\");", "only cli reads the environment"),
        ("src/agent.rs", "let name = env::var_os(\"NODE_NAME\");", "only cli reads the environment"),
        ("src/admission.rs", "let answer = question.await?;", "admission is pure"),
    ];
    for (path, line, expected) in cases {
        let source = Source { path: path.to_owned(), text: format!("//! Planted.\n\n{line}\n") };
        let found = problems(&[source]);
        assert!(
            found.iter().any(|problem| problem.text.contains(expected)),
            "{path}: {line}\nexpected: {expected}\nfound: {found:?}"
        );
    }
    let bare = Source { path: "src/model.rs".to_owned(), text: "pub mod port;\n".to_owned() };
    assert!(problems(&[bare])[0].text.contains("opens without a `//!`"));
}

#[test]
fn what_is_allowed_is_not_reported() {
    let cases = [
        ("src/dataplane/command.rs", "let child = Command::new(program);"),
        ("src/cli/terminal.rs", "let refused = std::env::var_os(\"NO_COLOR\");"),
        ("src/admission.rs", "use crate::admission::index::Index;"),
        ("src/admission.rs", "// The caller reads std::fs and calls crate::agent."),
        ("src/api/object.rs", "let mykube::Thing = thing;"),
        ("src/api/crd/pinhole.rs", "use kube::CustomResource;"),
        ("src/admission.rs", "let left = index.awaited();"),
        ("src/admission/tests/rules.rs", "use super::decide;"),
        ("src/model/port.rs", "#[cfg(test)]\nmod tests {\n    use super::*;\n}"),
    ];
    for (path, line) in cases {
        let source = Source { path: path.to_owned(), text: format!("//! Allowed.\n\n{line}\n") };
        assert_eq!(problems(&[source]), [], "{path}: {line}");
    }
}
