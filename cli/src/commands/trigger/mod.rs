//! `remora trigger --stdin`: alerts, a line each, to the controller of this host. It is what Falco's
//! `program_output` starts, where nothing else can post.
//!
//! Each line has one answer, on one line; in the end received = accepted + existing + ignored +
//! refused. Lines go one after the other, so what is read waits in Falco's pipe, and nowhere here.

mod lines;
mod post;

use std::{
    fmt,
    io::{self, BufRead},
    path::Path,
};

use anyhow::{Context as _, ensure};
use remora_capture::text::one_line;

use self::{lines::Lines, post::Controller};
use super::Outcome;
use crate::{args::TriggerArgs, terminal};

/// Longest reason that is printed, in bytes.
const REASON_MAX: usize = 512;

/// What became of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    decision: Decision,
    /// The capture, or why there is none.
    told: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Accepted,
    Existing,
    Ignored,
    Refused,
}

impl Answer {
    fn refused(code: &str, reason: impl fmt::Display) -> Self {
        Self {
            decision: Decision::Refused,
            told: format!("{code}: {reason}"),
        }
    }
}

impl Decision {
    fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Existing => "existing",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
        }
    }
}

/// How many lines had which answer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    received: u64,
    accepted: u64,
    existing: u64,
    ignored: u64,
    refused: u64,
}

impl Counts {
    fn add(&mut self, decision: Decision) {
        let count = match decision {
            Decision::Accepted => &mut self.accepted,
            Decision::Existing => &mut self.existing,
            Decision::Ignored => &mut self.ignored,
            Decision::Refused => &mut self.refused,
        };
        *count += 1;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            received,
            accepted,
            existing,
            ignored,
            refused,
        } = self;
        write!(
            f,
            "{received} alerts received: {accepted} accepted, {existing} existing, {ignored} ignored, \
             {refused} refused"
        )
    }
}

/// # Errors
/// The controller cannot be where the arguments say, the secret cannot be read, or standard input or
/// output failed.
pub(super) async fn run(args: &TriggerArgs) -> anyhow::Result<Outcome> {
    ensure!(
        args.stdin,
        "where from? `--stdin` takes alerts from standard input, a line each"
    );
    ensure!(
        args.to.ip().is_loopback(),
        "{} is another machine, and alerts go there in the clear; let Falco post by https itself \
         (http_output), or run a controller here",
        args.to
    );
    let secret = args.secret.as_deref().map(secret).transpose()?;
    let controller = Controller::new(args.to, secret)?;
    let counts = forward(io::stdin().lock(), &controller).await?;
    terminal::note(&counts.to_string());
    Ok(match counts.refused {
        0 => Outcome::Done,
        _ => Outcome::Faulty,
    })
}

async fn forward(input: impl BufRead, controller: &Controller) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    for line in Lines::new(input) {
        let answer = match line.context("standard input failed")? {
            Ok(alert) => controller.post(&alert).await,
            Err(too_long) => Answer::refused("too_large", too_long),
        };
        counts.received += 1;
        counts.add(answer.decision);
        let told = one_line(&answer.told, REASON_MAX);
        terminal::print(&format!("{} {told}\n", answer.decision.word()))
            .context("standard output failed")?;
    }
    Ok(counts)
}

fn secret(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the secret {}", path.display()))?;
    let text = text.trim_end().to_owned();
    ensure!(
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()),
        "the secret {} is not one line of visible ASCII",
        path.display()
    );
    Ok(text)
}
