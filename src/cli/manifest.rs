//! Kubernetes manifests on disk: which file and line each object and each of its fields was written on.
//!
//! Multi-document YAML, JSON, lists and directories. A document that cannot be read is reported with its file and
//! line and hides no other.

mod tree;

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;

use serde::Deserialize;
use serde_json::Value;

use crate::admission::violation::shown;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cli::manifest::tree::Tree;

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file as the command line named it.
    pub(crate) file: Rc<str>,
    /// The line, counted from 1; `None` when the file as a whole is meant.
    pub(crate) line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// Input that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// Where it is.
    pub(crate) place: Place,
    /// What is wrong with it.
    pub(crate) message: String,
}

/// A field that must be text and is not: the API server refuses the whole object for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotText {
    /// The path of the field.
    pub(crate) field: String,
    /// The value as JSON.
    pub(crate) value: Value,
}

/// One object of a manifest.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// The object, in a namespace. What should be text and is not stands in it as its JSON.
    pub(crate) object: Object,
    /// The annotations and labels that are not text.
    pub(crate) not_text: Vec<NotText>,
    file: Rc<str>,
    /// The line before the document's first.
    offset: usize,
    /// The object's own first line in the document.
    start: usize,
    tree: Tree,
}

impl Manifest {
    /// Where a field was written, or the deepest part of its path that was.
    pub(crate) fn place_of(&self, field: &str) -> Place {
        let line = self.tree.line_of(field).unwrap_or(self.start);
        Place { file: self.file.clone(), line: Some(self.offset + line) }
    }

    /// The whole object as JSON, in its namespace.
    pub(crate) fn value(&self) -> Value {
        let mut value = self.tree.to_value();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".to_owned(), self.object.metadata.namespace.as_str().into());
        }
        value
    }

    /// Kind, namespace and name, as in `Deployment mail/smtp`.
    pub(crate) fn title(&self) -> String {
        let Object { kind, metadata, .. } = &self.object;
        format!("{} {}/{}", shown(kind), shown(&metadata.namespace), shown(&metadata.name))
    }
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    /// The objects in the order they were written.
    pub(crate) objects: Vec<Manifest>,
    /// What could not be read.
    pub(crate) unreadable: Vec<Unreadable>,
    /// How many files were opened.
    pub(crate) files: usize,
}

/// Reads files, directories (recursively: `*.yaml`, `*.yml`, `*.json`) and, for `-`, standard input. Objects without
/// a namespace are taken to be in `namespace`.
pub(crate) fn read(paths: &[PathBuf], namespace: &str, mut stdin: impl Read) -> Manifests {
    let mut reader = Reader { namespace, manifests: Manifests::default() };
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            let outcome = stdin.read_to_string(&mut text).map(|_| text);
            reader.file("<stdin>", outcome, Origin::Named);
        } else if path.is_dir() {
            reader.directory(path);
        } else {
            reader.file(&path.display().to_string(), fs::read_to_string(path), Origin::Named);
        }
    }
    reader.manifests
}

/// Reads one text as if it were a file of this name.
pub(crate) fn read_text(name: &str, text: &str, namespace: &str) -> Manifests {
    let mut reader = Reader { namespace, manifests: Manifests::default() };
    reader.file(name, Ok(text.to_owned()), Origin::Named);
    reader.manifests
}

/// How a file was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was named, so that all of it is meant to be Kubernetes objects.
    Named,
    /// It lies in a directory, among files that may be anything.
    Found,
}

struct Reader<'a> {
    namespace: &'a str,
    manifests: Manifests,
}

