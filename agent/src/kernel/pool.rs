//! Where filter programs lie in the kernel: one pool of instructions for all sessions.
//!
//! ```text
//! free ──arm: written──▶ a slot's ──disarm──▶ leaving ──grace──▶ free
//! ```
//! A room is written while no program runs what is in it: a session is armed after it, and it is
//! free only when nothing that ran before the session's end still runs.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData};
use remora_agent_common::{
    SESSION_SLOTS,
    program::{Instruction, PROGRAM_POOL, Span},
};
use remora_capture::filter::program::{self, Program, Programs};

use super::{KernelError, layouts::Layout, tables::failed};

pub(super) struct Pool {
    instructions: Array<MapData, Layout<Instruction>>,
    rooms: Rooms,
    /// By slot; empty if the session's filter is no program.
    held: [Span; SESSION_SLOTS as usize],
    leaving: Vec<Span>,
}

/// Where a session's programs lie; empty where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans {
    pub(super) ethernet: Span,
    pub(super) ip: Span,
}

impl Pool {
    pub(super) fn new(instructions: Array<MapData, Layout<Instruction>>) -> Self {
        Self {
            instructions,
            rooms: Rooms::of(PROGRAM_POOL),
            held: [Span::default(); SESSION_SLOTS as usize],
            leaving: Vec::new(),
        }
    }

    /// Writes the programs of a slot that is about to be armed.
    ///
    /// # Errors
    /// There is no room, or the kernel refuses.
    pub(super) fn write(&mut self, slot: u32, programs: &Programs) -> Result<Spans, KernelError> {
        let Programs { ethernet, raw } = programs;
        let ethernet = ethernet.instructions();
        let raw = raw.as_ref().map_or(&[][..], Program::instructions);
        let wanted = u32::try_from(ethernet.len() + raw.len()).unwrap_or(u32::MAX);
        // What is still the slot's was never armed: that failed in between.
        let stale = std::mem::take(self.held(slot));
        self.rooms.give(stale);
        let room = self.rooms.take(wanted).ok_or(KernelError::PoolFull {
            wanted,
            room: self.rooms.largest(),
        })?;
        *self.held(slot) = room;
        for (place, instruction) in (room.start..).zip(ethernet.iter().chain(raw)) {
            let &program::Instruction { code, jt, jf, k } = instruction;
            let instruction = Instruction { code, jt, jf, k };
            self.instructions
                .set(place, Layout(instruction), 0)
                .map_err(failed("PROGRAMS"))?;
        }
        let middle = ethernet.len() as u32;
        Ok(Spans {
            ethernet: Span {
                start: room.start,
                len: middle,
            },
            ip: Span {
                start: room.start + middle,
                len: room.len - middle,
            },
        })
    }

    /// A session of an agent before this one has its programs there.
    pub(super) fn hold(&mut self, slot: u32, spans: Spans) {
        let Spans { ethernet, ip } = spans;
        let room = Span {
            start: ethernet.start,
            len: ethernet.len + ip.len,
        };
        if self.rooms.take_at(room) {
            *self.held(slot) = room;
        }
    }

    /// A slot was disarmed; what is running may still read its programs.
    pub(super) fn leave(&mut self, slot: u32) {
        let room = std::mem::take(self.held(slot));
        self.leaving.push(room);
    }

    /// Rooms that [`Pool::free`] may be given after a grace period.
    pub(super) fn take_leaving(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.leaving)
    }

    pub(super) fn free(&mut self, left: Vec<Span>) {
        for room in left {
            self.rooms.give(room);
        }
    }

    fn held(&mut self, slot: u32) -> &mut Span {
        &mut self.held[slot as usize % SESSION_SLOTS as usize]
    }
}

/// Free rooms, by their start; no two of them touch.
#[derive(Debug)]
struct Rooms(BTreeMap<u32, u32>);

impl Rooms {
    fn of(len: u32) -> Self {
        Self(BTreeMap::from([(0, len)]))
    }

    /// The first room that is large enough.
    fn take(&mut self, len: u32) -> Option<Span> {
        let Self(free) = self;
        let (&start, &room) = free.iter().find(|(_, room)| **room >= len)?;
        free.remove(&start);
        if room > len {
            free.insert(start + len, room - len);
        }
        Some(Span { start, len })
    }

    /// Takes that very room; false if it is not free.
    fn take_at(&mut self, Span { start, len }: Span) -> bool {
        let Self(free) = self;
        let Some((&before, &room)) = free.range(..=start).next_back() else {
            return false;
        };
        if start + len > before + room {
            return false;
        }
        free.remove(&before);
        self.give(Span {
            start: before,
            len: start - before,
        });
        self.give(Span {
            start: start + len,
            len: before + room - start - len,
        });
        true
    }

    fn give(&mut self, Span { start, len }: Span) {
        let Self(free) = self;
        if len == 0 {
            return;
        }
        let (mut start, mut len) = (start, len);
        if let Some((&before, &room)) = free.range(..start).next_back()
            && before + room == start
        {
            free.remove(&before);
            start = before;
            len += room;
        }
        if let Some(room) = free.remove(&(start + len)) {
            len += room;
        }
        free.insert(start, len);
    }

    fn largest(&self) -> u32 {
        self.0.values().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rooms_never_overlap_and_all_that_is_given_back_is_one_again(
            steps in prop::collection::vec((0u32..400, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut rooms = Rooms::of(1000);
            let mut taken: Vec<Span> = Vec::new();
            let held = Span { start: 300, len: 50 };
            prop_assert!(rooms.take_at(held) && !rooms.take_at(held));
            taken.push(held);
            for (len, which) in steps {
                if len < 200 && !taken.is_empty() {
                    rooms.give(taken.swap_remove(which.index(taken.len())));
                } else if let Some(room) = rooms.take(len) {
                    prop_assert!(room.len == len && room.start + len <= 1000);
                    let apart = |other: &Span| {
                        other.start + other.len <= room.start || room.start + len <= other.start
                    };
                    prop_assert!(taken.iter().all(apart));
                    taken.push(room);
                } else {
                    prop_assert!(rooms.largest() < len);
                }
                let used: u32 = taken.iter().map(|room| room.len).sum();
                prop_assert_eq!(rooms.0.values().sum::<u32>() + used, 1000);
            }
            for room in taken {
                rooms.give(room);
            }
            prop_assert_eq!(rooms.0, BTreeMap::from([(0, 1000)]));
        }
    }
}
