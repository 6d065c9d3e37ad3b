//! What the agent tells of its node in its NatNode, and what an operator says there.
//!
//! The loop leaves a [`Situation`] whenever it has done something; the [`Clerk`] writes it beside the loop and never in its
//! way. It writes when what is stored says something else, at most every ten seconds, and every five minutes to show that
//! somebody is there. A cluster without NatNodes, or one that cannot be reached, keeps nothing from being programmed.

use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant as StdInstant;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::agent::addresses::Addresses;
use crate::agent::addresses::Own;
use crate::agent::listeners::Listeners;
use crate::api::crd::condition::Condition;
use crate::api::crd::condition::Said;
use crate::api::crd::nat_node::LinkInUse;
use crate::api::crd::nat_node::NatNodeStatus;
use crate::api::crd::nat_node::NodeAddress;
use crate::api::crd::nat_node::NodeMasquerade;
use crate::api::crd::nat_node::PortInUse;
use crate::api::crd::nat_node::ProgrammedEntries;
use crate::cluster::claim_store;
use crate::cluster::nat_nodes::Identity;
use crate::cluster::nat_nodes::NatNodes;
use crate::cluster::nat_nodes::Stored;
use crate::dataplane::condition::Condition as Blocker;
use crate::dataplane::condition::ConditionKind;
use crate::model::address::is_public;
use crate::ruleset::brake::MassRemoval;

/// How often the node's sockets are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// How long one write is from the next at least.
const PAUSE: Duration = Duration::from_secs(10);

/// How long a failed write is from the next.
const RETRY: Duration = Duration::from_secs(30);

/// How often it is written although nothing changed.
const HEARTBEAT: Duration = Duration::from_mins(5);

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most addresses that a NatNode holds.
const MOST_ADDRESSES: usize = 1024;

/// How the kernel is programmed, which does not change while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// nftables, iptables-nft or iptables-legacy.
    pub name: String,
    /// What the program behind it calls itself.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
}

/// How the node stands, as the loop knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Situation {
    /// Labels and UID of the Node.
    pub identity: Identity,
    /// The node's addresses.
    pub addresses: Addresses,
    /// Those that stand for "the node's own".
    pub own: Own,
    /// The links by which it reaches the outside.
    pub links: Vec<LinkInUse>,
    /// What became of the MasqueradePolicy that counts.
    pub masquerade: Option<NodeMasquerade>,
    /// Entries in the kernel that lead somewhere.
    pub entries: usize,
    /// Entries that should be there and are not.
    pub missing: usize,
    /// When the kernel was last changed.
    pub changed: Option<Timestamp>,
    /// Why the kernel does not have what it should.
    pub trouble: Option<String>,
    /// What keeps entries from working.
    pub blockers: Vec<Blocker>,
    /// A mass removal that is held back.
    pub withheld: Option<MassRemoval>,
    /// What an operator writes to `spec.resume` to let it happen.
    pub brake: Option<String>,
    /// Whether nothing is changed, because an operator said so.
    pub is_paused: bool,
}

/// What the loop has of the NatNode.
#[derive(Debug)]
pub struct Desk {
    situation_tx: watch::Sender<Option<Situation>>,
    stored_rx: watch::Receiver<Stored>,
}

impl Desk {
    /// A desk, and where what is left on it comes out.
    pub(crate) fn new(stored_rx: watch::Receiver<Stored>) -> (Self, watch::Receiver<Option<Situation>>) {
        // The agent's loop -> the clerk; only the last word counts.
        let (situation_tx, situation_rx) = watch::channel(None);
        (Self { situation_tx, stored_rx }, situation_rx)
    }

    /// Whether it is known what the operator wants of this node.
    pub fn is_known(&self) -> bool {
        *self.stored_rx.borrow() != Stored::Unknown
    }

    /// Whether the operator wants nothing to be changed.
    pub fn is_paused(&self) -> bool {
        matches!(&*self.stored_rx.borrow(), Stored::Present(object) if object.spec.paused)
    }

