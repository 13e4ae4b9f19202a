//! Namespaces, people, rights and captures for the table, and how its calls are made.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_capture::{audit::Entry, session::Selector};
use remora_proto::{reason::METADATA_KEY, v1};
use tonic::{Request, Status};

use remora_tests::{
    cluster::{Cluster, access::ADMIN},
    wait,
};

use super::{
    cases::{
        Answer::{No, Says, Yes},
        Call::{self, List, Start, Stop},
        Case, DENIED, Line,
    },
    people::{credentials, grant},
};
use crate::{caller::Controller, installed::remora, shop::Shop};

/// A yes is kept for 10 s, and asked for again as often.
pub(super) const REVOKED_WITHIN: Duration = Duration::from_secs(30);
/// What the rights have to be to be used, once they are granted.
const GRANTED_WITHIN: Duration = Duration::from_secs(30);
/// How long captures may last, in seconds.
const HOUR: i64 = 3600;

/// Namespaces, people, rights and captures.
pub(super) struct Stage<'a> {
    pub(super) controller: Controller,
    pub(super) shops: BTreeMap<&'static str, Shop<'a>>,
    /// What is sent as `authorization`, by who sends it.
    pub(super) credentials: BTreeMap<&'static str, String>,
    /// Ids of captures that run, by name.
    pub(super) captures: BTreeMap<&'static str, String>,
}

impl<'a> Stage<'a> {
    pub(super) fn set(cluster: &'a Cluster) -> Result<Self> {
        remora(cluster)?;
        let mut shops = BTreeMap::new();
        for name in ["own", "other", "free", "headers", "none"] {
            shops.insert(name, Shop::open(cluster, &format!("rights-{name}"))?);
        }
        label(&shops, "headers")?;
        for shop in shops.values() {
            shop.web(&[("cart", "node-a")])?;
        }
        grant(&shops)?;
        let mut stage = Self {
            controller: Controller::first(cluster)?,
            credentials: credentials(cluster, &shops["own"])?,
            shops,
            captures: BTreeMap::new(),
        };
        for who in ["viewer", "creator", "reader", "capturer"] {
            stage.until_granted(who)?;
        }
        for (name, target, namespace) in [
            ("own", "pod/cart", "own"),
            ("over", "pod/cart", "own"),
            ("other", "pod/cart", "other"),
            ("node", "node/node-b", ""),
        ] {
            let id = stage.started(target, namespace)?;
            stage.captures.insert(name, id);
        }
        stage.ask(ADMIN, Stop("over"))??;
        Ok(stage)
    }

    /// A capture of the administrator's; controllers and agents learn of pods by watches.
    fn started(&self, target: &'static str, namespace: &'static str) -> Result<String> {
        let mut last = None;
        let started = wait::until_some(GRANTED_WITHIN, "a capture", || {
            let request = self.start(target, namespace)?;
            let request = self.by(ADMIN, request)?;
            let started = self.controller.call(request, async |client, request| {
                Ok(client.start(request).await?.into_inner())
            })?;
            Ok(match started {
                Ok(started) => Some(started.capture.context("no capture")?.id),
                Err(unknown) => {
                    last = Some(unknown);
                    None
                }
            })
        });
        started.with_context(|| format!("{target}: {last:?}"))
    }

    /// The namespace by its name here.
    fn namespace(&self, name: &str) -> String {
        let shop = self.shops.get(name);
        shop.map_or_else(|| name.to_owned(), |shop| shop.namespace.clone())
    }

    pub(super) fn id(&self, name: &str) -> Result<String> {
        self.captures.get(name).cloned().context("no capture")
    }

