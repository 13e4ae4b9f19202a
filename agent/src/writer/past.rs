//! A session's look-back: from copies of its taps' rings to the blocks before its own first packet.
//!
//! ```text
//!            ring of the tap, in the kernel, always written
//!  ──────────────────────────────────────────────▶ time
//!        since        armed (its bit set)    copied
//!          │  look-back   │  live: the session's own records
//!          ▼              ▼
//!   taken from the ring ──┘ each packet that did not see the bit; it is in no record
//! ```
//! Each packet of the ring carries the bitmap of the tap's sessions as its program read it before
//! the time: a session takes those that did not see its bit, and those that saw an earlier
//! session's in the same slot, which came before it was armed. So none is missing and none is
//! there twice, however the packets of several CPUs are interleaved with the arming.

use std::{collections::HashSet, sync::Arc, time::Duration};

use remora_agent_common::{
    look_back::{FlowState, flow_index, flow_tag},
    record::LINK_IP,
};
use remora_capture::{
    filter::{
        Filter, Meaning,
        program::{Frame, LinkType},
    },
    pcapng::PacketDirection,
    session::Direction,
};

use super::encoder::{Encoder, FileInterface, Marks};
use crate::{
    record::{
        Packet,
        look_back::{Reading, Recorded},
    },
    session::{Slot, TapId},
};

/// The rings of recorded taps.
pub trait Rings: Send + Sync + 'static {
    /// What a tap's rings held when a session was armed at `armed_ns`, oldest ring first, with all
    /// packets whose programs did not see the session; none if it is not recorded. Blocks for
    /// milliseconds.
    ///
    /// # Errors
    /// Why not, for a person.
    fn read(&self, tap: TapId, armed_ns: u64) -> Result<Vec<Arc<Reading>>, String>;

    /// A place of the flow table as it is now.
    fn flow(&self, index: u32) -> Option<FlowState>;
}

/// What a session wants from the past.
#[derive(Clone, Debug)]
pub struct Wish {
    pub slot: Slot,
    /// How far back from the moment of arming.
    pub reach: Duration,
    pub filter: Filter,
    pub direction: Direction,
    /// Bytes of blocks at the most; the oldest packets are left out first.
    pub bytes: Option<u64>,
}

/// What it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    pub blocks: Vec<u8>,
    /// Packets from that time that the session did not get by itself.
    pub seen: u64,
    /// Those that its filter took.
    pub matched: u64,
    /// Those of them that had no room.
    pub over_budget: u64,
    /// UTC of the oldest packet in the blocks, nanoseconds.
    pub first_ns: Option<u64>,
    /// UTC of the newest.
    pub last_ns: Option<u64>,
    /// For a person.
    pub notes: Vec<String>,
}

/// Chooses, and encodes.
pub struct Chooser<'a> {
    pub wish: &'a Wish,
    pub encoder: &'a Encoder,
    /// Kernel time before the session's bit was set.
    pub armed_ns: u64,
    /// Kernel time before its bit was taken back, if that has happened.
    pub until_ns: u64,
    pub rings: &'a dyn Rings,
}

struct Taken<'a> {
    packet: Packet<'a>,
    interface: FileInterface,
    left_out_before: u64,
    left_out_after: u64,
    headers_only: bool,
}