    /// Whether the operator lets the mass removal happen that this names.
    pub fn resumes(&self, brake: &str) -> bool {
        matches!(&*self.stored_rx.borrow(), Stored::Present(object) if object.spec.resume.as_deref() == Some(brake))
    }

    /// Waits for news of what the operator wants.
    pub async fn changed(&mut self) {
        if self.stored_rx.changed().await.is_err() {
            // Nobody will bring any.
            std::future::pending::<()>().await;
        }
    }

    /// Leaves what is to be written.
    pub fn leave(&self, situation: Situation) {
        self.situation_tx.send_replace(Some(situation));
    }
}

/// Writes the NatNode.
pub struct Clerk {
    nodes: NatNodes,
    backend: Backend,
    situation_rx: watch::Receiver<Option<Situation>>,
    stored_rx: watch::Receiver<Stored>,
    listeners: Listeners,
    /// The labels that were last written, to notice when one is to go.
    applied: Option<Identity>,
}

/// The desk of the loop, and the clerk who writes what is left there.
pub fn open(nodes: NatNodes, backend: Backend, stored_rx: watch::Receiver<Stored>) -> (Desk, Clerk) {
    let (desk, situation_rx) = Desk::new(stored_rx.clone());
    let clerk =
        Clerk { nodes, backend, situation_rx, stored_rx, listeners: Listeners::default(), applied: None };
    (desk, clerk)
}

