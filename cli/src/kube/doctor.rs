//! `kubectl remora doctor`: each step on the way to a capture, tried in turn.

use anyhow::anyhow;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client};
use remora_proto::v1;
use tokio::time::timeout;
use tonic::Code;

use super::{
    access::Access,
    args::AccessArgs,
    failure::{Refusal, Right},
};
use crate::{commands::Outcome, failure::CALL_TIMEOUT, render::shown, terminal};

/// The steps, as they are printed.
#[derive(Debug, Default)]
struct Findings {
    faults: u32,
}

impl Findings {
    fn good(&self, step: &str, found: &str) -> anyhow::Result<()> {
        terminal::print(&format!("ok    {step}: {}\n", shown(found)))?;
        Ok(())
    }

    fn bad(&mut self, step: &str, error: &anyhow::Error) -> anyhow::Result<()> {
        self.faults += 1;
        let text = format!("{error:#}");
        for (index, line) in text.lines().enumerate() {
            let start = if index == 0 {
                format!("FAIL  {step}: ")
            } else {
                "      ".into()
            };
            terminal::print(&format!("{start}{}\n", shown(line)))?;
        }
        Ok(())
    }

    fn outcome(&self) -> Outcome {
        match self.faults {
            0 => Outcome::Done,
            _ => Outcome::Faulty,
        }
    }
}

/// # Errors
/// Standard output fails.
pub(super) async fn run(args: &AccessArgs) -> anyhow::Result<Outcome> {
    let mut findings = Findings::default();
    let access = match Access::open(args).await {
        Ok(access) => access,
        Err(error) => {
            findings.bad("kubeconfig", &error)?;
            return Ok(findings.outcome());
        }
    };
    findings.good("kubeconfig", &access.origin)?;
    if let Some(client) = access.controllers.api() {
        match api_server(client).await {
            Ok(version) => findings.good("API server", &version)?,
            Err(error) => {
                findings.bad("API server", &error)?;
                return Ok(findings.outcome());
            }
        }
    }
    if args.controller.is_none() || access.controllers.credential().is_some() {
        match access.controllers.credential().bearer().await {
            Ok(_) => {
                let user = access.controllers.user().await;
                findings.good("token", user.as_deref().unwrap_or("there is one"))?;
            }
            Err(error) => findings.bad("token", &error)?,
        }
    }
    match access.controllers.connection().await {
        Ok(connection) => findings.good("connection", &connection.name)?,
        Err(error) => {
            findings.bad("connection", &error)?;
            return Ok(findings.outcome());
        }
    }
    agents(&access, &mut findings).await?;
    rights(&access, &mut findings).await?;
    Ok(findings.outcome())
}

async fn api_server(client: &Client) -> anyhow::Result<String> {
    let version = timeout(CALL_TIMEOUT, client.apiserver_version()).await;
    let version = version.map_err(|_elapsed| anyhow!("no answer within {CALL_TIMEOUT:?}"))??;
    Ok(format!("version {}", version.git_version))
}

async fn agents(access: &Access, findings: &mut Findings) -> anyhow::Result<()> {
    let request = v1::ClusterStatusRequest {};
    let status = access
        .controllers
        .call(Right::to_see(None), request, async |client, request| {
            client.status(request).await
        })
        .await;
    let status = match status {
        Ok(status) => status,
        // Its nodes are not everybody's to see, nor needed.
        Err(error) if is_forbidden(&error) => {
            return findings.good("controller", "it answers; its nodes are for others to see");
        }
        Err(error) => return findings.bad("controller", &error),
    };
    if status.synced {
        findings.good("controller", &format!("version {}", status.version))?;
    } else {
        findings.bad("controller", &anyhow!("it does not know the cluster yet"))?;
    }
    let (good, bad): (Vec<_>, Vec<_>) = status.nodes.iter().partition(|node| node.reachable);
    if !good.is_empty() {
        findings.good("agents", &format!("{} reachable", good.len()))?;
    }
    for node in bad {
        let why = match (node.agent.as_str(), node.error.as_str()) {
            (_, error) if !error.is_empty() => error.to_owned(),
            ("", _) => "no agent runs there".into(),
            _ => "unreachable".into(),
        };
        findings.bad(&format!("agent on {}", shown(&node.node)), &anyhow!(why))?;
    }
    if status.nodes.is_empty() {
        findings.bad("agents", &anyhow!("the controller knows no node"))?;
    }
    Ok(())
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    let refusal = error.downcast_ref::<Refusal>();
    refusal.is_some_and(|refusal| refusal.code == Code::PermissionDenied)
}

/// What the API server says of the user's own rights in the namespace.
async fn rights(access: &Access, findings: &mut Findings) -> anyhow::Result<()> {
    let Some(client) = access.controllers.api() else {
        return Ok(());
    };
    let namespace = &access.namespace;
    for (verb, subresource, what) in [
        ("create", None, "start captures"),
        ("get", Some("data"), "read packets"),
    ] {
        let step = format!("right to {what} in {namespace}");
        match is_allowed(client, namespace, verb, subresource).await {
            Ok(true) => findings.good(&step, "yes")?,
            Ok(false) => {
                let user = access.controllers.user().await;
                let grant = Right::to_capture(Some(namespace)).grant(user.as_deref());
                findings.bad(
                    &step,
                    &anyhow!("no; whoever may grant it can do so by\n{grant}"),
                )?;
            }
            Err(error) => findings.bad(&step, &error)?,
        }
    }
    Ok(())
}

async fn is_allowed(
    client: &Client,
    namespace: &str,
    verb: &str,
    subresource: Option<&str>,
) -> anyhow::Result<bool> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some(verb.to_owned()),
                group: Some("remora.dev".to_owned()),
                resource: Some("captures".to_owned()),
                subresource: subresource.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let answer = timeout(CALL_TIMEOUT, reviews.create(&Default::default(), &review)).await;
    let answer = answer.map_err(|_elapsed| anyhow!("no answer within {CALL_TIMEOUT:?}"))??;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
