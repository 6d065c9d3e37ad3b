//! What else has ports, from watches on NatNodes and Services, and from live reads of one of them.

use std::net::IpAddr;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::Client;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::admission::index::occupants::Occupant;
use crate::admission::index::occupants::Occupants;
use crate::admission::index::occupants::Place;
use crate::admission::index::occupants::Source;
use crate::api::crd::nat_node::NatNode;
use crate::api::crd::nat_node::PortInUse;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::watch::WATCH_SECONDS;
use crate::model::address::ExternalAddress;
use crate::model::holder::ObjectName;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// An object that can say that ports are taken.
pub trait Speaks:
    kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static
{
    /// The name of its resource in metrics and reasons.
    const PLURAL: &'static str;

    /// What it says.
    fn says(&self) -> Occupants;
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub enum News {
    /// This is all that there is.
    Listed(Vec<Occupants>),
    /// An object says this now.
    Set(Occupants),
    /// An object is gone.
    Gone(Source),
    /// The objects cannot be watched, for this reason; what was known stays.
    Failed(String),
}

/// Follows every object of a kind until it is dropped.
pub async fn follow<K: Speaks>(client: Client, mut tell: impl FnMut(News)) {
    let config = watcher::Config::default().page_size(500).timeout(WATCH_SECONDS);
    let mut events = watcher(Api::<K>::all(client), config).default_backoff().boxed();
    let mut listing = Vec::new();
    while let Some(event) = events.next().await {
        let news = match event {
            Ok(Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listing.push(object.says());
                continue;
            }
            Ok(Event::InitDone) => {
                info!(resource = K::PLURAL, count = listing.len(), "Listed");
                News::Listed(std::mem::take(&mut listing))
            }
            Ok(Event::Apply(object)) => News::Set(object.says()),
            Ok(Event::Delete(object)) => News::Gone(object.says().source),
            Err(error) if is_expired(&error) => {
                debug!(resource = K::PLURAL, "The watch starts anew");
                continue;
            }
            Err(error) => {
                let reason = describe_watch(&error);
                warn!(resource = K::PLURAL, reason, "Cannot list or watch; what is known stays");
                News::Failed(reason)
            }
        };
        tell(news);
    }
}

impl Speaks for NatNode {
    const PLURAL: &'static str = "natnodes";

    fn says(&self) -> Occupants {
        let name: Arc<str> = self.metadata.name.as_deref().unwrap_or_default().into();
        let source = Source::NatNode(Arc::clone(&name));
        let status = self.status.clone().unwrap_or_default();
        let address = |text: &String| text.parse::<IpAddr>().ok();
        let occupant = |port: &PortInUse| {
            let ports = PortRange::new(Port::new(port.first)?, Port::new(port.last)?)?;
            let places = if port.addresses.is_empty() {
                vec![Place::Node { name: Arc::clone(&name), is_v4_only: false }]
            } else {
                let place = |address: IpAddr| {
                    if address.is_unspecified() {
                        Place::Node { name: Arc::clone(&name), is_v4_only: address.is_ipv4() }
                    } else {
                        Place::Address(address)
                    }
                };
                port.addresses.iter().filter_map(address).map(place).collect()
            };
            let protocol = Protocol::from(port.protocol);
            let occupant =
                |place| Occupant { source: source.clone(), protocol, ports, place, by: "a program" };
            Some(places.into_iter().map(occupant).collect::<Vec<_>>())
        };
        Occupants {
            taken: status.ports_in_use.iter().filter_map(occupant).flatten().collect(),
            addresses: status
                .addresses
                .iter()
                .filter_map(|found| Some((address(&found.address)?, found.own)))
                .collect(),
            version: version(self),
            source,
        }
    }
}

impl Speaks for Service {
    const PLURAL: &'static str = "services";

    fn says(&self) -> Occupants {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        let source = Source::Service(ObjectName::new(namespace, name));
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingresses = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
        let external = |text: &String| {
            let address = text.parse().ok().and_then(|address| ExternalAddress::new(address).ok())?;
            Some(Place::Address(address.ip()))
        };
        let externals: Vec<_> = spec.external_ips.iter().flatten().filter_map(external).collect();
        let balanced: Vec<_> = ingresses.filter_map(|ingress| external(ingress.ip.as_ref()?)).collect();
        let mut taken = Vec::new();
        let mut take = |protocol, number: i32, place: &Place, by| {
            let number = u16::try_from(number).ok().and_then(Port::new);
            taken.extend(number.map(|number| Occupant {
                source: source.clone(),
                protocol,
                ports: PortRange::single(number),
                place: place.clone(),
                by,
            }));
        };
        for port in spec.ports.iter().flatten() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase().parse();
            let Ok(protocol) = protocol else { continue };
            if let Some(node_port) = port.node_port {
                take(protocol, node_port, &Place::EveryNode, "NodePort");
            }
            for place in &externals {
                take(protocol, port.port, place, "externalIPs");
            }
            for place in &balanced {
                take(protocol, port.port, place, "load balancer");
            }
        }
        if let Some(health) = spec.health_check_node_port {
            take(Protocol::Tcp, health, &Place::EveryNode, "healthCheckNodePort");
        }
        Occupants { version: version(self), source, taken, addresses: Vec::new() }
    }
}

