//! `kubectl pinhole list`: a line for each request for a port.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::cli::plugin::age;
use crate::cli::plugin::picture::standing::Asker;
use crate::cli::plugin::picture::standing::Standing;
use crate::cli::plugin::picture::standing::State;
use crate::cli::plugin::table;
use crate::cli::plugin::table::Cell;
use crate::cli::plugin::table::Tone;
use crate::cli::terminal::Palette;
use crate::model::holder::ObjectName;
use crate::model::mapping::Mapping;

const HEAD: [&str; 7] = ["EXTERNAL", "TARGET", "NODE", "HOLDER", "STATE", "PACKETS", "AGE"];
const WIDE: [&str; 3] = ["POD", "SOURCES", "WHY"];

/// How much a table tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// The usual columns.
    Usual,
    /// Also the pod, who may connect, and why it is not served.
    Wide,
}

impl State {
    /// How the state stands out.
    pub(crate) const fn tone(self) -> Tone {
        match self {
            Self::Programmed | Self::Reported => Tone::Good,
            Self::Reserved | Self::Expected | Self::Waiting | Self::Pending | Self::Unscheduled => {
                Tone::Plain
            }
            Self::Suspended | Self::Missing | Self::Releasing | Self::Leftover => Tone::Notice,
            Self::Full | Self::Taken | Self::Refused | Self::Unserved | Self::NoAgent => Tone::Bad,
        }
    }
}

/// The table.
pub(crate) fn text(standings: &[Standing], width: Width, now: Timestamp, palette: Palette) -> String {
    let mut head = HEAD.to_vec();
    if width == Width::Wide {
        head.extend(WIDE);
    }
    let rows: Vec<_> = standings.iter().map(|standing| row(standing, width, now)).collect();
    table::render(&head, &rows, palette)
}

fn row(standing: &Standing, width: Width, now: Timestamp) -> Vec<Cell> {
    let or_dash = |text: Option<&str>| Cell::from(text.unwrap_or("-"));
    let mut cells = vec![
        Cell::from(standing.external.as_str()),
        or_dash(standing.target.as_deref()),
        or_dash(standing.node.as_deref()),
        standing.holder.as_ref().map_or(Cell::from("-"), |holder| Cell::from(holder.to_string())),
        Cell { text: standing.state.name().to_owned(), tone: standing.state.tone() },
        standing.packets.map_or(Cell::from("-"), |packets| Cell::from(packets.to_string())),
        Cell::from(age::since(&standing.created, now)),
    ];
    if width == Width::Wide {
        cells.push(standing.pod.as_ref().map_or(Cell::from("-"), |pod| Cell::from(pod.to_string())));
        let sources = sources(standing);
        cells.push(Cell::from(if sources.is_empty() { "all".to_owned() } else { sources.join(",") }));
        cells.push(or_dash(standing.problem.as_deref()));
    }
    cells
}

fn sources(standing: &Standing) -> Vec<String> {
    let sources = standing.mapping.iter().flat_map(Mapping::allowed_sources);
    sources.map(ToString::to_string).collect()
}

/// The same for programs.
pub(crate) fn json(standings: &[Standing]) -> Value {
    let named = |name: &ObjectName| json!({"namespace": &*name.namespace, "name": &*name.name});
    let item = |standing: &Standing| {
        json!({
            "external": standing.external,
            "target": standing.target,
            "node": standing.node,
            "holder": standing.holder.as_ref().map(|holder| json!({
                "kind": &*holder.kind,
                "namespace": &*holder.object.namespace,
                "name": &*holder.object.name,
            })),
            "pinhole": match &standing.asker {
                Asker::Pod(_) => Value::Null,
                Asker::Pinhole(pinhole) => named(pinhole),
            },
            "pod": standing.pod.as_ref().map(named),
            "allowedSources": sources(standing),
            "state": standing.state.name(),
            "why": standing.problem,
            "packets": standing.packets,
            "created": (!standing.created.is_empty()).then_some(&standing.created),
        })
    };
    json!({"items": standings.iter().map(item).collect::<Vec<_>>()})
}