impl Reader<'_> {
    fn refuse(&mut self, file: &Rc<str>, line: Option<usize>, message: String) {
        self.manifests.unreadable.push(Unreadable { place: Place { file: file.clone(), line }, message });
    }

    fn directory(&mut self, directory: &Path) {
        let name: Rc<str> = directory.display().to_string().into();
        let mut files = Vec::new();
        if let Err(error) = find_manifests(directory, &mut files) {
            self.refuse(&name, None, format!("cannot be read: {error}"));
        } else if files.is_empty() {
            self.refuse(&name, None, "holds no *.yaml, *.yml or *.json file".to_owned());
        }
        for path in files {
            self.file(&path.display().to_string(), fs::read_to_string(&path), Origin::Found);
        }
    }

    fn file(&mut self, file: &str, content: std::io::Result<String>, origin: Origin) {
        let file: Rc<str> = file.into();
        let text = match content {
            Ok(text) => text,
            Err(error) => return self.refuse(&file, None, format!("cannot be read: {error}")),
        };
        self.manifests.files += 1;
        for (offset, document) in documents(&text) {
            match Tree::read(document) {
                Ok(None) => {}
                Ok(Some(tree)) => self.document(&file, offset, tree, origin),
                Err(error) => {
                    let line = error.line.unwrap_or(1) + offset;
                    self.refuse(&file, Some(line), format!("cannot be read: {}", error.message));
                }
            }
        }
    }

    fn document(&mut self, file: &Rc<str>, offset: usize, tree: Tree, origin: Origin) {
        let Some(kind) = tree.get("kind").and_then(Tree::as_str).map(str::to_owned) else {
            if origin == Origin::Named {
                let message = "is not a Kubernetes object: it has no kind".to_owned();
                self.refuse(file, Some(offset + 1), message);
            }
            return;
        };
        let items = tree.get("items").and_then(Tree::items);
        if let (Some(item_kind), Some(items)) = (kind.strip_suffix("List"), items) {
            for (start, item) in items {
                self.object(file, offset, *start, item.clone(), item_kind);
            }
            return;
        }
        let start = tree.line_of("kind").unwrap_or(1);
        self.object(file, offset, start, tree, &kind);
    }

    fn object(&mut self, file: &Rc<str>, offset: usize, start: usize, tree: Tree, kind: &str) {
        let mut value = tree.to_value();
        let not_text = make_text(&mut value);
        let mut object = match read_object(value, kind) {
            Ok(object) => object,
            Err(error) => {
                let kind = tree.get("kind").and_then(Tree::as_str).unwrap_or(kind);
                let message = format!("this {} is not what the API server takes: {error}", shown(kind));
                return self.refuse(file, Some(offset + start), message);
            }
        };
        // The items of a typed list have no kind of their own.
        if object.kind.is_empty() {
            kind.clone_into(&mut object.kind);
        }
        let metadata = &mut object.metadata;
        if metadata.namespace.is_empty() {
            self.namespace.clone_into(&mut metadata.namespace);
        }
        if metadata.name.is_empty() {
            // Each creation gets a name of its own, so two of them are two objects.
            metadata.name = format!("{}<{}>", metadata.generate_name, self.manifests.objects.len() + 1);
        }
        self.manifests.objects.push(Manifest { object, not_text, file: file.clone(), offset, start, tree });
    }
}

fn find_manifests(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        let is_manifest = path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension));
        // A link to a directory may lead back here.
        if path.is_dir() && !path.is_symlink() {
            find_manifests(&path, files)?;
        } else if path.is_file() && is_manifest {
            files.push(path);
        }
    }
    Ok(())
}

/// The documents of a file, each with the number of lines before it. Splitting at the separators before parsing
/// keeps a syntax error inside its own document.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_separator =
            line.strip_prefix("---").is_some_and(|rest| rest.trim_start() != rest || rest.is_empty());
        if is_separator && 0 < at {
            documents.push((start_line, &text[start..at]));
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| !is_blank(document));
    documents
}

/// Whether there is nothing but comments, directives and separators.
fn is_blank(document: &str) -> bool {
    document.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "..."
    })
}

/// Reads an object of this kind.
fn read_object(value: Value, kind: &str) -> serde_json::Result<Object> {
    if kind != Kind::Pinhole.name() {
        return serde_json::from_value(value);
    }
    let object = Object::deserialize(&value)?;
    Ok(object.with_pinhole(serde_json::from_value(value)?))
}

/// Where an object keeps metadata that rules read: its own, its template's, its Job template's.
const METADATA: [&str; 3] = ["metadata", "spec.template.metadata", "spec.jobTemplate.spec.template.metadata"];

