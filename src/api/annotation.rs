//! The JSON of the `pinhole.dev/nat` annotation as it is written, before any rule has judged it.
//!
//! The published JSON Schema (`pinhole schema`) is derived from these types, so that documentation, structural
//! check and parser cannot drift apart.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::model::ordinals::PortByOrdinal;

/// The most entries that one pod can ask for.
pub const MAX_ENTRIES: usize = 256;

/// The most source networks that one entry can list. More would not fit a pod: the API server takes 256 KiB of annotations, and
/// holds the list twice, as it was written and with every default.
pub const MAX_SOURCES: usize = 5000;

/// The external ports that a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NatAnnotation {
    /// One entry for each external port or range of ports.
    #[schemars(length(min = 1, max = 256))]
    pub entries: Vec<NatEntry>,
}

/// One external port, or a range of them, and the pod's port behind it. An optional key may be `null`, which is how
/// the predecessor's own type marshals an absent one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NatEntry {
    /// Whether to use the own address of the node that the pod runs on. Default: true, or false when `srcIP` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface_auto: Option<bool>,

    /// The external IPv4 or IPv6 address to use instead of the node's own.
    #[serde(default, rename = "srcIP", skip_serializing_if = "Option::is_none")]
    pub src_ip: Option<String>,

    /// The external port that the outside connects to, 1-65535, or `"auto"` for one that a pool finds, or `"fixed"` for one
    /// that it also keeps for the next pod of the same name, or `"30000+{ordinal}"` for one by the ordinal of a StatefulSet's pod.
    /// The first one where `srcPortEnd` is given.
    pub src_port: SourcePort,

    /// The last external port of a range, 1-65535. Default: `srcPort`, a single port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub src_port_end: Option<u16>,

    /// The pod's port behind `srcPort`, 1-65535. In a range the n-th external port leads to the n-th pod port from
    /// here on.
    #[schemars(range(min = 1))]
    pub dst_port: u16,

    /// The protocol: `tcp`, `udp` or `sctp`, in any letter case. Default: `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^([tT][cC][pP]|[uU][dD][pP]|[sS][cC][tT][pP])$"))]
    pub proto: Option<String>,

    /// The networks (CIDRs) that may connect; everybody else is dropped. Default: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 5000))]
    pub allowed_sources: Option<Vec<String>>,

    /// Whether connections end when their source is taken off `allowedSources`. Default: false, they live on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminate_existing: Option<bool>,
}

/// The external port of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SourcePort {
    /// By number.
    Number(u16),
    /// By the word for one that is found.
    Word(Automatic),
    /// By the ordinal of its pod.
    ByOrdinal(#[serde(with = "by_ordinal")] PortByOrdinal),
}

/// A port by ordinal as text.
mod by_ordinal {
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serializer;
    use serde::de::Error;

    use crate::model::ordinals::PortByOrdinal;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(port: &PortByOrdinal, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(port)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortByOrdinal, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The texts that a port can be, and no others: of a port by ordinal the base is 1 to 65535.
const PORT_TEXT: &str = r"^(auto|fixed|([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])\+\{ordinal\})$";

/// The words for a port that is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Automatic {
    /// `"auto"`: it goes with the pod.
    Auto,
    /// `"fixed"`: it is kept for the next pod of the same name.
    Fixed,
}

impl Automatic {
    /// Every word.
    pub const ALL: [Self; 2] = [Self::Auto, Self::Fixed];

    /// The word as it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fixed => "fixed",
        }
    }

    /// Whether what is found is kept for the next pod of the same name.
    pub fn is_fixed(self) -> bool {
        self == Self::Fixed
    }
}

impl JsonSchema for SourcePort {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SourcePort".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // Of a number the limits count, of a text the pattern.
        schemars::json_schema!({
            "type": ["integer", "string"],
            "format": "uint16",
            "minimum": 1,
            "maximum": 65535,
            "pattern": PORT_TEXT,
        })
    }
}

/// The keys of an entry, in the order of the documentation.
pub const ENTRY_KEYS: [&str; 8] = [
    "ifaceAuto",
    "srcIP",
    "srcPort",
    "srcPortEnd",
    "dstPort",
    "proto",
    "allowedSources",
    "terminateExisting",
];

/// The JSON Schema (draft 2020-12) of the annotation's value.
pub fn schema() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<NatAnnotation>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_lists_exactly_the_documented_keys_and_limits() {
        let schema = schema();
        let entry = &schema["$defs"]["NatEntry"];
        let keys: Vec<_> = entry["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ENTRY_KEYS);
        assert_eq!(entry["required"], serde_json::json!(["srcPort", "dstPort"]));
        assert_eq!(entry["additionalProperties"], false);
        assert_eq!(entry["properties"]["srcPort"]["minimum"], 1);
        assert_eq!(entry["properties"]["srcPort"]["maximum"], 65535);
        assert_eq!(schema["properties"]["entries"]["maxItems"], MAX_ENTRIES);
        assert_eq!(entry["properties"]["allowedSources"]["maxItems"], MAX_SOURCES);
    }
}
