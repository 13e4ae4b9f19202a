//! The capture that the arguments mean.

use anyhow::bail;
use jiff::Timestamp;
use remora_capture::session::{Destination, Selector, SessionSpec, Target};
use remora_proto::v1;

use super::args::KubeCaptureArgs;
use crate::spec::{self, Wanted, Writer};

/// Words that begin a filter, not the name of a pod.
const FILTER_WORDS: [&str; 20] = [
    "arp",
    "dst",
    "ether",
    "gateway",
    "greater",
    "host",
    "icmp",
    "icmp6",
    "ip",
    "ip6",
    "less",
    "net",
    "not",
    "port",
    "portrange",
    "proto",
    "sctp",
    "src",
    "tcp",
    "udp",
];

/// What is asked of the controller.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) selector: Selector,
    /// Its target is the controller's to fill in, for each part.
    pub(super) spec: SessionSpec,
    pub(super) fixed: bool,
}

impl Wish {
    /// # Errors
    /// On one line what is wrong and what to do; a filter's error has two more lines that point at
    /// the word.
    pub(super) fn of(
        args: &KubeCaptureArgs,
        namespace: &str,
        requester: &str,
    ) -> anyhow::Result<Self> {
        let (selector, words) = selector(args, namespace)?;
        // Beside a file of ours the agents keep plain ones.
        let writer = match args.write {
            Some(_) => Writer::Us,
            None => Writer::Agent,
        };
        let wanted = Wanted {
            target: Target::CgroupPath("/".into()),
            words,
            count: args.count,
            destination: if args.store {
                Destination::Store
            } else {
                Destination::Stream
            },
            sink: args.destination.clone(),
            writing: spec::writing(&args.options, args.write.as_deref(), args.compress),
            writer,
        };
        if args.write.is_none() && !args.store {
            bail!(
                "packets are not printed here; use -w FILE, -w - | tshark -r -, or --store to keep \
                 them on their nodes"
            );
        }
        Ok(Self {
            selector,
            spec: spec::build(&args.options, wanted, requester)?,
            fixed: args.fixed,
        })
    }

    /// `key` and the time, which `now` is, make one capture of what several replicas are asked.
    pub(super) fn request(&self, key: String, now: Timestamp) -> v1::ClusterStartRequest {
        let mut spec = self.spec.clone();
        spec.trigger.time = Some(now);
        v1::ClusterStartRequest {
            selector: Some((&self.selector).into()),
            spec: Some(v1::CaptureSpec {
                target: None,
                part: None,
                ..(&spec).into()
            }),
            fixed: self.fixed,
            idempotency_key: key,
        }
    }
}

/// The filter's programs as `-d` prints them; with -f no target is needed.
///
/// # Errors
/// As [`Wish::of`].
pub(super) fn dump(args: &KubeCaptureArgs, namespace: &str) -> anyhow::Result<String> {
    match &args.options.filter {
        Some(filter) if args.words.is_empty() => spec::listing(filter),
        _ => spec::listing(&spec::filter_text(
            &args.options,
            selector(args, namespace)?.1,
        )?),
    }
}

/// What is selected, and the words that are left for the filter.
fn selector<'a>(
    args: &'a KubeCaptureArgs,
    namespace: &str,
) -> anyhow::Result<(Selector, &'a [String])> {
    if let Some(labels) = &args.selector {
        if let Some(word) = args.words.first().filter(|word| is_object(word)) {
            bail!("both -l {labels} and {word} are targets; use one");
        }
        if args.container.is_some() {
            bail!("-c is a container of one pod; use it with pod/NAME");
        }
        let selector = Selector::Labels {
            namespace: namespace.to_owned(),
            labels: labels.clone(),
        };
        selector.validate()?;
        return Ok((selector, &args.words));
    }
    let Some((first, words)) = args.words.split_first() else {
        bail!("no target; use pod/NAME, deploy/NAME, svc/NAME, node/NAME or -l LABELS");
    };
    if FILTER_WORDS.contains(&first.as_str()) {
        bail!(
            "no target before the filter `{first} …`; use pod/NAME, deploy/NAME, svc/NAME, node/NAME \
             or -l LABELS"
        );
    }
    let mut selector = Selector::parse(first, namespace)?;
    if let Some(name) = &args.container {
        match &mut selector {
            Selector::Pod { container, .. } => *container = Some(name.clone()),
            _ => bail!("-c is a container of one pod; use it with pod/NAME, not with {first}"),
        }
        selector.validate()?;
    }
    Ok((selector, words))
}

/// A word that is a target rather than a filter's, such as `pod/cart`.
fn is_object(word: &str) -> bool {
    word.contains('/') && Selector::parse(word, "default").is_ok()
}

#[cfg(test)]
mod tests;
