//! Where our own certificate authority lives in the cluster: its state in one Secret, its trust in our two webhook
//! configurations.
//!
//! # Guarantees
//! Every read is a live one. Every write is conditional on the object being the one that was read: of two writers, one
//! wins and the other reads again. Of a configuration only the `caBundle` of webhooks that are there is written, by
//! server-side apply under our own field manager, and only when it differs in meaning.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::admissionregistration::v1::WebhookClientConfig;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use serde_json::Value;
use serde_json::json;
use thiserror::Error;

use crate::certificates::bundle::Bundle;
use crate::certificates::rotation::Configuration;
use crate::certificates::rotation::State;
use crate::certificates::stored;
use crate::certificates::stored::StoredError;
use crate::cluster::trouble::describe;

/// Asks for a new authority before it is due: any value of this annotation on the Secret. Removed when heard.
pub const ROTATE: &str = "pinhole.dev/rotate";

/// Who we are in a configuration's managed fields.
const FIELD_MANAGER: &str = "pinhole-webhook";

/// Annotations by which cert-manager's injector is told to write a configuration's bundles.
const INJECTORS: [&str; 3] = [
    "cert-manager.io/inject-ca-from",
    "cert-manager.io/inject-ca-from-secret",
    "cert-manager.io/inject-apiserver-ca",
];

/// Why the cluster could not be read or written.
#[derive(Debug, Error)]
pub enum CaStoreError {
    /// The Secret cannot be read.
    #[error("reading the Secret {secret} failed: {reason}")]
    ReadSecret {
        /// Which Secret.
        secret: String,
        /// What the API server said.
        reason: String,
    },
    /// The Secret cannot be written.
    #[error("writing the certificate authority into the Secret {secret} failed: {reason}")]
    WriteSecret {
        /// Which Secret.
        secret: String,
        /// What the API server said.
        reason: String,
    },
    /// The Secret is not there, and we may not make it.
    #[error(
        "the Secret {secret} does not exist and cannot be created: {reason}; apply the chart or the manifests again, or \
         run: kubectl create secret generic -n {namespace} {name}",
        namespace = secret.split('/').next().unwrap_or_default(), name = secret.split('/').next_back().unwrap_or_default()
    )]
    CreateSecret {
        /// Which Secret.
        secret: String,
        /// What the API server said.
        reason: String,
    },
    /// The Secret holds something else.
    #[error(
        "the Secret {secret} holds no certificate authority that can be used: {source}; nothing is overwritten. Delete the \
         Secret to begin with a new authority; what is trusted now stays so for a while"
    )]
    Malformed {
        /// Which Secret.
        secret: String,
        /// What is wrong.
        source: StoredError,
    },
    /// A configuration cannot be read.
    #[error("reading {configuration} failed: {reason}")]
    ReadConfiguration {
        /// Which configuration.
        configuration: String,
        /// What the API server said.
        reason: String,
    },
    /// A configuration cannot be written.
    #[error("writing the caBundle of {configuration} failed: {reason}")]
    WriteConfiguration {
        /// Which configuration.
        configuration: String,
        /// What the API server said.
        reason: String,
    },
}

/// The Secret as it was read.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What it holds; `None` when it is empty or not there.
    pub state: Option<State>,
    /// Whether somebody asks for a new authority.
    pub is_asked_for: bool,
    secret: Option<Secret>,
}

/// A configuration as it was read.
#[derive(Clone, Debug)]
pub struct Found {
    /// What the state machine looks at.
    pub configuration: Configuration,
    /// The annotation by which another program was told to write the bundles, when there is one.
    pub injector: Option<&'static str>,
    kind: Kind,
    resource_version: Option<String>,
    webhooks: Vec<String>,
}

/// Reads and writes the authority of one installation.
#[derive(Clone)]
pub struct CaStore {
    client: Client,
    namespace: String,
    secret: String,
    configuration: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mutating,
    Validating,
}

impl Stored {
    /// Another text after each write of the Secret; empty when it is not there.
    pub fn version(&self) -> &str {
        let version = self.secret.as_ref().and_then(|secret| secret.metadata.resource_version.as_deref());
        version.unwrap_or_default()
    }
}

impl CaStore {
    /// The authority in the Secret `namespace/secret`, trusted by the two configurations of the name `configuration`.
    pub fn new(client: Client, namespace: String, secret: String, configuration: String) -> Self {
        Self { client, namespace, secret, configuration }
    }

    /// The Secret's namespace and name.
    pub fn secret_name(&self) -> String {
        format!("{}/{}", self.namespace, self.secret)
    }

    /// The configurations that exist. Read them before the Secret: what is decided on a state must never be written
    /// over a configuration that is newer than it.
    pub async fn configurations(&self) -> Result<Vec<Found>, CaStoreError> {
        let failed = |kind: Kind| {
            move |error: kube::Error| CaStoreError::ReadConfiguration {
                configuration: kind.object(&self.configuration),
                reason: describe(&error),
            }
        };
        let mut found = Vec::new();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let mutating = mutating.get_opt(&self.configuration).await.map_err(failed(Kind::Mutating))?;
        if let Some(object) = mutating {
            let webhooks = object.webhooks.unwrap_or_default();
            let webhooks = webhooks.into_iter().map(|webhook| (webhook.name, webhook.client_config));
            found.push(Found::new(Kind::Mutating, object.metadata, webhooks));
        }
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let validating = validating.get_opt(&self.configuration).await.map_err(failed(Kind::Validating))?;
        if let Some(object) = validating {
            let webhooks = object.webhooks.unwrap_or_default();
            let webhooks = webhooks.into_iter().map(|webhook| (webhook.name, webhook.client_config));
            found.push(Found::new(Kind::Validating, object.metadata, webhooks));
        }
        Ok(found)
    }

