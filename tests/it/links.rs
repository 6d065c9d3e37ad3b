//! Links between the repository's pages lead somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// The Markdown files at the root, in `docs` and beside the code they describe.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for directory in ["", "docs", "examples", "e2e", "certs", "chart", "webhook-config"] {
        let Ok(entries) = fs::read_dir(root.join(directory)) else { continue };
        let files = entries.map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

/// The targets of `[text](target)` outside code blocks.
fn links(page: &str) -> Vec<&str> {
    let mut links = Vec::new();
    for text in page.split("```").step_by(2) {
        links.extend(
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target),
        );
    }
    links
}

/// The names by which a page's headings are linked, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings =
        page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let letters = |heading: &str| {
        heading
            .to_lowercase()
            .replace(' ', "-")
            .replace(|letter: char| !letter.is_alphanumeric() && letter != '-', "")
    };
    headings.map(letters).collect()
}

#[test]
fn every_link_between_pages_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for link in links(&page) {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let found = match fs::read_to_string(&target) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => target.is_dir() && anchor.is_empty(),
            };
            if !found {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn anchors_are_what_github_makes_of_headings() {
    assert_eq!(
        anchors("# A `pod`'s own: address\n\ntext\n"),
        BTreeSet::from(["a-pods-own-address".to_owned()])
    );
    assert_eq!(links("[a](b.md#c) ```\n[no](x)\n``` [d](e)"), ["b.md#c", "e"]);
}

/// The tests that a page names, with the files that it says they are in.
fn tests(page: &str) -> Vec<(&str, &str)> {
    let mut tests = Vec::new();
    for rest in page.split("[`").skip(1) {
        let Some((name, rest)) = rest.split_once("`](") else { continue };
        let target = rest.split(')').next().unwrap_or_default();
        if Path::new(target).extension().is_some_and(|extension| extension == "rs" || extension == "go") {
            tests.push((name, target));
        }
    }
    tests
}

#[test]
fn every_test_that_a_page_names_is_where_the_page_says() {
    let mut missing = Vec::new();
    let mut count = 0;
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for (name, target) in tests(&page) {
            count += 1;
            let source = fs::read_to_string(path.parent().unwrap().join(target)).unwrap_or_default();
            if ![format!("fn {name}("), format!("func {name}(")].iter().any(|start| source.contains(start)) {
                missing.push(format!("{}: {name} in {target}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(100 < count, "only {count} were found");
}
