//! A claim: what it is for, who holds it, how far it has come.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::allocation::key::ClaimKey;
use crate::allocation::key::ClaimNameError;
use crate::allocation::key::Claimed;
use crate::api::crd::port_claim::ClaimOrigin;
use crate::api::crd::port_claim::ClaimState;
use crate::api::crd::port_claim::PortClaim;
use crate::api::crd::port_claim::PortClaimSpec;
use crate::api::crd::shared::HolderReference;
use crate::api::crd::shared::Retention;
use crate::model::holder::Holder;

/// A claim as it is stored or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What it is for.
    pub key: ClaimKey,
    /// Who holds it.
    pub holder: Holder,
    /// The holder's UID when it was claimed, for people; empty where it was not known.
    pub holder_uid: String,
    /// Who handed it over to the holder and asks for it still.
    pub previous_holder: Option<Holder>,
    /// The pool that granted it.
    pub pool: Option<String>,
    /// How the port was chosen.
    pub origin: ClaimOrigin,
    /// Which of the holder's dynamic ports it is.
    pub slot: Option<String>,
    /// How far it has come.
    pub state: ClaimState,
    /// Since when.
    pub since: Timestamp,
    /// When a request last relied on it.
    pub renewed: Timestamp,
    /// The pod that the port leads to.
    pub pod_uid: Option<Arc<str>>,
    /// When it is given back.
    pub retention: Retention,
}

/// A claim with what makes a change of it conditional.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredClaim {
    /// The claim.
    pub claim: Claim,
    /// Which object it is, and which version of it.
    pub version: Version,
}

/// One version of one stored claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The claim's key.
    pub key: ClaimKey,
    /// The object's UID.
    pub uid: Arc<str>,
    /// The store's revision at its last change.
    pub revision: u64,
}

/// Why a stored object is not a claim of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Its name says nothing.
    #[error(transparent)]
    Name(#[from] ClaimNameError),
    /// Its name says one thing and its spec another.
    #[error(
        "the PortClaim {name} says in its spec that it is for {spec}; delete it, and Pinhole claims what is in use again"
    )]
    Differs {
        /// The name.
        name: String,
        /// What the spec says, as a name.
        spec: String,
    },
    /// It has no version, so that it was not stored.
    #[error("the PortClaim {0} has no resourceVersion: it was not read from an API server")]
    Unstored(String),
}

impl Claim {
    /// A claim that is made now and that nobody uses yet.
    pub fn reserve(key: ClaimKey, holder: Holder, now: Timestamp) -> Self {
        Self {
            key,
            holder,
            holder_uid: String::new(),
            previous_holder: None,
            pool: None,
            origin: ClaimOrigin::Static,
            slot: None,
            state: ClaimState::Reserved,
            since: now,
            renewed: now,
            pod_uid: None,
            retention: Retention::default(),
        }
    }

    /// Whether two claims are one and the same grant: of one holder, and where the port was found, for the same slot of it.
    pub fn is_same_grant(&self, other: &Self) -> bool {
        self.holder == other.holder && self.slot == other.slot
    }

    /// Whether this holder handed it over, and may serve it while no pod of the present one is ready. What was found for one pod
    /// is never handed over.
    pub fn is_lent_to(&self, holder: &Holder) -> bool {
        self.slot.is_none()
            && self.previous_holder.as_ref() == Some(holder)
            && matches!(self.state, ClaimState::Reserved | ClaimState::Bound)
    }

    /// Whether it gives this holder, and not one pod of it, its ports.
    pub fn is_relied_on_by(&self, holder: &Holder) -> bool {
        self.slot.is_none()
            && self.holder == *holder
            && matches!(self.state, ClaimState::Reserved | ClaimState::Bound)
    }

    /// The same claim in another state from now on; the same as before where it is in that state already.
    pub fn into_state(self, state: ClaimState, now: Timestamp) -> Self {
        if self.state == state { self } else { Self { state, since: now, ..self } }
    }

