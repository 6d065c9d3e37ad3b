//! Puts a benchmark's result into its place in the documentation, and says what it was measured on.

use std::fs;
use std::path::Path;

/// Puts `report` into `docs/benchmarks.md` in place of the one that `target` wrote before.
pub(crate) fn write(target: &str, heading: &str, report: &str) {
    let (begin, end) = (format!("<!-- written by {target} -->"), format!("<!-- end of {target} -->"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|_| "# Benchmarks\n".to_owned());
    let section = format!("{begin}\n{report}{end}");
    let text = match (text.find(&begin), text.find(&end)) {
        (Some(from), Some(to)) => format!("{}{section}{}", &text[..from], &text[to + end.len()..]),
        _ => format!("{text}\n## {heading}\n\n{section}\n"),
    };
    fs::write(&path, text).unwrap();
    println!("written to {}", path.display());
}

/// How many processes waited for a CPU in the last minute, on average.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// The CPUs.
pub(crate) fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!("{count} x {}", model.map_or("unknown CPU", |(_, name)| name.trim()))
}
