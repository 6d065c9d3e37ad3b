//! Files that are generated and kept in the repository: what users read, and what other tools consume.

use std::fs;
use std::path::Path;

/// Compares `text` with the file at `path` (from the repository's root), or writes it when `UPDATE_GOLDEN=1`.
#[track_caller]
pub(crate) fn golden(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        return;
    }
    compare(path, &fs::read_to_string(&file).unwrap_or_default(), text);
}

#[track_caller]
fn compare(path: &str, kept: &str, text: &str) {
    if let Some(difference) = difference(kept, text) {
        panic!(
            "{path} is not what the program says now:\n{difference}\n\
             If the new text is right, write it with: UPDATE_GOLDEN=1 cargo test --test it"
        );
    }
}

/// The lines that differ, `-` for the kept file and `+` for the new text; `None` when both are the same.
fn difference(kept: &str, new: &str) -> Option<String> {
    if kept == new {
        return None;
    }
    let (kept, new): (Vec<_>, Vec<_>) = (kept.split('\n').collect(), new.split('\n').collect());
    let head = kept.iter().zip(&new).take_while(|(kept, new)| kept == new).count();
    let shorter = kept.len().min(new.len()) - head;
    let tail =
        kept.iter().rev().zip(new.iter().rev()).take(shorter).take_while(|(kept, new)| kept == new).count();
    let removed = kept[head..kept.len() - tail].iter().map(|line| format!("-{line}"));
    let added = new[head..new.len() - tail].iter().map(|line| format!("+{line}"));
    let place = format!("@@ line {} @@", head + 1);
    Some(std::iter::once(place).chain(removed).chain(added).collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_difference_shows_its_place_and_both_sides() {
    assert_eq!(difference("a\nb\nc\n", "a\nb\nc\n"), None);
    assert_eq!(difference("a\nb\nc\n", "a\nx\ny\nc\n").unwrap(), "@@ line 2 @@\n-b\n+x\n+y");
    assert_eq!(difference("", "a\n").unwrap(), "@@ line 1 @@\n+a");
    assert_eq!(difference("a\na\n", "a\n").unwrap(), "@@ line 2 @@\n-a");
}

#[test]
#[should_panic(expected = "UPDATE_GOLDEN=1")]
fn a_file_that_differs_fails_and_names_the_command() {
    compare("docs/example", "old", "new");
}
