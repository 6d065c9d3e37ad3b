//! Finds out which flavour of iptables the node's other programs use, without touching either.
//!
//! Listing a table with iptables-legacy creates it in the kernel, and from then on every run of iptables-nft warns
//! about it. So this only ever runs `-save`, never names a legacy table, and never lists.

use crate::dataplane::DataplaneError;
use crate::dataplane::command::CommandError;
use crate::dataplane::command::Tools;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::FlavorChoice;

/// Chains by which the kubelet tells which flavour the node uses.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// A flavour and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The flavour.
    pub flavor: Flavor,
    /// What its program calls itself: `iptables v1.8.9 (nf_tables)`.
    pub version: String,
    /// Why this one, for the log.
    pub reason: &'static str,
}

/// Chooses a flavour that is installed.
pub async fn flavor(choice: FlavorChoice, tools: &Tools) -> Result<Found, DataplaneError> {
    let (flavor, reason) = match choice {
        FlavorChoice::Always(flavor) => (flavor, "chosen by the operator"),
        FlavorChoice::Auto => detect(tools).await?,
    };
    if tools.directory.is_none() {
        waits().await?;
    }
    let program = format!("iptables-{flavor}");
    let version = tools.run(&program, &["--version"], "").await?;
    Ok(Found { flavor, version: version.trim().to_owned(), reason })
}

async fn detect(tools: &Tools) -> Result<(Flavor, &'static str), DataplaneError> {
    let nft = saved(tools, Flavor::Nft).await?;
    let legacy = saved(tools, Flavor::Legacy).await?;
    let (nft, legacy) = match (&nft, &legacy) {
        (None, None) => {
            let hint = "neither iptables-nft-save nor iptables-legacy-save is installed; install iptables 1.8 or later (Debian: apt-get install iptables)";
            return Err(DataplaneError::NoIptables(hint.to_owned()));
        }
        (Some(_), None) => return Ok((Flavor::Nft, "iptables-legacy is not installed")),
        (None, Some(_)) => return Ok((Flavor::Legacy, "iptables-nft is not installed")),
        (Some(nft), Some(legacy)) => (nft, legacy),
    };
    Ok(choose(nft, legacy))
}

/// Chooses from what both flavours save.
fn choose(nft: &str, legacy: &str) -> (Flavor, &'static str) {
    let hinted = |saved: &str| saved.lines().any(|line| HINTS.iter().any(|hint| line.starts_with(hint)));
    let used = |saved: &str| saved.lines().any(|line| line.starts_with("-A "));
    if hinted(nft) {
        (Flavor::Nft, "the kubelet's chains are in nf_tables")
    } else if hinted(legacy) {
        (Flavor::Legacy, "the kubelet's chains are in the legacy tables")
    } else if used(legacy) && !used(nft) {
        (Flavor::Legacy, "only the legacy tables have rules")
    } else {
        (Flavor::Nft, "nothing on the node uses the legacy tables alone")
    }
}

/// All tables of both families; `None` when the flavour is not installed.
async fn saved(tools: &Tools, flavor: Flavor) -> Result<Option<String>, CommandError> {
    let mut all = String::new();
    for base in ["iptables", "ip6tables"] {
        match tools.run(&format!("{base}-{flavor}-save"), &[], "").await {
            Ok(saved) => all.push_str(&saved),
            Err(error) if error.is_missing() => return Ok(None),
            // A kernel without this flavour has no rules of it.
            Err(error) if error.is_refusal() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(all))
}

/// Asks the iptables crate whether the installed iptables waits for its lock. That runs `iptables --version` only;
/// the crate's other calls list or edit one rule at a time, which is neither atomic nor free of side effects.
async fn waits() -> Result<(), DataplaneError> {
    let asked = tokio::task::spawn_blocking(|| match iptables::new(false) {
        Ok(iptables) => iptables.has_wait.then_some(()).ok_or_else(|| "it is older than 1.4.20".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    let answer = asked.await.unwrap_or_else(|error| Err(error.to_string()));
    answer.map_err(|error| {
        DataplaneError::NoIptables(format!(
            "`iptables --version` does not tell a usable version: {error}; install iptables 1.8 or later (Debian: apt-get install iptables)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINT: &str = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const RULES: &str = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT\n";

    #[test]
    fn the_kubelet_decides_then_whoever_has_rules_then_nft() {
        for (nft, legacy, chosen) in [
            (HINT, RULES, Flavor::Nft),
            (RULES, HINT, Flavor::Legacy),
            ("", RULES, Flavor::Legacy),
            (RULES, RULES, Flavor::Nft),
            ("", "", Flavor::Nft),
        ] {
            assert_eq!(choose(nft, legacy).0, chosen, "{nft:?} {legacy:?}");
        }
    }
}