    /// The claim as an object of the API.
    pub fn to_object(&self) -> PortClaim {
        let Self {
            key,
            holder,
            holder_uid,
            previous_holder,
            pool,
            origin,
            slot,
            state,
            since,
            renewed,
            pod_uid,
            retention,
        } = self;
        let (protocol, range) = match key.claimed() {
            Claimed::Whole => (None, None),
            Claimed::Ports(protocol, block) => (Some(protocol), Some(block.range())),
        };
        let spec = PortClaimSpec {
            address: key.address().to_string(),
            protocol: protocol.map(Into::into),
            port: range.map(|range| range.first().get()),
            port_end: range.filter(|range| !range.is_single()).map(|range| range.last().get()),
            pool: pool.clone(),
            holder: HolderReference { uid: holder_uid.clone(), ..HolderReference::from(holder) },
            previous_holder: previous_holder.as_ref().map(HolderReference::from),
            origin: *origin,
            slot: slot.clone(),
            state: *state,
            since: *since,
            renewed: *renewed,
            pod_uid: pod_uid.as_deref().map(str::to_owned),
            retention: Some(retention.clone()).filter(|retention| *retention != Retention::default()),
        };
        PortClaim::new(&key.to_string(), spec)
    }
}

impl StoredClaim {
    /// Reads a claim of the API server.
    pub fn read(object: &PortClaim) -> Result<Self, ClaimError> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let key: ClaimKey = name.parse()?;
        let unstored = || ClaimError::Unstored(name.clone());
        let uid = object.metadata.uid.as_deref().ok_or_else(unstored)?.into();
        let revision = object.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        let PortClaimSpec {
            address: _,
            protocol: _,
            port: _,
            port_end: _,
            pool,
            holder,
            previous_holder,
            origin,
            slot,
            state,
            since,
            renewed,
            pod_uid,
            retention,
        } = object.spec.clone();
        let claim = Claim {
            key,
            holder: Holder::from(&holder),
            holder_uid: holder.uid,
            previous_holder: previous_holder.as_ref().map(Holder::from),
            pool,
            origin,
            slot,
            state,
            since,
            renewed,
            pod_uid: pod_uid.map(Into::into),
            retention: retention.unwrap_or_default(),
        };
        let said = claim.to_object().spec;
        let stored = &object.spec;
        let is_same = (&said.address, said.protocol, said.port, said.port_end)
            == (&stored.address, stored.protocol, stored.port, stored.port_end);
        if !is_same {
            let ports = [stored.port, stored.port_end].into_iter().flatten();
            let ports: Vec<_> = ports.map(|port| port.to_string()).collect();
            let spec = format!("{} {:?} {}", stored.address, stored.protocol, ports.join("-"));
            return Err(ClaimError::Differs { name, spec });
        }
        Ok(Self { claim, version: Version { key, uid, revision: revision.ok_or_else(unstored)? } })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::api::crd::shared::RetentionPolicy;
    use crate::model::holder::ObjectName;

    fn claim(name: &str) -> Claim {
        let holder = Holder::new("StatefulSet", ObjectName::new("games", "lobby"));
        Claim {
            previous_holder: Some(Holder::new("Pod", ObjectName::new("lobbies", "first"))),
            pool: Some("edge".to_owned()),
            origin: ClaimOrigin::Dynamic,
            slot: Some("lobby-0/udp/7777".to_owned()),
            pod_uid: Some("1".into()),
            holder_uid: "2".to_owned(),
            retention: Retention { policy: RetentionPolicy::Ttl, ttl_seconds: Some(60) },
            ..Claim::reserve(name.parse().unwrap(), holder, Timestamp::from_second(1_700_000_000).unwrap())
        }
    }

    fn stored(claim: &Claim) -> PortClaim {
        let object = claim.to_object();
        let metadata = ObjectMeta {
            uid: Some("3".to_owned()),
            resource_version: Some("41".to_owned()),
            ..object.metadata
        };
        PortClaim { metadata, spec: object.spec }
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        for name in
            ["v4-203-0-113-7-tcp-80", "v6-20010db8000000000000000000000001-udp-7008-7023", "v4-203-0-113-7"]
        {
            let claim = claim(name);
            let read = StoredClaim::read(&stored(&claim)).unwrap();
            assert_eq!((read.version.revision, &*read.version.uid), (41, "3"));
            assert_eq!(read.claim, claim);
        }
    }

    #[test]
    fn a_claim_that_contradicts_its_name_is_not_believed() {
        let mut object = stored(&claim("v4-203-0-113-7-tcp-80"));
        object.spec.port = Some(81);
        let error = StoredClaim::read(&object).unwrap_err().to_string();
        assert!(error.contains("v4-203-0-113-7-tcp-80") && error.contains("81"), "{error}");
        object.metadata.name = Some("mine".to_owned());
        assert!(StoredClaim::read(&object).unwrap_err().to_string().contains("not the name of a claim"));
    }
}
