use remora_capture::pcapng::{PacketDirection, PacketMeta, encode_packet, read_packets};

use super::*;
use crate::writer::memory::Share;

/// Fails once, then takes everything again.
#[derive(Default)]
struct FailsOnce {
    file: Arc<std::sync::Mutex<Vec<u8>>>,
    totals: Totals,
    appends: u32,
}

/// Number of the append that fails.
const FAILS: u32 = 2;

impl Sink for FailsOnce {
    fn append(&mut self, blocks: Blocks, counted: Whole) -> Result<(), AppendError> {
        self.appends += 1;
        if self.appends == FAILS {
            return Err(AppendError {
                reason: StopReason::IoError,
                problem: "once".to_owned(),
            });
        }
        self.file
            .lock()
            .expect("no panic")
            .extend_from_slice(blocks.as_ref());
        self.totals.packets += counted.packets;
        self.totals.bytes += counted.bytes as u64;
        Ok(())
    }

    fn totals(&self) -> Totals {
        self.totals
    }

    fn finish(&mut self) -> (Finished, Result<(), String>) {
        (Finished::default(), Ok(()))
    }
}

fn batch(share: &Share, id: u64) -> Batch {
    let meta = PacketMeta {
        interface_id: 0,
        time_ns: 0,
        direction: PacketDirection::Ingress,
        packet_id: Some(id),
        drop_count: 0,
        original_len: 60,
        comment: None,
    };
    let mut blocks = share.buffer();
    encode_packet(&mut blocks, &meta, &[], &[7; 60]);
    Batch {
        blocks,
        packets: 1,
        packet_blocks: 1,
        permit: share.permit().expect("room"),
    }
}

#[test]
fn after_a_failure_that_passes_no_gap_is_in_the_file_that_no_packet_tells() {
    let sink = FailsOnce::default();
    let file = Arc::clone(&sink.file);
    let (signals, mut signalled) = tokio::sync::mpsc::channel(8);
    let meter = Arc::new(Meter::default());
    let mut writer = Writer {
        sink: Box::new(sink),
        meter: Arc::clone(&meter),
        signals,
        slot: Slot(0),
        generation: 1,
        started: Timestamp::now(),
        ended: Ended::default(),
    };
    let share = Memory::default().share();
    for id in 0..4 {
        writer.write(batch(&share, id));
    }
    assert_eq!(
        signalled.try_recv().map(|s| s.reason),
        Ok(StopReason::IoError)
    );
    assert!(signalled.try_recv().is_err(), "told once");
    let mut blocks = pcapng::section_header(&pcapng::Section::default());
    blocks.extend(pcapng::interface_description(&pcapng::Interface {
        name: "",
        description: "",
        filter: &"".parse().expect("filter"),
        snaplen: Default::default(),
    }));
    blocks.extend_from_slice(&file.lock().expect("no panic"));
    let mut expected = None;
    let packets = read_packets(&blocks[..]).expect("whole");
    for packet in &packets {
        if let Some(expected) = expected {
            assert_eq!(
                packet.packet_id,
                Some(expected + packet.drop_count),
                "a gap that is not told"
            );
        }
        expected = packet.packet_id.map(|id| id + 1);
    }
    let (written, dropped) = (meter.written.load(Relaxed), meter.dropped_io.load(Relaxed));
    assert_eq!((written, written + dropped), (packets.len() as u64, 4));
}
