//! From the flags to the controllers: which cluster, as whom, by which way.

use std::{env, fs, time::Duration};

use anyhow::{Context as _, bail};
use kube::{Client, Config, config::Kubeconfig};

use super::{
    address::ControllerAddress,
    args::{AccessArgs, RequestTimeout},
    config::{Choice, DEFAULT_NAMESPACE, Files},
    controllers::{Controllers, PATIENCE, Way},
    credential::Credential,
};

/// How long the API server may take to take a connection.
const API_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What every command needs.
pub(crate) struct Access {
    /// Of the target, if it has one.
    pub(crate) namespace: String,
    pub(crate) controllers: Controllers,
    /// For a person: how it came to be.
    pub(crate) origin: String,
}

impl Access {
    /// Reads the kubeconfig; asks nobody but its credential plug-in.
    ///
    /// # Errors
    /// The cluster, the user or the way cannot be told.
    pub(crate) async fn open(args: &AccessArgs) -> anyhow::Result<Self> {
        let found = Found::look(args).await?;
        let authority = match &args.remora_ca {
            Some(path) => Some(
                fs::read(path)
                    .with_context(|| format!("--remora-ca {} cannot be read", path.display()))?,
            ),
            None => None,
        };
        let credential = match &found.config {
            Some(config) => Credential::of(config)?,
            None => Credential::none(),
        };
        let way = match (&args.controller, &found.config) {
            (Some(address), _) => Way::Direct {
                address: address.clone(),
                authority,
            },
            (None, Some(config)) => Way::Forwarded {
                client: Client::try_from(config.clone())
                    .context("the API server cannot be called")?,
                namespace: args.remora_namespace.clone(),
                authority,
            },
            (None, None) => bail!(
                "no kubeconfig: set KUBECONFIG or use --kubeconfig FILE; --controller names a \
                 controller without one"
            ),
        };
        let patience = match args.request_timeout {
            Some(RequestTimeout(patience)) => patience,
            None => Some(PATIENCE),
        };
        Ok(Self {
            namespace: args.namespace.clone().unwrap_or(found.namespace),
            controllers: Controllers::new(way, credential, patience),
            origin: found.origin,
        })
    }
}

/// What the files and the flags say.
struct Found {
    config: Option<Config>,
    namespace: String,
    origin: String,
}

impl Found {
    async fn look(args: &AccessArgs) -> anyhow::Result<Self> {
        let found = Self::look_everywhere(args).await;
        let named = args.kubeconfig.is_some() || args.context.is_some() || args.user.is_some();
        match (found, &args.controller) {
            // Who names the controller may have no kubeconfig, or a useless one.
            (Err(_) | Ok(None), Some(_)) if !named => Self::nothing(args).await,
            (found, address) => Ok(found?.unwrap_or_else(|| Self {
                config: None,
                namespace: DEFAULT_NAMESPACE.into(),
                origin: origin(address.as_ref(), "no kubeconfig".into()),
            })),
        }
    }

    /// Without a kubeconfig there still may be a token.
    async fn nothing(args: &AccessArgs) -> anyhow::Result<Self> {
        let config = match &args.token {
            // Nothing is sent to this server: it makes the user whole.
            Some(_) => {
                let args = AccessArgs {
                    server: Some("https://localhost".into()),
                    context: None,
                    cluster: None,
                    ..args.clone()
                };
                Some(Choice::of(&Kubeconfig::default(), &args)?.config().await?)
            }
            None => None,
        };
        Ok(Self {
            config,
            namespace: DEFAULT_NAMESPACE.into(),
            origin: origin(args.controller.as_ref(), "no kubeconfig".into()),
        })
    }

    async fn look_everywhere(args: &AccessArgs) -> anyhow::Result<Option<Self>> {
        let kubeconfig = match Files::of_process(args).read()? {
            Some(kubeconfig) => kubeconfig,
            None if args.server.is_some() => Kubeconfig::default(),
            None if env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
                return Ok(Some(Self::in_cluster(args)?));
            }
            None => return Ok(None),
        };
        let choice = Choice::of(&kubeconfig, args)?;
        let mut config = choice.config().await?;
        config.connect_timeout = Some(API_CONNECT_TIMEOUT);
        let context = args
            .context
            .as_ref()
            .or(kubeconfig.current_context.as_ref());
        let what = match context {
            Some(context) => format!("context {context}, server {}", config.cluster_url),
            None => format!("server {}", config.cluster_url),
        };
        Ok(Some(Self {
            namespace: choice.namespace().to_owned(),
            origin: origin(args.controller.as_ref(), what),
            config: Some(config),
        }))
    }

    /// The service account of the pod that this runs in.
    fn in_cluster(args: &AccessArgs) -> anyhow::Result<Self> {
        let mut config = Config::incluster().context("the service account of this pod")?;
        config.connect_timeout = Some(API_CONNECT_TIMEOUT);
        if let Some(token) = &args.token {
            config.auth_info.token = Some(token.clone().into());
            config.auth_info.token_file = None;
        }
        Ok(Self {
            namespace: config.default_namespace.clone(),
            origin: origin(
                args.controller.as_ref(),
                "this pod's service account".into(),
            ),
            config: Some(config),
        })
    }
}

fn origin(controller: Option<&ControllerAddress>, what: String) -> String {
    match controller {
        Some(address) => format!("{what}, controller {address}"),
        None => what,
    }
}