impl Clerk {
    /// Writes until the loop has ended.
    pub async fn run(mut self) {
        let mut ports = Vec::new();
        let mut is_failing = false;
        let mut not_before = Instant::now();
        let mut look_at = Instant::now();
        loop {
            if look_at <= Instant::now() {
                look_at = Instant::now() + LOOK;
                ports = self.look().unwrap_or(ports);
            }
            if not_before <= Instant::now() {
                let written = tokio::time::timeout(PATIENCE, self.write(&ports)).await;
                let written = written.unwrap_or_else(|_| Err("the API server took too long".to_owned()));
                match written {
                    Ok(false) => {}
                    Ok(true) => not_before = Instant::now() + PAUSE,
                    Err(_) => not_before = Instant::now() + RETRY,
                }
                let has_failed = std::mem::replace(&mut is_failing, written.is_err());
                match written {
                    Err(reason) if !has_failed => warn!(
                        reason,
                        "The NatNode of this node cannot be written; what is programmed does not depend on it"
                    ),
                    Ok(_) if has_failed => info!("The NatNode can be written again"),
                    Ok(_) | Err(_) => {}
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(look_at.max(not_before)) => {}
                changed = self.situation_rx.changed() => if changed.is_err() { return },
                Ok(()) = self.stored_rx.changed() => {}
            }
        }
    }

    fn look(&mut self) -> Option<Vec<PortInUse>> {
        match self.listeners.look(StdInstant::now()) {
            Ok(ports) => Some(ports),
            Err(error) => {
                warn!(%error, "The node's sockets cannot be read; the ports in use stay as they were last seen");
                None
            }
        }
    }

    /// Writes what is stored otherwise; tells whether there was anything.
    async fn write(&mut self, ports: &[PortInUse]) -> Result<bool, String> {
        let Some(situation) = self.situation_rx.borrow().clone() else { return Ok(false) };
        let stored = self.stored_rx.borrow().clone();
        let stored = match stored {
            Stored::Unknown => return Ok(false),
            Stored::Absent => {
                self.nodes.create(&situation.identity).await?;
                self.applied = Some(situation.identity);
                // The status follows when the watch has shown it.
                return Ok(false);
            }
            Stored::Present(object) => object,
        };
        let identity = &situation.identity;
        let is_identified = self.applied.as_ref() == Some(identity) && self.nodes.has(&stored, identity);
        if !is_identified {
            self.nodes.apply_identity(identity).await?;
            self.applied = Some(identity.clone());
        }
        let before = stored.status.clone().unwrap_or_default();
        let generation = stored.metadata.generation;
        let now = claim_store::now();
        let status = status(&situation, &self.backend, ports, &before, generation, now);
        if is_same(&status, &before) && !is_due(before.last_report, now) {
            return Ok(!is_identified);
        }
        self.nodes.apply_status(&status).await?;
        Ok(true)
    }
}

/// Whether two reports say the same, whenever they were made and in whatever order they were stored.
fn is_same(status: &NatNodeStatus, before: &NatNodeStatus) -> bool {
    let mut before = before.clone();
    before.last_report = status.last_report;
    before.addresses.sort_by(|one, other| one.address.cmp(&other.address));
    before.conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    *status == before
}

fn is_due(last_report: Option<Timestamp>, now: Timestamp) -> bool {
    last_report.and_then(|last| last.checked_add(HEARTBEAT).ok()).is_none_or(|due| due <= now)
}

/// What a NatNode is to say.
fn status(
    situation: &Situation,
    backend: &Backend,
    ports: &[PortInUse],
    before: &NatNodeStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> NatNodeStatus {
    let Situation { addresses, own, entries, missing, changed, .. } = situation;
    let own = [own.v4.map(IpAddr::V4), own.v6.map(IpAddr::V6)];
    let own: Vec<IpAddr> = own.into_iter().flatten().collect();
    let shown: Vec<_> = own.iter().map(ToString::to_string).collect();
    let mut found: Vec<_> = addresses.all().chain(own.iter().copied()).collect();
    found.sort_by_key(ToString::to_string);
    found.dedup();
    let address = |ip: IpAddr| NodeAddress {
        address: ip.to_string(),
        interface: String::new(),
        public: is_public(ip),
        own: own.contains(&ip),
    };
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let since = changed.or_else(|| before.programmed.as_ref()?.since);
    let mut conditions = Condition::all(conditions_of(situation), &before.conditions, generation, now);
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    NatNodeStatus {
        observed_generation: generation,
        address: shown.join(","),
        addresses: found.into_iter().take(MOST_ADDRESSES).map(address).collect(),
        links: situation.links.clone(),
        ports_in_use: ports.to_vec(),
        backend: backend.name.clone(),
        backend_version: backend.version.clone(),
        kernel_version: backend.kernel.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        programmed: Some(ProgrammedEntries { entries: count(*entries), missing: count(*missing), since }),
        masquerade: situation.masquerade.clone(),
        brake: situation.brake.clone(),
        last_report: Some(now),
        conditions,
    }
}

fn conditions_of(situation: &Situation) -> Vec<Said<'static>> {
    let Situation { trouble, withheld, is_paused, .. } = situation;
    let paused =
        "spec.paused is true: nothing in the kernel is changed; set it to false when the work on the node is done"
            .to_owned();
    let ready = match (is_paused, trouble) {
        (true, _) => ("Ready", false, "Paused", paused.clone()),
        (false, Some(trouble)) => ("Ready", false, "NotProgrammed", trouble.clone()),
        (false, None) => ("Ready", true, "Programmed", String::new()),
    };
    let braked = match withheld {
        Some(removal) => {
            let fix = "if it is meant, kubectl pinhole resume --node with this name lets it happen now; the agent's log says when \
                       it happens by itself";
            ("Braked", true, "MassRemoval", format!("{removal}; {fix}"))
        }
        None => ("Braked", false, "NoMassRemoval", String::new()),
    };
    let paused = match is_paused {
        true => ("Paused", true, "Requested", paused),
        false => ("Paused", false, "NotRequested", String::new()),
    };
    let blockers = ConditionKind::ALL.map(|kind| {
        let found = situation.blockers.iter().filter(|blocker| blocker.kind == kind);
        let found: Vec<_> = found.map(|Blocker { message, fix, .. }| format!("{message}; {fix}")).collect();
        let reason = if found.is_empty() { "NotFound" } else { "Found" };
        (kind.name(), !found.is_empty(), reason, found.join("; "))
    });
    [ready, braked, paused].into_iter().chain(blockers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd::condition::ConditionStatus;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn situation() -> Situation {
        Situation {
            addresses: Addresses {
                lasting: ["203.0.113.7", "10.0.0.7"].map(|ip| ip.parse().unwrap()).into(),
                ..Addresses::default()
            },
            own: Own { v4: Some([203, 0, 113, 7].into()), ..Own::default() },
            entries: 3,
            ..Situation::default()
        }
    }

    fn report(situation: &Situation, before: &NatNodeStatus, second: i64) -> NatNodeStatus {
        status(situation, &Backend::default(), &[], before, Some(1), at(second))
    }

    fn condition<'s>(status: &'s NatNodeStatus, type_: &str) -> &'s Condition {
        Condition::find(&status.conditions, type_).unwrap()
    }

