//! `kubectl remora`: captures over the nodes of a cluster, by its controllers.
//!
//! - [`args`], [`request`]: what the user said, and the capture that it means (pure).
//! - [`config`], [`credential`], [`access`]: which cluster, as whom, by which way.
//! - [`address`], [`tunnel`], [`dial`], [`controllers`]: a connection to a replica, another when it dies.
//! - [`feed`], [`capture`], [`custody`], [`doctor`], [`complete`]: the commands that do more than ask and print.
//! - [`state`], [`render`], [`failure`]: what the user sees.
//!
//! Only this folder knows Kubernetes' API. Exit codes: those of [`crate`], and 3 for a capture of
//! which a part is missing.

mod access;
mod address;
mod args;
mod capture;
mod complete;
mod config;
mod controllers;
mod credential;
mod custody;
mod dial;
mod doctor;
mod failure;
mod feed;
mod render;
mod request;
mod state;
mod tunnel;

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use jiff::Timestamp;
use remora_capture::session::{CaptureId, Writing};
use remora_proto::v1;

pub(crate) use args::KubeArgs;

use self::{
    access::Access,
    args::Command,
    failure::Right,
    feed::{Progress, Source},
    state::ClusterCapture,
};
use crate::{
    args::Format,
    commands::Outcome,
    follow::{Ownership, follow},
    output::{Output, compression_of},
    signals::Interrupt,
    terminal,
};

/// Does what the arguments say.
///
/// # Errors
/// Nothing was done; the error says why and what to do.
pub(crate) async fn run(args: KubeArgs) -> anyhow::Result<Outcome> {
    let flags = args.access;
    match args.command {
        Command::Capture(args) => capture::run(&Access::open(&flags).await?, &args).await,
        Command::Get { id, write } => get(&Access::open(&flags).await?, id, &write).await,
        Command::List {
            all,
            all_namespaces,
            output,
        } => {
            let access = Access::open(&flags).await?;
            let namespace = (!all_namespaces).then_some(access.namespace.as_str());
            list(&access, namespace, all, output).await
        }
        Command::Show { id, output } => {
            let access = Access::open(&flags).await?;
            let state = source(&access, id).get().await?;
            print(&render::show(&state, output)?)
        }
        Command::Stop { ids } => stop(&Access::open(&flags).await?, &ids).await,
        Command::Delete {
            ids,
            reason,
            not_uploaded,
        } => custody::delete(&Access::open(&flags).await?, &ids, (&reason, not_uploaded)).await,
        Command::Hold { id, reason } => {
            custody::hold(&Access::open(&flags).await?, id, &reason).await
        }
        Command::Release { id } => custody::release(&Access::open(&flags).await?, id).await,
        Command::Status { output } => {
            let access = Access::open(&flags).await?;
            let request = v1::ClusterStatusRequest {};
            let status = access
                .controllers
                .call(Right::to_see(None), request, async |client, request| {
                    client.status(request).await
                })
                .await?;
            print(&render::status(status, output)?)
        }
        Command::Doctor => doctor::run(&flags).await,
        Command::Completions { shell } => crate::shell::completions(KubeArgs::command(), shell),
        Command::Complete { words } => print(&complete::complete(&words).await),
    }
}

fn print(text: &str) -> anyhow::Result<Outcome> {
    terminal::print(text).context("standard output failed")?;
    Ok(Outcome::Done)
}

/// A capture of which only the id is known.
fn source(access: &Access, id: CaptureId) -> Source {
    Source {
        controllers: access.controllers.clone(),
        id,
        namespace: Some(access.namespace.clone()),
        deadline: None,
    }
}

async fn get(access: &Access, id: CaptureId, path: &Path) -> anyhow::Result<Outcome> {
    let source = source(access, id);
    let writing = Writing {
        compression: compression_of(path),
        ..Writing::default()
    };
    // Before there is a file: the id may be unknown.
    let progress = Progress::of(&source, None);
    let feed = source.open(progress.clone()).await?;
    let output = Output::open(path, writing)?;
    let mut interrupt = Interrupt::install()?;
    let (written, end) = follow(feed, Ownership::Other, output, &mut interrupt).await?;
    let outcome = render::tell_end(&written, &end, &progress);
    capture::tell_place(path, &written);
    Ok(outcome)
}

async fn list(
    access: &Access,
    namespace: Option<&str>,
    all: bool,
    format: Format,
) -> anyhow::Result<Outcome> {
    let request = v1::ClusterListRequest {
        namespace: namespace.unwrap_or_default().to_owned(),
        all,
    };
    let v1::ClusterListResponse { captures, missing } = access
        .controllers
        .call(
            Right::to_see(namespace),
            request,
            async |client, request| client.list(request).await,
        )
        .await?;
    let mut outcome = Outcome::Done;
    let mut understood = Vec::new();
    for capture in captures {
        match ClusterCapture::understood(capture) {
            Ok(capture) => understood.push(capture),
            // The others are worth seeing.
            Err(error) => {
                terminal::error(&error);
                outcome = Outcome::Faulty;
            }
        }
    }
    print(&render::list(understood, format, Timestamp::now())?)?;
    for line in render::silent_nodes(&missing) {
        terminal::note(&line);
    }
    Ok(match outcome {
        Outcome::Done if !missing.is_empty() => Outcome::Partly,
        outcome => outcome,
    })
}

async fn stop(access: &Access, ids: &[CaptureId]) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Done;
    for id in ids {
        let request = v1::ClusterStopRequest { id: id.to_string() };
        let right = Right::to_capture(Some(&access.namespace));
        let stopped = access
            .controllers
            .call(right, request, async |client, request| {
                client.stop(request).await
            })
            .await
            .and_then(|answer| ClusterCapture::known(answer.capture));
        match stopped {
            Ok(state) => {
                print(&render::show(&state, Format::Table)?)?;
            }
            // The others may be stopped all the same.
            Err(error) => {
                terminal::error(&error);
                outcome = Outcome::Faulty;
            }
        }
    }
    Ok(outcome)
}
