//! Who may do what, asked of a real API server: callers and calls in a table, the answer that each gets, and
//! the line of it in the audit log.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_capture::{
    audit::{Decision, Entry},
    session::Selector,
};
use remora_proto::{
    reason::{METADATA_KEY, Reason},
    v1,
};
use tonic::{Code, Request, Status};

use remora_tests::{
    cluster::{
        Cluster,
        access::{ADMIN, PEOPLE},
        account_token::{Claims, ISSUER},
    },
    wait,
};

use crate::{Test, caller::Controller, installed::remora, shop::Shop};

pub(crate) const TESTS: [Test; 3] = [
    (
        "rights::each_caller_gets_what_he_may_and_each_answer_is_in_the_audit_log",
        table,
    ),
    (
        "rights::a_right_that_is_taken_ends_what_it_allowed",
        revoked,
    ),
    (
        "rights::nobody_may_anything_while_nobody_can_be_asked",
        unasked,
    ),
];

/// A yes is kept for 10 s, and asked for again as often.
const REVOKED_WITHIN: Duration = Duration::from_secs(30);
/// What the rights have to be to be used, once they are granted.
const GRANTED_WITHIN: Duration = Duration::from_secs(30);
const HOUR: i64 = 3600;

/// What is wanted. Captures are by the names of [`Stage::captures`], namespaces by those of [`Stage::shops`].
#[derive(Clone, Copy, Debug)]
enum Call {
    /// Of a target, in a namespace.
    Start(&'static str, &'static str),
    Get(&'static str),
    Watch(&'static str),
    Read(&'static str),
    Stop(&'static str),
    Delete(&'static str),
    Hold(&'static str),
    Release(&'static str),
    /// Of a namespace; empty: of all.
    List(&'static str),
    Status,
}

/// What comes of it.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Yes,
    /// A yes whose words contain this.
    Says(&'static str),
    /// The code, the stable reason and a part of the words.
    No(Code, Reason, &'static str),
}

/// A line of the audit log: who, what, the decision, and how its reason begins.
type Line = (&'static str, &'static str, Decision, &'static str);

struct Case {
    name: &'static str,
    /// Of [`Stage::credentials`].
    who: &'static str,
    call: Call,
    answer: Answer,
    account: &'static [Line],
}

use Answer::{No, Says, Yes};
use Call::{Delete, Get, Hold, List, Read, Release, Start, Stop, Watch};
use Decision::{Allowed, Done, Refused};

const DENIED: Code = Code::PermissionDenied;
const UNKNOWN: Code = Code::Unauthenticated;

/// Users of accounts in the namespace `own`, as the table calls them; `{own}` is its name.
const fn case(
    name: &'static str,
    who: &'static str,
    call: Call,
    answer: Answer,
    account: &'static [Line],
) -> Case {
    Case {
        name,
        who,
        call,
        answer,
        account,
    }
}

const fn no(told: &'static str) -> Answer {
    No(DENIED, Reason::PermissionDenied, told)
}

const fn nobody(told: &'static str) -> Answer {
    No(UNKNOWN, Reason::PermissionDenied, told)
}

#[rustfmt::skip]
const CASES: [Case; 48] = [
    // Nobody that the API server knows.
    case("no credentials", "nobody", Start("pod/cart", "own"), nobody("nobody is named"),
        &[("nobody", "call", Refused, "no_credentials")]),
    case("no credentials, though the group of such callers has the right", "nobody", List("free"), nobody("nobody is named"),
        &[("nobody", "call", Refused, "no_credentials")]),
    case("another scheme than Bearer", "basic", Start("pod/cart", "own"), nobody("not `Bearer TOKEN`"),
        &[("nobody", "call", Refused, "bad_header")]),
    case("a token of nobody", "garbage", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("an expired token of who has the right", "expired", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token that is not valid yet", "early", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token for another audience", "elsewhere", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token bound to what was deleted", "unbound", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    case("a token of an account that was made anew", "former", Start("pod/cart", "own"), nobody("the token is of nobody"),
        &[("unknown token", "call", Refused, "bad_token")]),
    // Somebody without the right.
    case("no right", "mallory", Start("pod/cart", "own"), no("\"mallory\" may not create captures.remora.dev in namespace"),
        &[("mallory", "start", Refused, "not_allowed")]),
    case("no right, and a claim to be somebody else", "impersonator", Start("pod/cart", "own"), no("\"mallory\" may not create"),
        &[("mallory", "start", Refused, "not_allowed")]),
    case("no right to know of one", "mallory", Get("own"), no("may not get captures.remora.dev in namespace"),
        &[("mallory", "show", Refused, "not_allowed")]),
    case("the right in another namespace", "bob", Start("pod/cart", "own"), no("\"bob\" may not create captures.remora.dev in namespace"),
        &[("bob", "start", Refused, "not_allowed")]),
    case("the right in this namespace", "bob", Start("pod/cart", "other"), Yes,
        &[("bob", "start", Allowed, "")]),
    case("packets of another namespace", "bob", Read("own"), no("may not get captures.remora.dev/data in namespace"),
        &[("bob", "read", Refused, "not_allowed")]),
    case("the end of another namespace's capture", "bob", Stop("own"), no("may not update captures.remora.dev in namespace"),
        &[("bob", "stop", Refused, "not_allowed")]),
    // Parts of the right.
    case("a viewer starts", "viewer", Start("pod/cart", "own"), no("may not create captures.remora.dev"),
        &[("{own}:viewer", "start", Refused, "not_allowed")]),
    case("a viewer looks", "viewer", Get("own"), Yes,
        &[("{own}:viewer", "show", Allowed, "")]),
    case("a viewer follows", "viewer", Watch("own"), Yes,
        &[("{own}:viewer", "show", Allowed, "")]),
    case("a viewer lists", "viewer", List("own"), Yes,
        &[("{own}:viewer", "list", Allowed, "")]),
    case("a viewer lists another namespace", "viewer", List("other"), no("may not list captures.remora.dev"),
        &[("{own}:viewer", "list", Refused, "not_allowed")]),
    case("a viewer reads packets", "viewer", Read("own"), no("may not get captures.remora.dev/data"),
        &[("{own}:viewer", "read", Refused, "not_allowed")]),
    case("a viewer ends", "viewer", Stop("own"), no("may not update captures.remora.dev"),
        &[("{own}:viewer", "stop", Refused, "not_allowed")]),
    case("create without data: starts", "creator", Start("pod/cart", "own"), Yes,
        &[("{own}:creator", "start", Allowed, "")]),
    case("create without data: reads packets", "creator", Read("own"), no("may not get captures.remora.dev/data"),
        &[("{own}:creator", "read", Refused, "not_allowed")]),
    case("data without create: reads packets", "reader", Read("own"), Yes,
        &[("{own}:reader", "read", Allowed, ""), ("{own}:reader", "read", Done, "the reader went away")]),
    case("data without create: starts", "reader", Start("pod/cart", "own"), no("may not create captures.remora.dev"),
        &[("{own}:reader", "start", Refused, "not_allowed")]),
    case("data without get: looks", "reader", Get("own"), no("may not get captures.remora.dev in namespace"),
        &[("{own}:reader", "show", Refused, "not_allowed")]),
    // Ways to have it.
    case("an account that has it", "capturer", Start("pod/cart", "own"), Yes,
        &[("{own}:capturer", "start", Allowed, "")]),
    case("an account that has it, elsewhere", "capturer", Start("pod/cart", "other"), no("may not create captures.remora.dev"),
        &[("{own}:capturer", "start", Refused, "not_allowed")]),
    case("an account whose group has it", "plain", Start("pod/cart", "free"), Yes,
        &[("{own}:plain", "start", Allowed, "")]),
    case("a token bound to what is there", "bound", Start("pod/cart", "own"), Yes,
        &[("{own}:capturer", "start", Allowed, "")]),
    case("the cluster's administrator", "admin", Start("pod/cart", "own"), Yes,
        &[("admin", "start", Allowed, "")]),
    // More than one namespace, and none.
    // Two by a right of his own and by his group's; two not.
    case("all namespaces: what he may see of them", "viewer", List(""), Yes,
        &[("{own}:viewer", "list", Refused, "not_allowed"), ("{own}:viewer", "list", Allowed, ""), ("{own}:viewer", "list", Allowed, ""),
          ("{own}:viewer", "list", Refused, "not_allowed")]),
    case("a node, by a right in namespaces", "capturer", Start("node/node-a", ""), no("may not create captures.remora.dev in the whole cluster"),
        &[("{own}:capturer", "start", Refused, "not_allowed")]),
    case("a node, by a right in the cluster", "operator", Start("node/node-a", ""), Yes,
        &[("{own}:operator", "start", Allowed, "")]),
    case("a node's packets, by a right in namespaces", "capturer", Read("node"), no("may not get captures.remora.dev/data in the whole cluster"),
        &[("{own}:capturer", "read", Refused, "not_allowed")]),
    case("all nodes, by a right in a namespace", "viewer", Call::Status, no("may not list captures.remora.dev in the whole cluster"),
        &[("{own}:viewer", "list", Refused, "not_allowed")]),
    case("all nodes, by a right in the cluster", "operator", Call::Status, Yes,
        &[("{own}:operator", "list", Allowed, "")]),
    // Of what the nodes keep.
    case("who captures does not delete", "capturer", Delete("over"), no("may not delete captures.remora.dev/data in namespace"),
        &[("{own}:capturer", "delete", Refused, "not_allowed")]),
    case("who captures does not hold", "capturer", Hold("over"), no("may not create captures.remora.dev/hold in namespace"),
        &[("{own}:capturer", "hold", Refused, "not_allowed")]),
    case("a custodian holds", "custodian", Hold("over"), Says("by san=remora-controller"),
        &[("{own}:custodian", "hold", Allowed, "")]),
    case("what is held is not deleted", "custodian", Delete("over"),
        No(Code::FailedPrecondition, Reason::CaptureHeld, "custodian, by san=remora-controller"),
        &[("{own}:custodian", "delete", Allowed, "")]),
    case("who captures does not let go", "capturer", Release("over"), no("may not delete captures.remora.dev/hold in namespace"),
        &[("{own}:capturer", "release", Refused, "not_allowed")]),
    case("a custodian reads packets", "custodian", Read("over"), no("may not get captures.remora.dev/data in namespace"),
        &[("{own}:custodian", "read", Refused, "not_allowed")]),
    case("a custodian lets go", "custodian", Release("over"), Yes,
        &[("{own}:custodian", "release", Allowed, "")]),
    case("a custodian deletes what runs", "custodian", Delete("own"),
        No(Code::FailedPrecondition, Reason::CaptureRunning, "stop the capture first"),
        &[("{own}:custodian", "delete", Allowed, "")]),
    case("a custodian deletes", "custodian", Delete("over"), Says("chain_head"),
        &[("{own}:custodian", "delete", Allowed, "")]),
];

fn table(cluster: &Cluster) -> Result<()> {
    let stage = Stage::set(cluster)?;
    println!("{} cases", CASES.len());
    for case in &CASES {
        let asked = stage.tried(case);
        asked.with_context(|| format!("`{}`: {:?} by {}", case.name, case.call, case.who))?;
    }
    stage.clear()
}

fn revoked(cluster: &Cluster) -> Result<()> {
    let stage = Stage::set(cluster)?;
    let before = stage.controller.account()?.len();
    let request = v1::ClusterWatchRequest {
        id: stage.id("own")?,
    };
    let request = stage.by("viewer", request)?;
    let watching = stage.controller.call(request, async |client, request| {
        Ok(client.watch(request).await?.into_inner())
    })?;
    let mut watching = watching?;
    let own = &stage.shops["own"];
    own.run(&["delete", "rolebinding", "viewer"])?;
    let ended = stage.controller.wait(async {
        tokio::time::timeout(wait::patient(REVOKED_WITHIN), async {
            loop {
                match watching.message().await {
                    Ok(Some(_)) => {}
                    ended => return ended.map(drop),
                }
            }
        })
        .await
    });
    let ended = ended.context("a watch goes on without the right")?;
    let told = ended.err().context("it ended as if all was told")?;
    ensure!(told.code() == DENIED, "{told}");
    // What was said before holds for nobody any more.
    stage.until_refused("viewer", Get("own"))?;
    let account = stage.controller.account()?.split_off(before);
    let refused = |action: &str| {
        let mut of = account.iter();
        of.any(|line| line.action == action && line.decision == Refused)
    };
    ensure!(refused("show"), "{account:?}");
    stage.clear()
}

fn unasked(cluster: &Cluster) -> Result<()> {
    let stage = Stage::set(cluster)?;
    let before = stage.controller.account()?.len();
    cluster.control_plane().stop_api()?;
    let outcome = (|| -> Result<()> {
        for (who, call) in [
            ("admin", List("own")),
            ("plain", Get("own")),
            ("garbage", Get("own")),
        ] {
            // A yes that was given before the API server went holds for a while.
            let refused = stage.until_refused(who, call)?;
            ensure!(refused.code() == Code::Unavailable, "{who}: {refused}");
            ensure!(
                refused.message().contains("nobody could be asked"),
                "{refused}"
            );
        }
        Ok(())
    })();
    cluster.control_plane().start_api()?;
    outcome?;
    let account = stage.controller.account()?.split_off(before);
    let unasked = account
        .iter()
        .filter(|line| line.decision == Refused && line.reason.starts_with("not_asked"));
    ensure!(unasked.count() >= 3, "{account:?}");
    stage.clear()
}

/// Namespaces, people, rights and captures.
struct Stage<'a> {
    controller: Controller,
    shops: BTreeMap<&'static str, Shop<'a>>,
    /// What is sent as `authorization`, by who sends it.
    credentials: BTreeMap<&'static str, String>,
    /// Ids of captures that run, by name.
    captures: BTreeMap<&'static str, String>,
}

impl<'a> Stage<'a> {
    fn set(cluster: &'a Cluster) -> Result<Self> {
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

    fn id(&self, name: &str) -> Result<String> {
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

    fn by<Q>(&self, who: &str, message: Q) -> Result<Request<Q>> {
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
    fn tried(&self, case: &Case) -> Result<()> {
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

    fn until_refused(&self, who: &str, call: Call) -> Result<Status> {
        wait::until_some(REVOKED_WITHIN, "a refusal", || {
            Ok(self.ask(who, call)?.err())
        })
    }

    /// Ends what runs.
    fn clear(&self) -> Result<()> {
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
fn label(shops: &BTreeMap<&'static str, Shop<'_>>, level: &str) -> Result<()> {
    let (shop, label) = (&shops[level], format!("remora.dev/privacy={level}"));
    shop.run(&["label", "namespace", &shop.namespace, &label])
        .map(drop)
}

/// Accounts of the namespace `own`, and roles.
fn grant(shops: &BTreeMap<&'static str, Shop<'_>>) -> Result<()> {
    let (own, other, free) = (&shops["own"], &shops["other"], &shops["free"]);
    let accounts = [
        "viewer",
        "creator",
        "reader",
        "capturer",
        "custodian",
        "operator",
        "plain",
        "former",
    ];
    for account in accounts {
        own.run(&["create", "serviceaccount", account])?;
    }
    let account = |name: &str| format!("--serviceaccount={}:{name}", own.namespace);
    for (name, verbs, resource) in [
        ("creator", "create", "captures.remora.dev"),
        ("reader", "get", "captures.remora.dev/data"),
    ] {
        let (verbs, resource) = (format!("--verb={verbs}"), format!("--resource={resource}"));
        own.run(&["create", "role", name, &verbs, &resource])?;
        let role = format!("--role={name}");
        own.run(&["create", "rolebinding", name, &role, &account(name)])?;
    }
    let bind = |shop: &Shop<'_>, name: &str, role: &str, subject: &str| {
        let role = format!("--clusterrole={role}");
        shop.run(&["create", "rolebinding", name, &role, subject])
    };
    bind(own, "viewer", "remora-viewer", &account("viewer"))?;
    bind(own, "capturer", "remora-capturer", &account("capturer"))?;
    bind(own, "custodian", "remora-custodian", &account("custodian"))?;
    bind(own, "former", "remora-capturer", &account("former"))?;
    bind(other, "bob", "remora-capturer", "--user=bob")?;
    let group = format!("--group=system:serviceaccounts:{}", own.namespace);
    bind(free, "group", "remora-capturer", &group)?;
    let unknown = "--group=system:unauthenticated";
    bind(free, "unknown", "remora-capturer", unknown)?;
    // Goes with no namespace: named by this one's.
    let name = format!("{}-operator", own.namespace);
    let role = "--clusterrole=remora-capturer";
    own.run(&[
        "create",
        "clusterrolebinding",
        &name,
        role,
        &account("operator"),
    ])?;
    Ok(())
}

fn credentials(cluster: &Cluster, own: &Shop<'_>) -> Result<BTreeMap<&'static str, String>> {
    let access = cluster.access();
    let uid = |account: &str| own.run(&["get", "sa", account, "-o", "jsonpath={.metadata.uid}"]);
    let now = jiff::Timestamp::now().as_second();
    let token = |account: &str, audience: &str, from: i64, until: i64| {
        access.account_token(&Claims {
            namespace: &own.namespace,
            account,
            uid: &uid(account)?,
            audience,
            from,
            until,
        })
    };
    let usual = |account: &str| token(account, ISSUER, now - HOUR, now + HOUR);
    let mut bearers = vec![
        ("garbage", "no.such.token".to_owned()),
        (
            "expired",
            token("capturer", ISSUER, now - 2 * HOUR, now - HOUR)?,
        ),
        (
            "early",
            token("capturer", ISSUER, now + HOUR, now + 2 * HOUR)?,
        ),
        (
            "elsewhere",
            token("capturer", "elsewhere", now - HOUR, now + HOUR)?,
        ),
        ("former", usual("former")?),
        ("impersonator", access.token("mallory")?.to_owned()),
        (ADMIN, access.token(ADMIN)?.to_owned()),
    ];
    for account in [
        "viewer",
        "creator",
        "reader",
        "capturer",
        "custodian",
        "operator",
        "plain",
    ] {
        bearers.push((account, usual(account)?));
    }
    for person in PEOPLE {
        bearers.push((person, access.token(person)?.to_owned()));
    }
    for secret in ["bound", "unbound"] {
        own.run(&["create", "secret", "generic", secret])?;
        let bound = ["--bound-object-kind=Secret", "--bound-object-name", secret];
        let words = [&["create", "token", "capturer"], &bound[..]].concat();
        bearers.push((secret, own.run(&words)?.trim().to_owned()));
    }
    own.run(&["delete", "secret", "unbound"])?;
    // Another account of the same name.
    own.run(&["delete", "serviceaccount", "former"])?;
    own.run(&["create", "serviceaccount", "former"])?;
    let mut credentials: BTreeMap<&'static str, String> = bearers
        .into_iter()
        .map(|(who, token)| (who, format!("Bearer {token}")))
        .collect();
    credentials.insert("basic", "Basic YWxpY2U6c2VjcmV0".to_owned());
    Ok(credentials)
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