    /// What is stored.
    pub async fn stored(&self) -> Result<Stored, CaStoreError> {
        let secret = self.secrets().get_opt(&self.secret).await.map_err(|error| {
            CaStoreError::ReadSecret { secret: self.secret_name(), reason: describe(&error) }
        })?;
        let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
        let data = data.into_iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
        let state = stored::decode(&data)
            .map_err(|source| CaStoreError::Malformed { secret: self.secret_name(), source })?;
        let annotations = secret.as_ref().and_then(|secret| secret.metadata.annotations.as_ref());
        let is_asked_for = annotations.is_some_and(|annotations| annotations.contains_key(ROTATE));
        Ok(Stored { state, is_asked_for, secret })
    }

    /// Stores `state` in place of what was read; `None` when somebody else has stored something meanwhile.
    pub async fn store(&self, state: State, read: &Stored) -> Result<Option<Stored>, CaStoreError> {
        let data = stored::encode(&state).into_iter().map(|(key, value)| (key, ByteString(value))).collect();
        let written = if let Some(mut secret) = read.secret.clone() {
            secret.data = Some(data);
            if let Some(annotations) = &mut secret.metadata.annotations {
                annotations.remove(ROTATE);
            }
            self.secrets().replace(&self.secret, &PostParams::default(), &secret).await
        } else {
            let metadata = ObjectMeta { name: Some(self.secret.clone()), ..ObjectMeta::default() };
            let secret = Secret { metadata, data: Some(data), ..Secret::default() };
            self.secrets().create(&PostParams::default(), &secret).await
        };
        match written {
            Ok(secret) => Ok(Some(Stored { state: Some(state), is_asked_for: false, secret: Some(secret) })),
            // Changed, or made, or deleted by somebody else.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(None),
            Err(error) => {
                let (secret, reason) = (self.secret_name(), describe(&error));
                Err(match read.secret {
                    Some(_) => CaStoreError::WriteSecret { secret, reason },
                    None => CaStoreError::CreateSecret { secret, reason },
                })
            }
        }
    }

    /// Writes the bundles that `state` wants into a configuration that was read before the state was; false when it
    /// has changed meanwhile.
    pub async fn publish(&self, found: &Found, state: &State) -> Result<bool, CaStoreError> {
        let patch = Patch::Apply(found.patch(&self.configuration, state));
        // A bundle that somebody wrote by hand is ours now, whoever the field belonged to.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = match found.kind {
            Kind::Mutating => {
                let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
                api.patch(&self.configuration, &params, &patch).await.map(|_| ())
            }
            Kind::Validating => {
                let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
                api.patch(&self.configuration, &params, &patch).await.map(|_| ())
            }
        };
        match written {
            Ok(()) => Ok(true),
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(false),
            Err(error) => Err(CaStoreError::WriteConfiguration {
                configuration: found.configuration.name.clone(),
                reason: describe(&error),
            }),
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl Found {
    fn new(
        kind: Kind,
        metadata: ObjectMeta,
        webhooks: impl Iterator<Item = (String, WebhookClientConfig)>,
    ) -> Self {
        let annotations = metadata.annotations.unwrap_or_default();
        let injector = INJECTORS.into_iter().find(|injector| annotations.contains_key(*injector));
        let (webhooks, bundles) =
            webhooks.map(|(name, client_config)| (name, bundle_of(&client_config))).unzip();
        let name = kind.object(&metadata.name.unwrap_or_default());
        let version =
            format!("{}.{}", metadata.uid.unwrap_or_default(), metadata.generation.unwrap_or_default());
        Self {
            configuration: Configuration { name, version, bundles },
            injector,
            kind,
            resource_version: metadata.resource_version,
            webhooks,
        }
    }

    fn patch(&self, name: &str, state: &State) -> Value {
        let webhooks = self.webhooks.iter().zip(&self.configuration.bundles).map(|(name, present)| {
            let bundle = ByteString(state.wanted(present).pem().into_bytes());
            json!({ "name": name, "clientConfig": { "caBundle": bundle } })
        });
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": self.kind.name(),
            "metadata": { "name": name, "resourceVersion": self.resource_version },
            "webhooks": webhooks.collect::<Vec<_>>(),
        })
    }
}

/// What is no certificate trusts nobody.
fn bundle_of(client_config: &WebhookClientConfig) -> Bundle {
    let bytes = client_config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice()).unwrap_or_default();
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    Bundle::parse(text).unwrap_or_default()
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Mutating => "MutatingWebhookConfiguration",
            Self::Validating => "ValidatingWebhookConfiguration",
        }
    }

    fn object(self, name: &str) -> String {
        format!("{}/{name}", self.name())
    }
}