impl Chooser<'_> {
    /// From what the session's taps had.
    #[must_use]
    pub fn choose(&self, taps: &[(TapId, Vec<Arc<Reading>>)]) -> Past {
        let mut past = Past::default();
        let mut taken = Vec::new();
        let taps: Vec<_> = taps
            .iter()
            .map(|(tap, readings)| (*tap, without_a_hole(readings)))
            .collect();
        let mut headers_only = 0;
        for (tap, readings) in &taps {
            headers_only += self.take(*tap, readings, &mut past, &mut taken);
        }
        past.matched = taken.len() as u64;
        past.notes = self.notes(&taps, &taken);
        if headers_only > 0 {
            past.notes.push(format!(
                "look-back: {headers_only} packets were recorded by their headers alone (look-back \
                 mode headers): their payload is not here, and a filter that asks for it takes none \
                 of them"
            ));
        }
        taken.sort_by_key(|taken: &Taken<'_>| taken.packet.header.time_ns);
        self.encode(&taken, &mut past);
        past
    }

    fn since(&self) -> u64 {
        let reach = u64::try_from(self.wish.reach.as_nanos()).unwrap_or(u64::MAX);
        self.armed_ns.saturating_sub(reach)
    }

    /// How many of the packets are there without their payload.
    fn take<'a>(
        &self,
        tap: TapId,
        readings: &'a [Arc<Reading>],
        past: &mut Past,
        taken: &mut Vec<Taken<'a>>,
    ) -> u64 {
        let since = self.since();
        let mut flows = HashSet::new();
        let mut headers_only = 0;
        // Newest first: the first that is met of a flow is its last.
        let newest_first = readings
            .iter()
            .rev()
            .flat_map(|reading| reading.copied.packets().into_iter().rev());
        for recorded in newest_first {
            let is_headers_only = recorded.is_headers_only();
            let Recorded {
                mut packet,
                flow,
                left_out,
            } = recorded;
            let direction = packet.header.direction.into();
            let is_last = flows.insert((flow, direction));
            let time_ns = packet.header.time_ns;
            if self.has_it(&packet) || time_ns < since || time_ns >= self.until_ns {
                continue;
            }
            past.seen += 1;
            headers_only += u64::from(is_headers_only);
            packet.header.tap = tap.index;
            packet.header.tap_generation = tap.generation;
            let Some(interface) = self.encoder.interface(&packet) else {
                continue;
            };
            if !self.is_wanted(&packet, interface) {
                continue;
            }
            let left_out_after = if is_last {
                let tag = flow_tag(flow, tap.index, tap.generation, direction);
                let place = flow_index(flow, tap.index, direction);
                let state = self.rings.flow(place).filter(|state| state.tag == tag);
                state.map_or(0, |state| state.cut_packets)
            } else {
                0
            };
            taken.push(Taken {
                packet,
                interface,
                left_out_before: left_out.into(),
                left_out_after,
                headers_only: is_headers_only,
            });
        }
        headers_only
    }

    /// It came after the session was armed, and its programs saw the session: see
    /// the module.
    fn has_it(&self, packet: &Packet<'_>) -> bool {
        let header = &packet.header;
        header.sessions >> self.wish.slot.0 & 1 != 0 && header.time_ns >= self.armed_ns
    }

    fn is_wanted(&self, packet: &Packet<'_>, interface: FileInterface) -> bool {
        let direction = Encoder::direction(packet, interface);
        let way = match self.wish.direction {
            Direction::Both => true,
            Direction::Ingress => direction == PacketDirection::Ingress,
            Direction::Egress => direction == PacketDirection::Egress,
        };
        way && !interface.leaves_to_others(direction) && self.matches(packet)
    }

    /// The verdict that its programs would have given.
    fn matches(&self, packet: &Packet<'_>) -> bool {
        let (frame, wire_len) = Encoder::frame(packet);
        match self.wish.filter.meaning() {
            Meaning::Terms(terms) => terms.matches(&frame),
            Meaning::Programs(programs) if packet.header.link == LINK_IP => {
                let bytes = packet.data;
                programs
                    .of(LinkType::Raw)
                    .is_some_and(|raw| raw.run(Frame { bytes, wire_len }))
            }
            Meaning::Programs(programs) => programs.ethernet.run(Frame {
                bytes: &frame,
                wire_len,
            }),
            // No session is armed with it.
            Meaning::Unread => false,
        }
    }

    /// How far back it goes if that is less than was asked, and what the cutoff left out.
    fn notes(&self, taps: &[(TapId, &[Arc<Reading>])], taken: &[Taken<'_>]) -> Vec<String> {
        let mut notes = Vec::new();
        let reaches = taps
            .iter()
            .filter_map(|(_, readings)| readings.iter().map(|reading| reading.reaches_ns()).min())
            .max();
        match reaches {
            None => notes.push(
                "look-back: nothing was recorded of this target (look-back is of pods behind a \
                 veth, while the agent has memory for it)"
                    .to_owned(),
            ),
            Some(reaches) if reaches > self.since() => {
                let reach = Duration::from_nanos(self.armed_ns.saturating_sub(reaches));
                notes.push(format!(
                    "look-back: it reaches {:.1} s back, {:.1} s were asked for",
                    reach.as_secs_f64(),
                    self.wish.reach.as_secs_f64()
                ));
            }
            Some(_) => {}
        }
        let left_out: u64 = taken
            .iter()
            .map(|taken| taken.left_out_before + taken.left_out_after)
            .sum();
        if left_out > 0 {
            notes.push(format!(
                "look-back: the flow cutoff left out {left_out} packets of flows that are here; \
                 the packets before and after say so"
            ));
        }
        notes
    }

    fn encode(&self, taken: &[Taken<'_>], past: &mut Past) {
        let mut starts = Vec::with_capacity(taken.len());
        for taken in taken {
            starts.push(past.blocks.len());
            let marks = Marks {
                packet_id: None,
                drop_count: 0,
                comment: Some(&taken.comment()),
            };
            self.encoder
                .encode(&mut past.blocks, &taken.packet, taken.interface, &marks);
        }
        let room = self.wish.bytes.unwrap_or(u64::MAX);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let len = past.blocks.len();
        let out = starts.iter().take_while(|start| len - **start > room);
        let out = out.count();
        past.over_budget = out as u64;
        past.blocks.drain(..starts.get(out).copied().unwrap_or(len));
        let kept = taken.get(out..).unwrap_or_default();
        let time = |taken: &Taken<'_>| self.encoder.utc(taken.packet.header.time_ns);
        past.first_ns = kept.first().map(time);
        past.last_ns = kept.last().map(time);
    }
}

/// The readings, oldest first, from the last one on that was written over: before it there is a
/// hole.
fn without_a_hole(readings: &[Arc<Reading>]) -> &[Arc<Reading>] {
    let last = readings
        .iter()
        .rposition(|reading| reading.is_overwritten());
    readings.get(last.unwrap_or(0)..).unwrap_or_default()
}

impl Taken<'_> {
    fn comment(&self) -> String {
        let mut comment = "look-back".to_owned();
        if self.headers_only {
            comment += "; headers only";
        }
        for (left_out, place) in [
            (self.left_out_before, "before"),
            (self.left_out_after, "after"),
        ] {
            if left_out > 0 {
                comment += &format!(
                    "; flow cutoff: {left_out} packets of this direction {place} it are left out"
                );
            }
        }
        comment
    }
}
