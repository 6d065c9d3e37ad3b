//! What `pinhole check` prints: one line per finding for people and editors, or one JSON document for programs.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::admission::effective;
use crate::admission::violation::Violation;
use crate::cli::manifest::Manifest;
use crate::cli::manifest::Place;
use crate::cli::manifest::Unreadable;
use crate::cli::terminal::Palette;
use crate::model::automatic::AutomaticPort;
use crate::model::mapping::Mapping;

/// Everything that was found.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    /// The objects that there is something to say of, in the order they were written.
    pub(crate) objects: Vec<Judged<'a>>,
    /// What could not be read.
    pub(crate) unreadable: &'a [Unreadable],
    /// How many objects were read, whatever their kind.
    pub(crate) objects_read: usize,
    /// How many files were read.
    pub(crate) files_read: usize,
}

/// An object and what became of it.
#[derive(Debug)]
pub(crate) struct Judged<'a> {
    /// The object.
    pub(crate) manifest: &'a Manifest,
    /// Whether it asks for ports at all.
    pub(crate) asks: bool,
    /// What is wrong with it.
    pub(crate) violations: Vec<Finding<Violation>>,
    /// What its author should know.
    pub(crate) warnings: Vec<Finding<String>>,
    /// The objects of these manifests that have what it asks for.
    pub(crate) holders: Vec<Holder<'a>>,
    /// What it asks for.
    pub(crate) mappings: Vec<Mapping>,
    /// What it leaves to a pool.
    pub(crate) automatic: Vec<AutomaticPort>,
}

impl Judged<'_> {
    /// Whether the API server would take it.
    pub(crate) fn is_granted(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Something to say about a place.
#[derive(Debug)]
pub(crate) struct Finding<T> {
    /// The place.
    pub(crate) place: Place,
    /// What there is to say.
    pub(crate) what: T,
}

/// An object that has ports, and where it asks for them.
#[derive(Debug)]
pub(crate) struct Holder<'a> {
    /// Where it asks.
    pub(crate) place: Place,
    /// The object.
    pub(crate) manifest: &'a Manifest,
}

#[derive(Serialize)]
struct Summary {
    files: usize,
    objects: usize,
    asking: usize,
    granted: usize,
    refused: usize,
    violations: usize,
    warnings: usize,
    unreadable: usize,
}

impl Report<'_> {
    /// How many objects are refused.
    pub(crate) fn refused(&self) -> usize {
        self.objects.iter().filter(|judged| !judged.is_granted()).count()
    }

    fn summary(&self) -> Summary {
        let asking = self.objects.iter().filter(|judged| judged.asks).count();
        Summary {
            files: self.files_read,
            objects: self.objects_read,
            asking,
            granted: asking - self.refused(),
            refused: self.refused(),
            violations: self.objects.iter().map(|judged| judged.violations.len()).sum(),
            warnings: self.objects.iter().map(|judged| judged.warnings.len()).sum(),
            unreadable: self.unreadable.len(),
        }
    }

    /// `file:line: Kind namespace/name: field: message`, and a summary.
    pub(crate) fn text(&self, palette: Palette) -> String {
        let mut lines = Vec::new();
        for judged in &self.objects {
            let title = judged.manifest.title();
            for Finding { place, what } in &judged.violations {
                let (place, field) = (palette.bold(&place.to_string()), palette.bad(&what.field));
                lines.push(format!("{place}: {title}: {field}: {}", what.message()));
            }
            for Holder { place, manifest } in &judged.holders {
                let (place, note) = (palette.bold(&place.to_string()), palette.name("note"));
                lines.push(format!("{place}: {note}: {} asks for its ports here", manifest.title()));
            }
            for Finding { place, what } in &judged.warnings {
                let (place, warning) = (palette.bold(&place.to_string()), palette.notice("warning"));
                lines.push(format!("{place}: {warning}: {title}: {what}"));
            }
        }
        for Unreadable { place, message } in self.unreadable {
            lines.push(format!("{}: {}", palette.bold(&place.to_string()), palette.bad(message)));
        }
        lines.push(self.summary_line(palette));
        lines.join("\n") + "\n"
    }

    fn summary_line(&self, palette: Palette) -> String {
        let summary = self.summary();
        let objects = count(summary.objects, "object", "objects");
        let files = count(summary.files, "file", "files");
        let asking = format!("{} for external ports", asks(summary.asking));
        let outcome = match (summary.asking, summary.refused) {
            (0, _) => "none asks for external ports".to_owned(),
            (_, 0) => palette.good(&format!("{asking}, granted")),
            (_, refused) => {
                let violations = count(summary.violations, "violation", "violations");
                let refused = palette.bad(&format!("{refused} refused ({violations})"));
                format!("{asking}, {} granted, {refused}", summary.granted)
            }
        };
        let mut line = format!("Checked {objects} in {files}: {outcome}");
        if 0 < summary.warnings {
            let _ = write!(line, "; {}", palette.notice(&count(summary.warnings, "warning", "warnings")));
        }
        if 0 < summary.unreadable {
            let unreadable = format!("{} could not be read", summary.unreadable);
            let _ = write!(line, "; {}", palette.bad(&unreadable));
        }
        line + "."
    }

    /// The same as JSON.
    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        let unreadable = self.unreadable.iter().map(|unreadable| {
            let Unreadable { place, message } = unreadable;
            json!({"file": &*place.file, "line": place.line, "message": message})
        });
        let report = json!({
            "summary": self.summary(),
            "objects": self.objects.iter().map(judged_json).collect::<Vec<_>>(),
            "unreadable": unreadable.collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&report).map(|text| text + "\n")
    }
}

fn judged_json(judged: &Judged<'_>) -> Value {
    let metadata = &judged.manifest.object.metadata;
    let violations = judged.violations.iter().map(|Finding { place, what }| {
        json!({
            "line": place.line,
            "field": what.field,
            "value": what.value,
            "rule": what.rule.name(),
            "message": what.message(),
        })
    });
    let warnings =
        judged.warnings.iter().map(|Finding { place, what }| json!({"line": place.line, "message": what}));
    let holders = judged.holders.iter().map(|Holder { place, manifest }| {
        json!({"file": &*place.file, "line": place.line, "object": manifest.title()})
    });
    json!({
        "file": &*judged.manifest.place_of("kind").file,
        "line": judged.manifest.place_of("kind").line,
        "kind": judged.manifest.object.kind,
        "namespace": metadata.namespace,
        "name": metadata.name,
        "granted": judged.is_granted(),
        "entries": effective::annotation(&judged.mappings, &judged.automatic).entries,
        "violations": violations.collect::<Vec<_>>(),
        "warnings": warnings.collect::<Vec<_>>(),
        "holders": holders.collect::<Vec<_>>(),
    })
}

fn asks(number: usize) -> String {
    if number == 1 { "1 asks".to_owned() } else { format!("{number} ask") }
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
