//! The images can be built from what the Dockerfile copies.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Sources of the first stage's `COPY SOURCE... TARGET`.
fn copied(dockerfile: &str) -> Vec<&str> {
    let stage = dockerfile.lines().skip_while(|line| !line.starts_with("FROM ")).skip(1);
    let copies =
        stage.take_while(|line| !line.starts_with("FROM ")).filter_map(|line| line.strip_prefix("COPY "));
    copies.flat_map(|copy| copy.rsplit_once(' ').map_or(copy, |(sources, _)| sources).split(' ')).collect()
}

/// The library's sources and whatever they include, in the compiler's own words of the last time it was built. A
/// lint's notes name its settings, too.
fn what_the_compiler_read() -> String {
    let dependencies = Path::new(env!("CARGO_BIN_EXE_pinhole")).with_file_name("deps");
    let notes = fs::read_dir(dependencies).unwrap().map(|entry| entry.unwrap().path());
    let notes = notes.filter(|path| path.extension().is_some_and(|extension| extension == "d"));
    let mut of_library: Vec<_> = notes
        .filter_map(|path| {
            Some((fs::metadata(&path).ok()?.modified().ok()?, fs::read_to_string(&path).ok()?))
        })
        .filter(|(_, text)| {
            text.contains("/libpinhole-") && text.contains(" src/lib.rs ") && !text.contains("clippy.toml")
        })
        .collect();
    of_library.sort_unstable();
    of_library.pop().unwrap().1
}

#[test]
fn what_the_program_is_compiled_from_is_copied_into_the_build_and_not_ignored() {
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap();
    let dockerfile = fs::read_to_string(root.join("Dockerfile")).unwrap();
    let ignored = fs::read_to_string(root.join(".dockerignore")).unwrap();
    let copied = copied(&dockerfile);
    let read = what_the_compiler_read();
    // Paths may lead up and down again; files that are gone are of no build any more.
    let files = read.split_whitespace().filter_map(|file| root.join(file).canonicalize().ok());
    let files: BTreeSet<_> =
        files.filter_map(|file| Some(file.strip_prefix(root).ok()?.to_owned())).collect();
    assert!(files.contains(Path::new("examples/web.yaml")), "nothing is found in {read}");
    for file in files.iter().filter(|file| !file.starts_with("target")) {
        let is_copied = copied.iter().any(|source| file.starts_with(source));
        let is_sent =
            ignored.lines().filter_map(|line| line.strip_prefix('!')).any(|sent| file.starts_with(sent));
        assert!(is_copied, "Dockerfile: the first stage copies no {}", file.display());
        assert!(is_sent, ".dockerignore keeps {} from the build", file.display());
    }
}
