//! A session's output: the blocks before its packets, its sink, its writer.

use std::sync::Arc;

use remora_capture::{
    pcapng::{self, Finished, Interface, Section},
    session::{CaptureId, CaptureState, Destination, Target},
};
use tokio::{runtime::Handle, sync::mpsc};

use super::{Store, stream::StreamSink};
use crate::{
    clock::ClockOffset,
    node::NodeFacts,
    session::{BoundTap, Opening, Output, Outputs, Signal, Slot, StartError, Stored},
    writer::{
        ConsumerHandle, Sink,
        encoder::Encoder,
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
}

impl Outputs for SessionOutputs {
    fn open(&self, opening: Opening<'_>) -> Result<Box<dyn Output>, StartError> {
        let Opening {
            slot,
            generation,
            state,
            taps,
            notes,
            meter,
            confirm,
        } = opening;
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
                let open = move || -> Result<Box<dyn Sink>, StartError> { Ok(Box::new(sink)) };
                (Box::new(open), Some(chunks), None, None)
            }
        };
        let sink: OpenSink = Box::new(move || confirm.now().and_then(|()| sink()));
        let output = output::open(
            OutputParts {
                slot,
                generation,
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
        let target = match (spec.labels.get("namespace"), spec.labels.get("pod")) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod}/"),
            _ if tap.cgroup_id == 0 && matches!(spec.target, Target::Interface(_)) => String::new(),
            _ => format!("{}/", spec.target),
        };
        blocks.extend(pcapng::interface_description(&Interface {
            name: &format!("{target}{}", tap.interface),
            description: &format!("{}: {}, node {}", tap.hook, tap.description, node.name),
            filter: &spec.filter,
            snaplen: spec.snaplen,
        }));
    }
    if let Some(names) = pcapng::name_resolution(&spec.names) {
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
