//! `pinhole check`: the rules of admission on manifests, offline.
//!
//! The objects are judged one after the other as the API server would take them, so that two files that want one
//! port are found out. A refused object holds nothing.

mod pools;
pub(crate) mod report;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use clap::ValueEnum;
use serde_json::Value;

use crate::admission;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::conflict::Evidence;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::allocation::pool::Pool;
use crate::api::keys;
use crate::cli::check::report::Finding;
use crate::cli::check::report::Holder;
use crate::cli::check::report::Judged;
use crate::cli::check::report::Report;
use crate::cli::manifest;
use crate::cli::manifest::Manifest;
use crate::cli::manifest::Manifests;
use crate::cli::manifest::NotText;
use crate::cli::policy::PolicyFlags;
use crate::cli::terminal;
use crate::cli::terminal::Palette;

/// The exit code when a manifest is refused.
const REFUSED: u8 = 1;

/// The exit code when a manifest could not be read, so that nobody can say.
const UNREADABLE: u8 = 2;

/// The flags of `pinhole check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when every request for ports is granted, 1 when one is refused, 2 when a manifest \
                        cannot be read."
)]
pub(crate) struct Check {
    /// Manifests: YAML or JSON files, directories (read recursively), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,

    /// The namespace of objects that name none.
    #[arg(short, long, value_name = "NAME", default_value = "default", env = "PINHOLE_NAMESPACE")]
    namespace: String,

    /// How to report: `text` for people, `json` for programs.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t, env = "PINHOLE_OUTPUT")]
    output: Output,

    /// Judge by the NatPools in this file or directory, too, as where claims are on: what none of them grants is refused. As
    /// `kubectl get natpools -o yaml` prints them, or a manifest; what else it has is passed over. Repeatable.
    #[arg(long = "pool", value_name = "FILE|DIR", env = "PINHOLE_POOL")]
    pools: Vec<PathBuf>,

    #[command(flatten)]
    policy: PolicyFlags,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

impl Check {
    /// Judges the manifests and prints what it finds.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { files, namespace, output, pools, policy } = self;
        let mut manifests = manifest::read(&files, &namespace, io::stdin());
        let pools = (!pools.is_empty()).then(|| pools::read(&pools, &mut manifests.unreadable));
        let report = judge(&manifests, policy.into_policy(), pools);
        terminal::print(&match output {
            Output::Text => report.text(Palette { is_colourful: terminal::is_colourful(&io::stdout()) }),
            Output::Json => report.json()?,
        })?;
        Ok(match (report.unreadable.is_empty(), report.refused()) {
            (false, _) => ExitCode::from(UNREADABLE),
            (true, 0) => ExitCode::SUCCESS,
            (true, _) => ExitCode::from(REFUSED),
        })
    }
}

/// Judges the objects in their order, each against those granted before it, and against pools where there are any.
pub(crate) fn judge(manifests: &Manifests, policy: Policy, pools: Option<Vec<Pool>>) -> Report<'_> {
    let policy = Arc::new(policy);
    let mut index = Index::new(policy.clone());
    index.set_pools(pools.map(Into::into));
    if index.pools().is_some() {
        // By their labels pools admit them, wherever they stand among the manifests.
        let namespaces = manifests.objects.iter().filter(|manifest| manifest.object.kind == "Namespace");
        namespaces.for_each(|namespace| index.apply(&namespace.object));
    }
    let mut granted = BTreeMap::new();
    let mut objects = Vec::new();
    for manifest in &manifests.objects {
        let judged = judge_one(manifest, &World { policy: &policy, index: &index }, &granted);
        if judged.as_ref().is_none_or(Judged::is_granted) {
            index.apply(&manifest.object);
            if let Some(key) = key(manifest) {
                granted.insert(key, manifest);
            }
        }
        objects.extend(judged);
    }
    Report {
        objects,
        unreadable: &manifests.unreadable,
        objects_read: manifests.objects.len(),
        files_read: manifests.files,
    }
}

/// Judges one object; `None` when it asks for nothing and there is nothing to say of it.
fn judge_one<'a>(
    manifest: &'a Manifest,
    world: &World<'_>,
    granted: &BTreeMap<ObjectKey, &'a Manifest>,
) -> Option<Judged<'a>> {
    let request = Request {
        operation: Operation::Create,
        namespace: manifest.object.metadata.namespace.clone(),
        object: Some(manifest.object.clone()),
        old_object: None,
    };
    let subject = Subject::of(&manifest.object)?;
    let asks = subject.pinhole.is_some() || world.policy.asks(&subject.metadata.annotations);
    let decision = admission::decide(&request, world);
    if !asks && decision.warnings.is_empty() {
        return None;
    }
    let not_text = manifest.not_text.iter().map(not_text);
    let violations = not_text
        .chain(decision.violations)
        .map(|violation| Finding { place: manifest.place_of(&violation.field), what: violation })
        .collect();
    let warnings = decision
        .warnings
        .into_iter()
        .map(|warning| Finding {
            place: manifest.place_of(&field_of(&warning, &subject, world.policy)),
            what: warning,
        })
        .collect();
    let holders = decision.evidence.iter().filter_map(|evidence| match evidence {
        Evidence::Object(key) => granted.get(key).map(|manifest| holder(manifest, world.policy)),
        Evidence::Namespace(_) | Evidence::Pools | Evidence::Occupant(_) => None,
    });
    Some(Judged {
        manifest,
        asks,
        violations,
        warnings,
        holders: holders.collect(),
        mappings: decision.mappings,
        automatic: decision.automatic,
    })
}

fn key(manifest: &Manifest) -> Option<ObjectKey> {
    ObjectKey::of(&manifest.object, &manifest.object.metadata.namespace)
}

fn holder<'a>(manifest: &'a Manifest, policy: &Policy) -> Holder<'a> {
    let field = Subject::of(&manifest.object).map(|subject| asking_field(&subject, policy));
    Holder { place: manifest.place_of(&field.unwrap_or_default()), manifest }
}

/// The path of the annotation that asks, or of a Pinhole's ports.
fn asking_field(subject: &Subject<'_>, policy: &Policy) -> String {
    if subject.pinhole.is_some() {
        return subject.asking_path();
    }
    let given = policy.asking_keys(&subject.metadata.annotations).next();
    format!("{}[{}]", subject.annotations_path(), given.unwrap_or(keys::NAT))
}

/// The path of the annotation that a warning is about: the one that it begins with, else the one that asks.
fn field_of(warning: &str, subject: &Subject<'_>, policy: &Policy) -> String {
    let named = warning.strip_prefix("annotation ").and_then(|rest| rest.split(' ').next());
    match named.filter(|key| subject.metadata.annotations.contains_key(*key)) {
        Some(key) => format!("{}[{key}]", subject.annotations_path()),
        None => asking_field(subject, policy),
    }
}

/// The API server takes only text here, and says so without the field's name.
fn not_text(found: &NotText) -> Violation {
    let what = match &found.value {
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
        Value::Null | Value::String(_) => "no text",
    };
    let advice = match &found.value {
        Value::Array(_) | Value::Object(_) => {
            "put the JSON in single quotes, or write | and the JSON below it".to_owned()
        }
        value => format!("write \"{value}\""),
    };
    Violation {
        field: found.field.clone(),
        value: shown(&found.value.to_string()),
        problem: format!("is {what}, and Kubernetes takes only text here; {advice}"),
        rule: Rule::Syntax,
    }
}