/// Makes text of the annotations and labels that are not, as far as an object could be stored with them; returns
/// those that stand in its way.
fn make_text(object: &mut Value) -> Vec<NotText> {
    let mut not_text = Vec::new();
    for metadata in METADATA {
        for map in ["annotations", "labels"] {
            let pointer = format!("/{}/{map}", metadata.replace('.', "/"));
            let entries = object.pointer_mut(&pointer).and_then(Value::as_object_mut);
            for (key, value) in entries.into_iter().flatten() {
                if value.is_string() {
                    continue;
                }
                // The API server takes null for the empty text.
                let text = if value.is_null() { String::new() } else { value.to_string() };
                let given = std::mem::replace(value, Value::String(text));
                if !given.is_null() {
                    not_text
                        .push(NotText { field: format!("{metadata}.{map}[{}]", shown(key)), value: given });
                }
            }
        }
    }
    not_text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Manifests {
        read(&["-".into()], "default", text.as_bytes())
    }

    fn titles(manifests: &Manifests) -> Vec<String> {
        manifests
            .objects
            .iter()
            .map(|manifest| format!("{} {}", manifest.place_of("kind"), manifest.title()))
            .collect()
    }

    #[test]
    fn every_document_is_found_with_its_lines() {
        let text = "# head\n---\nkind: Pod\nmetadata: {name: a, namespace: mail}\n--- # second\n\nkind: Service\n\
                    metadata: {name: b}\n---\n---\n# nothing\n";
        let manifests = read_text(text);
        assert_eq!(titles(&manifests), ["<stdin>:3 Pod mail/a", "<stdin>:7 Service default/b"]);
        assert_eq!(manifests.unreadable, []);
    }

    #[test]
    fn the_items_of_lists_are_objects_also_where_they_have_no_kind() {
        let text = r#"{"kind": "PodList", "items": [
            {"metadata": {"name": "a"}},
            {"metadata": {"name": "b"}}]}"#;
        assert_eq!(titles(&read_text(text)), ["<stdin>:2 Pod default/a", "<stdin>:3 Pod default/b"]);
        let text = "kind: List\nitems:\n- kind: Job\n  metadata: {name: a}\n";
        assert_eq!(titles(&read_text(text)), ["<stdin>:3 Job default/a"]);
    }

    #[test]
    fn a_document_that_cannot_be_read_hides_no_other() {
        let text = "kind: Pod\nmetadata: {name: a}\n---\nkind: [\n---\nkind: Pod\nmetadata: {name: c}\n---\nport: 80\n";
        let manifests = read_text(text);
        assert_eq!(titles(&manifests), ["<stdin>:1 Pod default/a", "<stdin>:6 Pod default/c"]);
        let unreadable: Vec<_> = manifests.unreadable.iter().map(|found| found.place.to_string()).collect();
        assert_eq!(unreadable, ["<stdin>:4", "<stdin>:8"]);
        assert!(manifests.unreadable[1].message.contains("it has no kind"));
    }

    #[test]
    fn nothing_in_a_manifest_can_steer_the_terminal() {
        let manifests = read_text(
            "kind: Pod\nmetadata:\n  name: \"a\\e[2J\"\n  labels: {\"\\e[2J\": 1}\n---\n{\"\\e[2J\": [}\n",
        );
        assert_eq!(manifests.objects[0].title(), "Pod default/a [2J");
        assert_eq!(manifests.objects[0].not_text[0].field, "metadata.labels[ [2J]");
        assert!(!manifests.unreadable[0].message.contains('\u{1b}'), "{manifests:?}");
    }

    #[test]
    fn an_object_of_the_wrong_shape_is_reported_where_it_starts() {
        let manifests = read_text("# pod\nkind: Pod\nmetadata: {name: [a]}\n");
        assert_eq!(manifests.unreadable[0].place.to_string(), "<stdin>:2");
        assert!(manifests.unreadable[0].message.contains("expected a string"), "{manifests:?}");
        let manifests = read_text("kind: List\nitems:\n- kind: Pod\n  metadata: {name: [a]}\n");
        assert!(manifests.unreadable[0].message.starts_with("this Pod is not"), "{manifests:?}");
    }

    #[test]
    fn annotations_that_are_not_text_are_named_and_null_is_empty_text() {
        let manifests =
            read_text("kind: Pod\nmetadata:\n  annotations:\n    a: 80\n    b: {c: true}\n    d:\n");
        let fields: Vec<_> = manifests.objects[0].not_text.iter().map(|found| found.field.as_str()).collect();
        assert_eq!(fields, ["metadata.annotations[a]", "metadata.annotations[b]"]);
        let annotations = &manifests.objects[0].object.metadata.annotations;
        assert_eq!((annotations["a"].as_str(), annotations["d"].as_str()), ("80", ""));
        assert_eq!(manifests.objects[0].place_of("metadata.annotations[b]").line, Some(5));
    }

    #[test]
    fn objects_with_generated_names_are_objects_of_their_own() {
        let manifests = read_text(
            "kind: Pod\nmetadata: {generateName: a-}\n---\nkind: Pod\nmetadata: {generateName: a-}\n",
        );
        assert_eq!(titles(&manifests), ["<stdin>:1 Pod default/a-<1>", "<stdin>:4 Pod default/a-<2>"]);
    }

    #[test]
    fn a_directory_is_read_in_order_and_foreign_files_in_it_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("b.yaml", "kind: Pod\nmetadata: {name: b}\n");
        write("a/x.json", r#"{"kind": "Pod", "metadata": {"name": "a"}}"#);
        write("values.yaml", "port: 80\n");
        write("notes.txt", "{{{");
        let manifests = read(&[directory.path().to_owned()], "default", std::io::empty());
        let titles: Vec<_> = manifests.objects.iter().map(Manifest::title).collect();
        assert_eq!(titles, ["Pod default/a", "Pod default/b"]);
        assert_eq!((manifests.files, manifests.unreadable), (3, Vec::new()));
        let missing = read(&[directory.path().join("none.yaml")], "default", std::io::empty());
        assert!(missing.unreadable[0].message.starts_with("cannot be read: "));
    }
}
