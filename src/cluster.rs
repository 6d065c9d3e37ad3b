//! The Kubernetes side: the API server's client, watches that feed the index, and live reads.
//!
//! Nothing here judges. Watches and reads turn what the API server says into the slim objects that the pure rules
//! read. This is the only module, beside the events of the agent, that talks to the API server.

pub mod access;
pub mod asking_pods;
pub mod backends;
pub mod ca_store;
pub mod changes;
pub mod claim_store;
pub mod claim_watch;
pub mod client;
pub mod events;
pub mod every;
pub mod evidence;
pub mod history_store;
pub mod informers;
pub mod lacking_workloads;
pub mod lease;
pub mod live;
pub mod masquerade_policies;
pub mod masquerading_nodes;
pub mod nat_nodes;
pub mod nat_pools;
pub mod node_pods;
pub mod occupants;
mod patching;
pub mod pinhole_reports;
pub mod pinhole_store;
pub mod pinhole_watch;
pub mod pod_access;
pub mod pod_networks;
pub mod pod_writer;
pub mod reader;
pub mod removal;
pub mod resource;
mod trouble;
pub mod watch;
pub mod workload_writer;
