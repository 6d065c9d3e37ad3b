//! The flags of `--tls-mode self`: where the webhook keeps its own certificate authority, and how long things last.

use std::time::Duration;

use clap::Args;
use kube::Client;

use crate::certificates::rotation::Times;
use crate::cli::duration;
use crate::cluster::ca_store::CaStore;

/// Where the authority is and how long it lasts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Certificate authority of --tls-mode self")]
pub(crate) struct AuthorityFlags {
    /// The Secret that holds the authority. Default namespace: the webhook's own.
    #[arg(
        long,
        value_name = "[NAMESPACE/]NAME",
        default_value = "pinhole-webhook-ca",
        env = "PINHOLE_CA_SECRET"
    )]
    ca_secret: String,

    /// The name of the two webhook configurations that are given the authority's certificate.
    #[arg(long, value_name = "NAME", default_value = "pinhole", env = "PINHOLE_WEBHOOK_CONFIGURATION")]
    webhook_configuration: String,

    /// How long an authority is valid. Its successor is made when two thirds have passed.
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = duration::parse,
          env = "PINHOLE_CA_LIFETIME")]
    ca_lifetime: Duration,

    /// How long API servers have to learn of a new authority before certificates of it are served.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration::parse,
          env = "PINHOLE_CA_SOAK")]
    ca_soak: Duration,

    /// How long the old authority stays trusted after that. Not shorter than --leaf-lifetime.
    #[arg(long, value_name = "DURATION", default_value = "192h", value_parser = duration::parse,
          env = "PINHOLE_CA_RETIRE_AFTER")]
    ca_retire_after: Duration,

    /// How long a replica's certificate is valid. It is renewed when two thirds have passed.
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration::parse,
          env = "PINHOLE_LEAF_LIFETIME")]
    leaf_lifetime: Duration,
}

impl AuthorityFlags {
    /// The store in this cluster, and the times.
    pub(crate) fn into_parts(self, client: Client) -> anyhow::Result<(CaStore, Times)> {
        let Self { ca_secret, webhook_configuration, ca_lifetime, ca_soak, ca_retire_after, leaf_lifetime } =
            self;
        let times = Times { ca_lifetime, soak: ca_soak, retire_after: ca_retire_after, leaf_lifetime };
        times.check()?;
        let (namespace, name) = ca_secret.split_once('/').unwrap_or((client.default_namespace(), &ca_secret));
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Ok((CaStore::new(client, namespace, name, webhook_configuration), times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    fn client() -> Client {
        let mut config = kube::Config::new("https://203.0.113.1:6443".parse().unwrap());
        config.default_namespace = "ours".to_owned();
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_from(config).unwrap()
    }

    fn parts(arguments: &[&str]) -> Result<(CaStore, Times), String> {
        let flags = testing::parse::<AuthorityFlags>(arguments)?;
        flags.into_parts(client()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_default_times_break_no_call() {
        let (store, times) = parts(&[]).unwrap();
        assert_eq!(times.check(), Ok(()));
        assert_eq!(times.poll(), Duration::from_mins(1));
        assert_eq!(store.secret_name(), "ours/pinhole-webhook-ca");
    }

    #[tokio::test]
    async fn the_secret_may_be_in_another_namespace_and_times_must_fit_together() {
        let (store, _) = parts(&["--ca-secret=theirs/ca"]).unwrap();
        assert_eq!(store.secret_name(), "theirs/ca");
        let error = parts(&["--ca-retire-after=1h"]).err().unwrap();
        assert!(error.starts_with("--ca-retire-after must not be shorter than --leaf-lifetime"), "{error}");
    }
}
