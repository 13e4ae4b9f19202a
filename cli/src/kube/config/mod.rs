//! The cluster that the user means: kubeconfig files, merged as kubectl merges them, and the flags.
//!
//! ```text
//! --kubeconfig FILE, or else each file of KUBECONFIG that is there, or else ~/.kube/config
//!   ▶ the first that says a thing wins ▶ --context, --cluster, --user choose ▶ other flags overwrite
//! none of the files there: the service account of the pod that this runs in
//! ```

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use kube::config::{
    AuthInfo, Cluster, Config, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster,
    NamedContext,
};

use super::args::AccessArgs;

/// Namespace of who names none.
pub(super) const DEFAULT_NAMESPACE: &str = "default";
/// Name of the one context that is left when all is chosen.
const CHOSEN: &str = "chosen";

/// Where kubeconfig files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// This one, which must be there.
    Named(PathBuf),
    /// Those of them that are there.
    Usual(Vec<PathBuf>),
}

impl Files {
    /// Those of this process.
    pub(crate) fn of_process(args: &AccessArgs) -> Self {
        Self::of(
            args.kubeconfig.as_deref(),
            env::var_os("KUBECONFIG").as_deref(),
            env::home_dir().as_deref(),
        )
    }

    fn of(flag: Option<&Path>, variable: Option<&OsStr>, home: Option<&Path>) -> Self {
        if let Some(path) = flag {
            return Self::Named(path.to_owned());
        }
        let listed: Vec<PathBuf> = variable
            .map(|paths| env::split_paths(paths).collect::<Vec<_>>())
            .unwrap_or_default()
            .into_iter()
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        if listed.is_empty() {
            return Self::Usual(
                home.map(|home| home.join(".kube/config"))
                    .into_iter()
                    .collect(),
            );
        }
        Self::Usual(listed)
    }

    /// What they say together; `None` if none is there.
    ///
    /// # Errors
    /// One of them is not a kubeconfig, or the named one is not there.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Kubeconfig>> {
        let paths = match self {
            Self::Named(path) => std::slice::from_ref(path),
            Self::Usual(paths) => paths.as_slice(),
        };
        let mut merged: Option<Kubeconfig> = None;
        for path in paths {
            if matches!(self, Self::Usual(_)) && !path.exists() {
                continue;
            }
            let mut read = Kubeconfig::read_from(path)
                .with_context(|| format!("the kubeconfig {} cannot be read", path.display()))?;
            // `current-context: ""` says nothing.
            read.current_context = read.current_context.filter(|name| !name.is_empty());
            merged = Some(match merged {
                None => read,
                Some(merged) => merged
                    .merge(read)
                    .with_context(|| format!("the kubeconfig {}", path.display()))?,
            });
        }
        Ok(merged)
    }
}

/// Which cluster is meant, and what of it was chosen.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) context: Context,
    pub(crate) cluster: Cluster,
    pub(crate) user: AuthInfo,
}

impl Choice {
    /// What the flags choose of `kubeconfig`, with what they overwrite.
    ///
    /// # Errors
    /// A name is not in it, or no cluster is chosen.
    pub(crate) fn of(kubeconfig: &Kubeconfig, args: &AccessArgs) -> anyhow::Result<Self> {
        let context = context(kubeconfig, args)?;
        let cluster_name = args.cluster.as_deref().unwrap_or(&context.cluster);
        let cluster = kubeconfig
            .clusters
            .iter()
            .find(|cluster| cluster.name == cluster_name)
            .and_then(|cluster| cluster.cluster.clone());
        let mut cluster = match cluster {
            Some(cluster) => cluster,
            // The address is all that is needed.
            None if args.cluster.is_none() && args.server.is_some() => Cluster::default(),
            None => bail!(
                "no cluster `{cluster_name}` in the kubeconfig{}",
                there(kubeconfig.clusters.iter().map(|cluster| &cluster.name))
            ),
        };
        let user_name = args.user.as_deref().or(context.user.as_deref());
        let user = kubeconfig
            .auth_infos
            .iter()
            .find(|user| Some(user.name.as_str()) == user_name)
            .and_then(|user| user.auth_info.clone());
        let mut user = match (user, &args.user) {
            (None, Some(name)) => bail!(
                "no user `{name}` in the kubeconfig{}",
                there(kubeconfig.auth_infos.iter().map(|user| &user.name))
            ),
            // As kubectl: who names nobody is anonymous.
            (user, _) => user.unwrap_or_default(),
        };
        overwrite_cluster(&mut cluster, args)?;
        overwrite_user(&mut user, args)?;
        Ok(Self {
            context,
            cluster,
            user,
        })
    }