    #[test]
    fn a_report_says_what_the_node_is_and_has() {
        let status = report(&situation(), &NatNodeStatus::default(), 5);
        assert_eq!(status.address, "203.0.113.7");
        let addresses: Vec<_> =
            status.addresses.iter().map(|found| (found.address.as_str(), found.public, found.own)).collect();
        assert_eq!(addresses, [("10.0.0.7", false, false), ("203.0.113.7", true, true)]);
        assert_eq!(status.programmed.as_ref().unwrap().entries, 3);
        assert_eq!(condition(&status, "Ready").status, ConditionStatus::True);
    }

    #[test]
    fn nothing_is_written_again_that_is_stored_already_except_to_show_that_somebody_is_there() {
        let stored = report(&situation(), &NatNodeStatus::default(), 5);
        let again = report(&situation(), &stored, 65);
        assert!(is_same(&again, &stored) && !is_due(stored.last_report, at(65)));
        assert!(is_due(stored.last_report, at(305)));
        let changed = report(&Situation { entries: 4, ..situation() }, &stored, 65);
        assert!(!is_same(&changed, &stored));
        let mut shuffled = stored.clone();
        shuffled.addresses.reverse();
        shuffled.conditions.reverse();
        assert!(is_same(&again, &shuffled));
    }

    #[test]
    fn a_paused_node_says_so_and_since_when() {
        let before = report(&situation(), &NatNodeStatus::default(), 5);
        let paused = report(&Situation { is_paused: true, ..situation() }, &before, 65);
        assert_eq!(condition(&paused, "Paused").status, ConditionStatus::True);
        let ready = condition(&paused, "Ready");
        assert_eq!((ready.status, ready.reason.as_str()), (ConditionStatus::False, "Paused"));
        assert_eq!(ready.last_transition_time, at(65));
        assert_eq!(condition(&paused, "Braked").last_transition_time, at(5));
        let again = report(&situation(), &paused, 70);
        assert_eq!(condition(&again, "Ready").last_transition_time, at(70));
    }

    #[test]
    fn what_keeps_entries_from_working_and_what_is_held_back_are_conditions() {
        let blocker = Blocker {
            kind: ConditionKind::ForwardBlocked,
            message: "a rule drops".into(),
            fix: "remove it".into(),
        };
        let situation = Situation {
            blockers: vec![blocker],
            withheld: Some(MassRemoval { removed: 30, present: 40 }),
            brake: Some("2026-03-01T10:00:00Z".to_owned()),
            trouble: Some("the kernel says no".into()),
            changed: Some(at(3)),
            ..situation()
        };
        let status = report(&situation, &NatNodeStatus::default(), 5);
        assert_eq!(condition(&status, "ForwardBlocked").message, "a rule drops; remove it");
        assert_eq!(condition(&status, "Braked").status, ConditionStatus::True);
        assert_eq!(condition(&status, "Ready").message, "the kernel says no");
        let braked = &condition(&status, "Braked").message;
        assert!(braked.starts_with("30 of 40 entries would be removed at once; if it is meant"), "{braked}");
        assert_eq!(status.brake.as_deref(), Some("2026-03-01T10:00:00Z"));
        let later = report(&Situation { changed: None, ..situation }, &status, 9);
        assert_eq!(later.programmed.unwrap().since, Some(at(3)), "an agent that starts again keeps the time");
    }
}