    fn start(&self, target: &str, namespace: &str) -> Result<v1::ClusterStartRequest> {
        let selector = Selector::parse(target, &self.namespace(namespace))?;
        let hour = prost_types::Duration {
            seconds: HOUR,
            nanos: 0,
        };
        Ok(v1::ClusterStartRequest {
            selector: Some((&selector).into()),
            spec: Some(v1::CaptureSpec {
                filter: "tcp port 8080".into(),
                limits: Some(v1::Limits {
                    duration: Some(hour),
                    ..Default::default()
                }),
                destination: v1::Destination::Store.into(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    pub(super) fn by<Q>(&self, who: &str, message: Q) -> Result<Request<Q>> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if who == "impersonator" {
            metadata.insert("impersonate-user", ADMIN.parse()?);
            metadata.insert("impersonate-group", "system:masters".parse()?);
        }
        if let Some(credential) = self.credentials.get(who) {
            metadata.insert("authorization", credential.parse()?);
        }
        Ok(request)
    }

    /// The answer to a call: what it says, or what refuses it.
    fn ask(&self, who: &str, call: Call) -> Result<Result<String, Status>> {
        match call {
            Call::Start(target, namespace) => {
                let request = self.by(who, self.start(target, namespace)?)?;
                self.controller.call(request, async |client, request| {
                    Ok(format!("{:?}", client.start(request).await?.into_inner()))
                })
            }
            Call::Get(name) => {
                let request = v1::ClusterGetRequest { id: self.id(name)? };
                let request = self.by(who, request)?;
                self.controller.call(request, async |client, request| {
                    Ok(format!("{:?}", client.get(request).await?.into_inner()))
                })
            }
            Call::Stop(name) => {
                let request = v1::ClusterStopRequest { id: self.id(name)? };
                let request = self.by(who, request)?;
                self.controller.call(request, async |client, request| {
                    Ok(format!("{:?}", client.stop(request).await?.into_inner()))
                })
            }
            Call::Delete(name) => {
                let request = v1::ClusterDeleteRequest {
                    id: self.id(name)?,
                    why: "the table".into(),
                    not_uploaded: false,
                };
                let request = self.by(who, request)?;
                self.controller.call(request, async |client, request| {
                    Ok(format!("{:?}", client.delete(request).await?.into_inner()))
                })
            }
            Call::Hold(name) => {
                let (id, why) = (self.id(name)?, "the table".into());
                let request = self.by(who, v1::ClusterHoldRequest { id, why })?;
                self.controller.call(request, async |client, request| {
                    Ok(format!("{:?}", client.hold(request).await?.into_inner()))
                })
            }
            Call::Release(name) => {
                let request = v1::ClusterReleaseRequest { id: self.id(name)? };
                let request = self.by(who, request)?;
                self.controller.call(request, async |client, request| {
                    Ok(format!("{:?}", client.release(request).await?.into_inner()))
                })
            }
            Call::Watch(name) => {
                let request = v1::ClusterWatchRequest { id: self.id(name)? };
                let request = self.by(who, request)?;
                self.controller.call(request, async |client, request| {
                    let mut states = client.watch(request).await?.into_inner();
                    Ok(format!("{:?}", states.message().await?))
                })
            }
            Call::Read(name) => {
                let request = v1::ClusterStreamRequest { id: self.id(name)? };
                let request = self.by(who, request)?;
                self.controller.call(request, async |client, request| {
                    let mut blocks = client.stream(request).await?.into_inner();
                    let first = blocks.message().await?;
                    Ok(first.map_or("nothing", |_| "blocks").to_owned())
                })
            }
            Call::List(namespace) => {
                let request = v1::ClusterListRequest {
                    namespace: self.namespace(namespace),
                    all: false,
                };
                let request = self.by(who, request)?;
                self.controller.call(request, async |client, request| {
                    let listed = client.list(request).await?.into_inner();
                    Ok(format!("{:?}", listed.captures))
                })
            }
            Call::Status => {
                let request = self.by(who, v1::ClusterStatusRequest {})?;
                self.controller.call(request, async |client, request| {
                    Ok(format!("{:?}", client.status(request).await?.into_inner()))
                })
            }
        }
    }

    /// The call is answered as the case says, and so is its account.
    pub(super) fn tried(&self, case: &Case) -> Result<()> {
        let before = self.controller.account()?.len();
        let answer = self.ask(case.who, case.call)?;
        match (case.answer, &answer) {
            (Yes, Ok(_)) => {}
            (Says(text), Ok(said)) => ensure!(said.contains(text), "it says {said}"),
            (No(code, reason, text), Err(status)) => {
                ensure!(status.code() == code, "{status:?}");
                let word = status.metadata().get(METADATA_KEY);
                let word = word.map(|word| word.to_str()).transpose()?;
                ensure!(word == Some(reason.as_str()), "{status:?}");
                ensure!(status.message().contains(text), "{status:?}");
            }
            _ => anyhow::bail!("{answer:?}"),
        }
        if let (Call::List(""), Ok(said)) = (case.call, &answer) {
            let other = self.id("other")?;
            ensure!(
                said.contains(&self.id("own")?) && !said.contains(&other),
                "{said}"
            );
        }
        let account = self.controller.account_since(before, case.account.len())?;
        self.told(&account, case.account)
    }

    /// In any order where one call asks for several namespaces.
    fn told(&self, account: &[Entry], expected: &[Line]) -> Result<()> {
        ensure!(account.len() == expected.len(), "{account:?}");
        let own = format!("system:serviceaccount:{}", self.namespace("own"));
        let mut left: Vec<&Entry> = account.iter().collect();
        for (who, action, decision, reason) in expected {
            let who = who.replace("{own}", &own);
            let at = left.iter().position(|line| {
                line.who == who
                    && line.action == *action
                    && line.decision == *decision
                    && match reason.is_empty() {
                        true => line.reason.is_empty(),
                        false => line.reason.starts_with(reason),
                    }
            });
            let at = at.with_context(|| format!("no {who} {action} {decision:?}: {account:?}"))?;
            let line = left.remove(at);
            ensure!(!line.address.is_empty(), "from nowhere: {line:?}");
        }
        Ok(())
    }

    fn until_granted(&self, who: &str) -> Result<()> {
        let call = match who {
            "viewer" => List("own"),
            // Of no pod that is there: nothing begins.
            "creator" | "capturer" => Start("pod/nobody", "own"),
            _ => return Ok(()),
        };
        let mut last = String::new();
        let granted = wait::until(GRANTED_WITHIN, "a right to take hold", || {
            Ok(match self.ask(who, call)? {
                Err(status) => {
                    last = status.to_string();
                    status.code() != DENIED
                }
                Ok(_) => true,
            })
        });
        granted.with_context(|| last)
    }

    pub(super) fn until_refused(&self, who: &str, call: Call) -> Result<Status> {
        wait::until_some(REVOKED_WITHIN, "a refusal", || {
            Ok(self.ask(who, call)?.err())
        })
    }

    /// Ends what runs.
    pub(super) fn clear(&self) -> Result<()> {
        let listed = self.by(
            "admin",
            v1::ClusterListRequest {
                namespace: String::new(),
                all: false,
            },
        )?;
        let listed = self.controller.call(listed, async |client, request| {
            Ok(client.list(request).await?.into_inner())
        })??;
        for capture in listed.captures {
            let request = self.by("admin", v1::ClusterStopRequest { id: capture.id })?;
            self.controller.call(request, async |client, request| {
                Ok(client.stop(request).await?.into_inner())
            })??;
        }
        Ok(())
    }
}

/// Gives a namespace the level that it is called by.
pub(super) fn label(shops: &BTreeMap<&'static str, Shop<'_>>, level: &str) -> Result<()> {
    let (shop, label) = (&shops[level], format!("remora.dev/privacy={level}"));
    shop.run(&["label", "namespace", &shop.namespace, &label])
        .map(drop)
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // Slots are few.
        let _ = self.clear();
        let own = &self.shops["own"];
        let name = format!("{}-operator", own.namespace);
        let _ = own.run(&["delete", "clusterrolebinding", &name]);
    }
}
