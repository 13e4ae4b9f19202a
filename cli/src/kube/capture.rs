//! `kubectl remora capture`: starts a capture over the target's nodes and follows it to its end.
//!
//! A controller that dies takes a streamed capture with it: the agents' streams end with their reader.
//! One that the agents keep (`--store`) goes on; its stream is begun anew at another replica, and with
//! it the file. A pipe cannot be begun anew.

use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use remora_capture::session::{CaptureId, Destination, Writing};
use remora_proto::v1;
use tokio::time::Instant;

use super::{
    access::Access,
    args::KubeCaptureArgs,
    failure::Right,
    feed::{Progress, Source, ended},
    render,
    request::{Wish, dump},
    state::ClusterCapture,
};
use crate::{
    commands::Outcome,
    follow::{End, Ownership, follow},
    output::{Output, Written},
    signals::Interrupt,
    spec::{requester, writing},
    terminal::{self, LiveLine},
};

/// # Errors
/// The capture did not start.
pub(super) async fn run(access: &Access, args: &KubeCaptureArgs) -> anyhow::Result<Outcome> {
    if args.options.dump {
        terminal::print(&format!("{}\n", dump(args, &access.namespace)?))?;
        return Ok(Outcome::Done);
    }
    let wish = Wish::of(args, &access.namespace, &requester())?;
    match &args.write {
        Some(path) => {
            let writing = writing(&args.options, Some(path), false);
            stream(access, &wish, path, writing).await
        }
        None => store(access, &wish, args.wait).await,
    }
}

async fn stream(
    access: &Access,
    wish: &Wish,
    path: &Path,
    writing: Writing,
) -> anyhow::Result<Outcome> {
    // Before there is a file: nobody may answer.
    access.controllers.connection().await?;
    let output = Output::open(path, writing)?;
    let mut interrupt = Interrupt::install()?;
    let (source, state) = match start(access, wish).await {
        Ok(started) => started,
        Err(error) => {
            output.discard();
            return Err(error);
        }
    };
    render::tell_start(&state);
    let progress = Progress::of(&source, Some(state));
    let feed = match source.open(progress.clone()).await {
        Ok(feed) => feed,
        Err(error) => {
            output.discard();
            source.stop().await;
            return Err(error);
        }
    };
    let (mut written, mut end) = follow(feed, Ownership::Own, output, &mut interrupt).await?;
    let kept = wish.spec.destination == Destination::Store;
    while let End::Broken(error) = &end
        && kept
        && written.failure.is_none()
        && !writing.rotation.is_on()
        && path != Path::new("-")
    {
        terminal::note(&format!("remora: {error:#}"));
        let Ok(feed) = source.open(progress.clone()).await else {
            break;
        };
        terminal::note("remora: the capture goes on; another controller sends it from its start");
        let output = Output::open(path, writing)?;
        (written, end) = follow(feed, Ownership::Own, output, &mut interrupt).await?;
    }
    let outcome = render::tell_end(&written, &end, &progress);
    tell_place(path, &written);
    if kept {
        terminal::note(&format!(
            "the nodes keep it: kubectl remora get {} -w FILE",
            source.id
        ));
    }
    Ok(outcome)
}

/// Says where the packets are, if they are in one file; those that rotate were named.
pub(super) fn tell_place(path: &Path, written: &Written) {
    let is_file = path.metadata().is_ok_and(|there| there.is_file());
    if is_file && written.files.files.len() <= 1 && written.packets > 0 {
        terminal::note(&format!("the packets are in {}", path.display()));
    }
}

/// Starts the capture. The key makes one of what several replicas were asked.
async fn start(access: &Access, wish: &Wish) -> anyhow::Result<(Source, ClusterCapture)> {
    let namespace = wish.selector.namespace();
    let key = CaptureId::generate().to_string();
    let begun = Instant::now();
    let answer = access
        .controllers
        .call(
            Right::to_capture(namespace),
            wish.request(key, Timestamp::now()),
            async |client, request| client.start(request).await,
        )
        .await?;
    let v1::ClusterStartResponse { capture, .. } = answer;
    let state = ClusterCapture::known(capture)?;
    let source = Source {
        controllers: access.controllers.clone(),
        id: state.id,
        namespace: namespace.map(str::to_owned),
        deadline: wish.spec.limits.duration.map(|limit| begun + limit),
    };
    Ok((source, state))
}

/// The agents keep the packets: prints the id; with `wait` goes on to the end.
async fn store(access: &Access, wish: &Wish, wait: bool) -> anyhow::Result<Outcome> {
    let interrupt = if wait {
        Some(Interrupt::install()?)
    } else {
        None
    };
    let (source, state) = start(access, wish).await?;
    terminal::print(&format!("{}\n", source.id)).context("standard output failed")?;
    render::tell_start(&state);
    let Some(mut interrupt) = interrupt else {
        return Ok(render::outcome(&state));
    };
    let mut progress = Progress::of(&source, Some(state));
    let mut line = LiveLine::new();
    let mut show = |state: &ClusterCapture| {
        let left = source
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let counts = &state.counts;
        line.show(&render::live(
            Some(state),
            counts.written,
            counts.written_bytes,
            left,
        ));
    };
    let state = tokio::select! {
        state = ended(&source, &mut progress, &mut show) => state?,
        () = interrupt.requested() => {
            source.clone().stop().await;
            source.get().await?
        }
    };
    drop(line);
    let written = Written {
        packets: state.counts.written,
        ..Written::default()
    };
    Ok(render::tell_end(
        &written,
        &End::Finished(Box::new(state)),
        &progress,
    ))
}