    /// Namespace of who names none.
    pub(crate) fn namespace(&self) -> &str {
        let namespace = self.context.namespace.as_deref();
        namespace
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or(DEFAULT_NAMESPACE)
    }

    /// For a client of the API server.
    ///
    /// # Errors
    /// An address, certificate or key is not one.
    pub(crate) async fn config(&self) -> anyhow::Result<Config> {
        let kubeconfig = Kubeconfig {
            clusters: vec![NamedCluster {
                name: CHOSEN.into(),
                cluster: Some(self.cluster.clone()),
                ..NamedCluster::default()
            }],
            auth_infos: vec![NamedAuthInfo {
                name: CHOSEN.into(),
                auth_info: Some(self.user.clone()),
                ..NamedAuthInfo::default()
            }],
            contexts: vec![NamedContext {
                name: CHOSEN.into(),
                context: Some(Context {
                    cluster: CHOSEN.into(),
                    user: Some(CHOSEN.into()),
                    ..self.context.clone()
                }),
                ..NamedContext::default()
            }],
            current_context: Some(CHOSEN.into()),
            ..Kubeconfig::default()
        };
        let options = KubeConfigOptions::default();
        Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .context("the kubeconfig cannot be used")
    }
}

fn context(kubeconfig: &Kubeconfig, args: &AccessArgs) -> anyhow::Result<Context> {
    let name = args
        .context
        .as_deref()
        .or(kubeconfig.current_context.as_deref());
    let Some(name) = name else {
        if args.server.is_some() || args.cluster.is_some() {
            return Ok(Context::default());
        }
        bail!(
            "no context is chosen: use --context, or `kubectl config use-context NAME`{}",
            there(kubeconfig.contexts.iter().map(|context| &context.name))
        );
    };
    kubeconfig
        .contexts
        .iter()
        .find(|context| context.name == name)
        .and_then(|context| context.context.clone())
        .with_context(|| {
            format!(
                "no context `{name}` in the kubeconfig{}",
                there(kubeconfig.contexts.iter().map(|context| &context.name))
            )
        })
}

/// The names that could have been meant.
fn there<'a>(names: impl Iterator<Item = &'a String>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.len() {
        0 => "; there is none".into(),
        count if count > SHOWN => format!("; there are {} and more", names[..SHOWN].join(", ")),
        _ => format!("; there are: {}", names.join(", ")),
    }
}

fn overwrite_cluster(cluster: &mut Cluster, args: &AccessArgs) -> anyhow::Result<()> {
    if let Some(server) = &args.server {
        cluster.server = Some(server.clone());
    }
    if let Some(path) = &args.certificate_authority {
        cluster.certificate_authority = Some(utf8(path)?);
        cluster.certificate_authority_data = None;
    }
    if let Some(skipped) = args.insecure_skip_tls_verify {
        cluster.insecure_skip_tls_verify = Some(skipped);
    }
    if let Some(name) = &args.tls_server_name {
        cluster.tls_server_name = Some(name.clone());
    }
    Ok(())
}

fn overwrite_user(user: &mut AuthInfo, args: &AccessArgs) -> anyhow::Result<()> {
    if let Some(token) = &args.token {
        // Beside its certificate, if there is one: that goes to the API server alone.
        *user = AuthInfo {
            client_certificate: user.client_certificate.take(),
            client_certificate_data: user.client_certificate_data.take(),
            client_key: user.client_key.take(),
            client_key_data: user.client_key_data.take(),
            token: Some(token.clone().into()),
            ..AuthInfo::default()
        };
    }
    if let Some(path) = &args.client_certificate {
        user.client_certificate = Some(utf8(path)?);
        user.client_certificate_data = None;
    }
    if let Some(path) = &args.client_key {
        user.client_key = Some(utf8(path)?);
        user.client_key_data = None;
    }
    let acts = args.act_as.is_some() || !args.as_group.is_empty() || args.as_uid.is_some();
    if acts || user.impersonate.is_some() || user.impersonate_groups.is_some() {
        bail!(
            "acting as somebody else (--as) ends at the API server: the controller knows callers by \
             their token alone; use that of a service account: --token \"$(kubectl create token NAME \
             -n NAMESPACE)\""
        );
    }
    Ok(())
}

fn utf8(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str();
    let text = text.with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
