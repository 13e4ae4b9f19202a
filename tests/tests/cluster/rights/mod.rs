//! Who may do what, asked of a real API server: each call of the table is answered as it says, and so is its line
//! of the audit log.

mod cases;
mod people;
mod stage;

use anyhow::{Context as _, Result, ensure};
use remora_capture::audit::Decision::Refused;
use remora_proto::v1;
use tonic::Code;

use remora_tests::{cluster::Cluster, wait};

use self::{
    cases::{
        CASES,
        Call::{Get, List, Start},
        DENIED,
    },
    stage::{REVOKED_WITHIN, Stage, label},
};
use crate::{
    Test,
    capture::Bed,
    capturing::Captured,
    shop::PORT,
    witness::{BEGIN, contains},
};

pub(crate) const TESTS: [Test; 4] = [
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
    (
        "rights::who_may_capture_a_namespace_of_headers_gets_no_payload",
        headers,
    ),
];

fn table(cluster: &Cluster) -> Result<()> {
    let stage = Stage::set(cluster)?;
    println!("{} cases", CASES.len());
    for case in &CASES {
        if matches!(case.call, Start(_, "none")) {
            // Not before: of a node whose pods may be among them, nothing is captured then either.
            label(&stage.shops, "none")?;
            stage.until_refused(case.who, case.call)?;
        }
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

/// A page is asked for, and its name is in no file.
fn headers(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "headers")?;
    let namespace = &bed.shop.namespace;
    let label = [
        "label",
        "namespace",
        namespace,
        "remora.dev/privacy=headers",
    ];
    bed.shop.run(&label)?;
    let pods = bed.shop.web(&[("cart", "node-a"), ("peer", "node-b")])?;
    let [cart, peer] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    let filter = format!("tcp port {PORT}");
    let mut capturing = bed.start(&["pod/cart", "-f", &filter])?;
    bed.shop.ask(peer, cart.address()?, PORT, BEGIN)?;
    // Of a whole conversation: both ends have said that it is over.
    capturing.wait_for("the conversation", |capture| {
        let is_last = |frame: &&[u8]| frame.get(47).is_some_and(|flags| flags & 1 == 1);
        capture.frames().filter(is_last).count() >= 2
    })?;
    let Captured { capture, told } = capturing.stop()?;
    let has_payload = |frame: &[u8]| contains(frame, BEGIN) || contains(frame, "HTTP/");
    ensure!(!capture.frames().any(has_payload), "a packet has payload");
    let longest = capture
        .packets
        .iter()
        .map(|packet| packet.original_len)
        .max();
    ensure!(longest > Some(100), "nothing was said: {longest:?}");
    let comments = capture.comments.join("\n");
    ensure!(
        comments.contains("packets are cut after their transport headers"),
        "{told}\n{comments}"
    );
    Ok(())
}
