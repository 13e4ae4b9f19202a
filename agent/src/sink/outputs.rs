//! A session's output: the blocks before its packets, its sink, its writer.

use std::sync::Arc;

use jiff::Timestamp;
use remora_agent_common::checkpoint::{Checkpoint, SessionMark};
use remora_capture::{
    amendment::Amendment,
    pcapng::{self, Finished, Interface, Section},
    session::{CaptureId, CaptureState, Compression, Destination, PodIdentity, SpecError, Target},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use super::{
    Store,
    go_on::{Held, take_up},
    stream::StreamSink,
};
use crate::{
    clock::{self, ClockOffset},
    node::NodeFacts,
    session::{
        Amended, BoundTap, Ended, Growth, Meter, Opening, Output, Outputs, Signal, Slot, Standing,
        StartError, Stored,
    },
    writer::{
        ConsumerHandle, Sink,
        encoder::Encoder,
        lane::LaneStart,
        memory::Memory,
        output::{self, LookBack, OpenSink, OutputParts},
        past::{Rings, Wish},
    },
};

/// Makes outputs.
pub struct SessionOutputs {
    pub store: Arc<Store>,
    pub consumer: ConsumerHandle,
    pub memory: Memory,
    pub signals: mpsc::Sender<Signal>,
    pub node: NodeFacts,
    pub runtime: Handle,
    pub rings: Arc<dyn Rings>,
    /// How far the agent before this one had come, where sessions outlive their agent.
    pub pinned: Option<Box<Checkpoint>>,
}

impl SessionOutputs {
    fn look_back(&self, slot: Slot, state: &CaptureState, taps: &[BoundTap]) -> Option<LookBack> {
        let spec = &state.spec;
        (!spec.look_back.is_zero()).then(|| LookBack {
            wish: Wish {
                slot,
                reach: spec.look_back,
                filter: spec.filter.clone(),
                direction: spec.direction,
                // The rest is for what comes.
                bytes: spec.limits.file_bytes.map(|bytes| bytes.get() / 2),
            },
            taps: taps.iter().map(|tap| tap.id).collect(),
            rings: Arc::clone(&self.rings),
        })
    }

    /// A session's output on the files that it has; a stream has lost its reader.
    fn output_again(
        &self,
        standing: &mut Standing,
        taps: &[BoundTap],
        meter: Arc<Meter>,
    ) -> Result<Box<dyn Output>, String> {
        let own = SessionMark {
            capture: standing.state.id.words(),
            from: standing.from,
            ..SessionMark::default()
        };
        let slot = standing.slot as usize;
        let last = self.pinned.as_ref();
        let mark = last
            .and_then(|last| last.sessions.get(slot))
            .filter(|mark| mark.capture == own.capture)
            .unwrap_or(&own);
        let from = last.map_or(0, |last| last.time_ns);
        let from = Timestamp::from_nanosecond(from.into()).unwrap_or_default();
        standing.was_away(from, Timestamp::now());
        if !standing.state.spec.look_back.is_zero() && mark.past_done == 0 {
            LOOK_BACK_TORN.clone_into(&mut standing.state.message);
        }
        let state = &standing.state;
        let (sink, start, stored): (OpenSink, _, _) = match state.spec.destination {
            Destination::Store => {
                let (sender, growth) = watch::channel(Growth::default());
                let header = header(state, &standing.notes, &self.node);
                let (sink, held) = self
                    .store
                    .reopen(standing, header, mark.next_id, sender)
                    .map_err(|error| error.to_string())?;
                let start = take_up(&meter, mark, held);
                let open = move || -> Result<Box<dyn Sink>, StartError> { Ok(Box::new(sink)) };
                let stored = self.store.stored(state.id, Some(growth));
                (Box::new(open), start, Some(stored))
            }
            Destination::Stream => {
                let past = mark.past_matched.saturating_sub(mark.past_over_budget);
                let held = Held {
                    live: mark.written.saturating_sub(past),
                    past: Some(past),
                    until: mark.next_id,
                    ..Held::default()
                };
                let start = take_up(&meter, mark, held);
                let open = || Err(StartError::Output(STREAM_GONE.to_owned()));
                (Box::new(open), start, None)
            }
        };
        self.store
            .keep_standing(standing)
            .map_err(|error| error.to_string())?;
        let spec = &state.spec;
        let output = output::open(
            OutputParts {
                slot: Slot(standing.slot),
                generation: standing.generation,
                start,
                encoder: Encoder::new(
                    spec.snaplen.get(),
                    spec.super_packets,
                    standing.offset_ns,
                    taps,
                ),
                look_back: None,
                packet_limit: spec.limits.packets.map(std::num::NonZero::get),
                meter,
                memory: self.memory.clone(),
                signals: self.signals.clone(),
                started: state.started,
                header: Vec::new(),
                sink,
                stream: None,
                file: Some(state.file.clone()),
                stored,
            },
            self.consumer.clone(),
        );
        match output {
            Ok(mut output) => {
                // It has been all the while.
                output.armed(clock::monotonic_ns());
                Ok(Box::new(output))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What is said of a look back that nobody finishes: the rings began anew.
const LOOK_BACK_TORN: &str = "look-back: the agent died while it wrote what came before; it may be \
    incomplete";

/// What is said of a stream whose agent died.
const STREAM_GONE: &str = "the agent died, and with it the connection of this stream; what was sent \
    in its last moments may have arrived, and is counted as dropped all the same";

/// A frame that was open when its agent was killed cannot be gone on with.
const COMPRESSED_PINNED: &str = "this agent runs with --pin, whose captures outlive it, and a \
    compressed file cannot be gone on with: leave out --compress, or compress the file when it is \
    done";

impl SessionOutputs {
    fn open_new(&self, opening: Opening<'_>) -> Result<Box<dyn Output>, StartError> {
        let Opening {
            slot,
            generation,
            state,
            taps,
            notes,
            meter,
            confirm,
            standing,
        } = opening;
        if self.pinned.is_some() && state.spec.writing.compression != Compression::None {
            return Err(SpecError::Writing(COMPRESSED_PINNED).into());
        }
        let clock = ClockOffset::known();
        let header = header(state, notes, &self.node);
        let (sink, stream, file, stored): (OpenSink, _, _, _) = match state.spec.destination {
            Destination::Store => {
                let (prepared, file, stored) = self.store.prepare(state)?;
                let store = Arc::clone(&self.store);
                let state = state.clone();
                let open = move || -> Result<Box<dyn Sink>, StartError> {
                    Ok(Box::new(store.create(&state, prepared)?))
                };
                (Box::new(open), None, Some(file), Some(stored))
            }
            Destination::Stream => {
                let (sink, chunks) = StreamSink::new(self.runtime.clone());
                let (store, id) = (Arc::clone(&self.store), state.id);
                let open = move || -> Result<Box<dyn Sink>, StartError> {
                    store.opened(id);
                    Ok(Box::new(sink))
                };
                (Box::new(open), Some(chunks), None, None)
            }
        };
        // Nothing of it is in the ring before it is armed, and all of its slot's last session is.
        let from = self.consumer.frontier();
        let standing = self.pinned.as_ref().map(|_outlives| {
            let mut standing = standing();
            standing.from = from;
            standing.offset_ns = clock.offset_ns;
            standing.state.file = file.clone().unwrap_or_default();
            (Arc::clone(&self.store), standing)
        });
        let sink: OpenSink = Box::new(move || {
            confirm.now()?;
            // Before the file: a capture without one cannot be gone on with, and is known so.
            if let Some((store, standing)) = standing {
                store.keep_standing(&standing).map_err(|error| {
                    StartError::Output(format!("failed to keep how to go on with it: {error}"))
                })?;
            }
            sink()
        });
        let output = output::open(
            OutputParts {
                slot,
                generation,
                start: LaneStart {
                    capture: state.id.words(),
                    from,
                    ..LaneStart::default()
                },
                encoder: Encoder::new(
                    state.spec.snaplen.get(),
                    state.spec.super_packets,
                    clock.offset_ns,
                    taps,
                ),
                look_back: self.look_back(slot, state, taps),
                packet_limit: state.spec.limits.packets.map(std::num::NonZero::get),
                meter,
                memory: self.memory.clone(),
                signals: self.signals.clone(),
                started: state.started,
                header,
                sink,
                stream,
                file,
                stored,
            },
            self.consumer.clone(),
        )?;
        Ok(Box::new(output))
    }
}

impl Outputs for SessionOutputs {
    fn open(&self, opening: Opening<'_>) -> Result<Box<dyn Output>, StartError> {
        let id = opening.state.id;
        // Before it is armed: from then on it may be amended.
        self.store.expect(id);
        self.open_new(opening)
            .inspect_err(|_error| self.store.forget(id))
    }

    fn go_on(
        &self,
        standing: &mut Standing,
        taps: &[BoundTap],
        meter: Arc<Meter>,
    ) -> Result<Box<dyn Output>, String> {
        self.output_again(standing, taps, meter).map_err(|problem| {
            match self.store.recover_one(standing.state.id) {
                Ok(_closed) => problem,
                Err(error) => format!("{problem}; its files could not be closed: {error}"),
            }
        })
    }

    fn amend(&self, id: CaptureId, amendment: Amendment) -> Amended<'_> {
        Box::pin(async move {
            let log = self.store.amended(id).ok_or(Ended)?;
            // Here and not on another thread, as looking a target up.
            tokio::task::block_in_place(|| log.add(amendment))?;
            log.certain().await
        })
    }

    fn forget(&self, id: CaptureId) {
        self.store.forget(id);
    }

    fn keep(&self, state: &CaptureState, files: &Finished) -> Result<(), String> {
        self.store.keep(state, files)
    }

    fn stored(&self, id: CaptureId) -> Stored {
        self.store.stored(id, None)
    }
}

/// The blocks before the first packet: section, interfaces in the order of the taps, names.
fn header(state: &CaptureState, notes: &[String], node: &NodeFacts) -> Vec<u8> {
    let spec = &state.spec;
    let mut comments = vec![about(state)];
    comments.extend(notes.iter().map(|note| format!("note: {note}")));
    if !spec.trigger.alert.is_empty() {
        comments.push(format!("alert: {}", spec.trigger.alert));
    }
    let mut blocks = pcapng::section_header(&Section {
        hardware: std::env::consts::ARCH,
        os: &format!("{}, node {}", node.kernel, node.name),
        application: &format!("Remora {}", env!("CARGO_PKG_VERSION")),
        comments: &comments,
    });
    for tap in &state.taps {
        let labels = (spec.labels.get("namespace"), spec.labels.get("pod"));
        let target = match (&state.pod, labels) {
            (Some(pod), _) => format!("{}/", pod.full_name()),
            (None, (Some(namespace), Some(pod))) => format!("{namespace}/{pod}/"),
            _ if tap.cgroup_id == 0 && matches!(spec.target, Target::Interface(_)) => String::new(),
            _ if is_node(&spec.target) => format!("{}/", node.name),
            _ => format!("{}/", spec.target),
        };
        let pod = state.pod.as_deref();
        let container = pod.and_then(|pod| pod.container.as_deref());
        let about = pod.map(PodIdentity::description).unwrap_or_default();
        let about = match about.as_str() {
            "" => String::new(),
            about => format!("; {about}"),
        };
        blocks.extend(pcapng::interface_description(&Interface {
            name: &format!("{target}{}", container.unwrap_or(&tap.interface)),
            description: &format!(
                "{}: {}, node {}{about}",
                tap.hook, tap.description, node.name
            ),
            filter: &spec.filter,
            snaplen: spec.snaplen,
        }));
    }
    // What the node knows itself goes before what the request says.
    let mut names = state
        .pod
        .as_deref()
        .map(PodIdentity::names)
        .unwrap_or_default();
    names.extend_from_slice(&spec.names);
    if let Some(names) = pcapng::name_resolution(&names) {
        blocks.extend(names);
    }
    blocks
}

/// Who asked for what, on one line a fact.
fn about(state: &CaptureState) -> String {
    let spec = &state.spec;
    let trigger = &spec.trigger;
    let mut lines = vec![
        format!("capture: {}", state.id),
        format!("target: {}", state.resolved_target),
        format!("started: {}", state.started),
    ];
    if let Some(pod) = &state.pod {
        lines.push(format!("pod: {}, uid {}", pod.full_name(), pod.uid));
    }
    for (name, value) in [
        ("filter", spec.filter.text()),
        ("source", trigger.source.as_str()),
        ("rule", &trigger.rule),
        ("priority", &trigger.priority),
        ("requester", &trigger.requester),
        ("caller", &state.caller),
        ("reason", &trigger.reason),
    ] {
        if !value.is_empty() {
            lines.push(format!("{name}: {value}"));
        }
    }
    lines.join("\n")
}

/// The whole node, by its own interfaces.
fn is_node(target: &Target) -> bool {
    matches!(target, Target::CgroupPath(path) if path == "/")
}
