//! The manifests that the demo applies, and what must become of each of their objects.

/// What must become of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is granted, and its pod runs.
    Runs,
    /// It is granted.
    Granted,
    /// It is refused.
    Refused,
}

/// A file of `examples/`.
#[derive(Debug)]
pub(crate) struct Example {
    /// Its path in the repository.
    pub(crate) path: &'static str,
    /// Its content.
    pub(crate) text: &'static str,
    /// What must become of its objects, in their order.
    pub(crate) fates: &'static [Fate],
}

macro_rules! example {
    ($path:literal, $($fate:ident),+) => {
        Example { path: $path, text: include_str!(concat!("../../../", $path)), fates: &[$(Fate::$fate),+] }
    };
}

/// The examples in the order in which they are applied.
pub(crate) const EXAMPLES: [Example; 8] = [
    example!("examples/web.yaml", Runs),
    example!("examples/mail-server.yaml", Runs),
    example!("examples/game-server.yaml", Runs),
    example!("examples/allowed-sources.yaml", Runs),
    example!("examples/deployment.yaml", Runs),
    example!("examples/refused/restricted-port.yaml", Refused),
    example!("examples/refused/typo.yaml", Refused),
    // Of the two Deployments that want one port, the first one gets it.
    example!("examples/refused/conflict.yaml", Granted, Refused),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::manifest;

    #[test]
    fn every_object_of_every_example_has_a_fate() {
        for example in EXAMPLES {
            let manifests = manifest::read_text(example.path, example.text, "default");
            assert_eq!(manifests.objects.len(), example.fates.len(), "{}", example.path);
            assert_eq!(manifests.unreadable, []);
        }
    }
}