fn version(object: &impl kube::Resource) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(occupants: &Occupants) -> Vec<String> {
        let said =
            |taken: &Occupant| format!("{} {} {} {:?}", taken.protocol, taken.ports, taken.by, taken.place);
        occupants.taken.iter().map(said).collect()
    }

    #[test]
    fn a_service_has_its_node_ports_and_the_ports_of_its_external_addresses() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"},
            "spec": {"externalIPs": ["198.51.100.9", "nonsense"], "healthCheckNodePort": 31999, "ports": [
                {"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.10"}, {"hostname": "lb.example.com"}]}},
        }))
        .unwrap();
        let says = service.says();
        assert_eq!(
            (says.source.clone(), says.version),
            (Source::Service(ObjectName::new("shop", "web")), Some(7))
        );
        assert_eq!(
            said(&says),
            [
                "tcp 30080 NodePort EveryNode",
                "tcp 80 externalIPs Address(198.51.100.9)",
                "tcp 80 load balancer Address(198.51.100.10)",
                "udp 53 externalIPs Address(198.51.100.9)",
                "udp 53 load balancer Address(198.51.100.10)",
                "tcp 31999 healthCheckNodePort EveryNode",
            ]
        );
        let plain = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"ports": [{"port": 80}], "healthCheckNodePort": 0}});
        assert!(serde_json::from_value::<Service>(plain).unwrap().says().taken.is_empty());
    }

    #[test]
    fn a_node_has_what_its_programs_listen_on() {
        let node: NatNode = serde_json::from_value(json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "NatNode", "metadata": {"name": "node-1"}, "spec": {},
            "status": {"addresses": [{"address": "203.0.113.7", "own": true, "public": true}], "portsInUse": [
                {"protocol": "TCP", "first": 22, "last": 22, "addresses": ["0.0.0.0"], "by": "Socket"},
                {"protocol": "UDP", "first": 500, "last": 501, "by": "Socket"},
                {"protocol": "TCP", "first": 80, "last": 80, "addresses": ["203.0.113.7"], "by": "Socket"},
            ]},
        }))
        .unwrap();
        let says = node.says();
        assert_eq!(says.addresses, [("203.0.113.7".parse().unwrap(), true)]);
        assert_eq!(
            said(&says),
            [
                r#"tcp 22 a program Node { name: "node-1", is_v4_only: true }"#,
                r#"udp 500-501 a program Node { name: "node-1", is_v4_only: false }"#,
                "tcp 80 a program Address(203.0.113.7)",
            ]
        );
    }
}
