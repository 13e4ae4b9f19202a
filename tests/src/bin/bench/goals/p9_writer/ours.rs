//! The agent's consumer, lane, encoder, writer and store, as an agent puts them together.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, Release},
        },
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::UsageWho;
use remora_agent::{
    node::NodeFacts,
    record::look_back::Reading,
    session::{
        BoundTap, Confirm, KernelCounts, LinkEnd, Meter, Opening, Outputs as _, Slot, Takes,
        TapHook, TapId, View,
    },
    sink::{SessionOutputs, Store},
    writer::{Consumer, memory::Memory, past::Rings},
};
use remora_capture::session::{
    CaptureId, CaptureState, Counts, Files, Phase, SessionSpec, TapInfo, Target,
};

use super::{
    Written, ensure_whole,
    records::{FromMemory, GENERATION, TAP},
    timed,
};

const SLOT: Slot = Slot(0);
/// How often it is looked whether all records are read.
const LOOK: Duration = Duration::from_micros(200);

/// Nobody looks back.
struct NoRings;

impl Rings for NoRings {
    fn read(&self, _: TapId, _: u64) -> Result<Vec<Arc<Reading>>, String> {
        Ok(Vec::new())
    }

    fn flow(&self, _: u32) -> Option<remora_agent_common::look_back::FlowState> {
        None
    }
}

/// Writes a capture of so many packets.
pub(super) fn write(directory: &Path, packets: u64, frame: usize) -> Result<Written> {
    let directory = directory.join("store");
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let node = NodeFacts::of_this_machine(None)?;
    let store = Arc::new(Store::open(&directory, u64::MAX, node.clone())?);
    let meter = Arc::new(Meter::default());
    let open = Arc::new(AtomicBool::new(false));
    let source = FromMemory::new(packets, frame, Arc::clone(&meter), Arc::clone(&open))?;
    let (handle, consumer) = Consumer::new(source);
    let reader = thread::spawn(move || consumer.run());
    let (signals, _signalled) = tokio::sync::mpsc::channel(8);
    let outputs = SessionOutputs {
        store,
        consumer: handle,
        memory: Memory::default(),
        signals,
        node,
        runtime: runtime.handle().clone(),
        rings: Arc::new(NoRings),
        pinned: None,
    };
    let tap = tap();
    let state = state(&tap);

    let written = timed(UsageWho::RUSAGE_SELF, || {
        let mut output = outputs.open(Opening {
            slot: SLOT,
            generation: GENERATION,
            state: &state,
            taps: &[tap],
            notes: &[],
            meter: Arc::clone(&meter),
            confirm: Confirm::nothing(),
            standing: &|| unreachable!("it does not outlive its agent"),
        })?;
        output.armed(0);
        open.store(true, Release);
        while meter.read.load(Relaxed) < packets {
            thread::sleep(LOOK);
        }
        let closed = output.close(KernelCounts {
            seen: packets,
            matched: packets,
            submitted: packets,
            ..KernelCounts::default()
        });
        let counts = closed.counts;
        ensure!(
            counts.written == packets && closed.problem.is_none(),
            "not all was written: {counts:?} {:?}",
            closed.problem
        );
        Ok(counts.written_bytes)
    })?;
    drop(outputs);
    ensure!(reader.join().is_ok(), "the consumer failed");
    let file = directory.join(format!("{}.pcapng", state.id));
    ensure_whole(&file, packets)?;
    std::fs::remove_dir_all(&directory).context("failed to remove the store")?;
    Ok(written)
}

fn tap() -> BoundTap {
    BoundTap {
        id: TapId {
            index: TAP,
            generation: GENERATION,
        },
        info: TapInfo {
            hook: "tcx".into(),
            interface: "veth0".into(),
            ..TapInfo::default()
        },
        hook: TapHook::Tc,
        view: View::Pod,
        end: LinkEnd::VethHost,
        takes: Takes::All,
    }
}

fn state(tap: &BoundTap) -> CaptureState {
    CaptureState {
        id: CaptureId::generate(),
        spec: SessionSpec::new(Target::Interface("veth0".into())),
        phase: Phase::Capturing,
        stop_reason: None,
        message: String::new(),
        counts: Counts::default(),
        started: jiff::Timestamp::now(),
        finished: None,
        first_packet: None,
        last_packet: None,
        file: String::new(),
        files: Files::default(),
        taps: vec![tap.info.clone()],
        node: "bench".into(),
        caller: String::new(),
        resolved_target: String::new(),
        pod: None,
    }
}
