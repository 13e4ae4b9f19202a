//! The tables of an agent that goes on with pinned maps: what belongs to sessions that go on stays as
//! it is, all else is emptied, while packets pass.

use std::collections::{BTreeMap, BTreeSet};

use remora_agent_common::{
    SESSION_SLOTS, TAP_SLOTS,
    session::{DIRECTION_INGRESS, FILTER_PROGRAM, Session},
    tap::TapSessions,
};

use super::{
    KernelError,
    layouts::Layout,
    pool::Spans,
    seen::Seen,
    tables::{ArmedFilter, Maps, Tables, failed},
    taps::Point,
};
use crate::session::{BoundTap, Standing, StillArmed, TapHook};

/// Where links of an agent before this one are still, with the programs of this one.
#[derive(Clone, Debug, Default)]
pub struct Attached {
    /// ifindexes.
    pub interfaces: BTreeSet<u32>,
    /// Ids.
    pub cgroups: BTreeSet<u64>,
}

impl Tables {
    /// Takes up the sessions of the agent before this one, where its links are still. To be called before anything is bound.
    ///
    /// # Returns
    /// Those whose slots are as they were: the others were never armed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restore(
        &self,
        standing: Vec<Standing>,
        attached: &Attached,
    ) -> Result<Vec<Standing>, KernelError> {
        let mut maps = self.maps();
        for index in 1..TAP_SLOTS {
            let Layout(tap) = maps.taps.get(&index, 0).map_err(failed("TAPS"))?;
            maps.table.known_generation(index, tap.generation);
        }
        let mut kept = Vec::new();
        let mut bits: BTreeMap<u32, u64> = BTreeMap::new();
        for mut session in standing {
            if let Some(entry) = maps.slot_of(&session)? {
                match session.deadline_ns {
                    _ if entry.deadline_ns != u64::MAX => session.ends_at(entry.deadline_ns),
                    None => {}
                    // Its agent was killed while it made it longer.
                    some => maps.set_deadline(session.slot, some)?,
                }
                maps.take_up(&session, &entry, attached)?;
                for tap in &session.taps {
                    if maps.table.is_bound(tap.id) {
                        *bits.entry(tap.id.index).or_default() |= 1 << session.slot;
                    }
                }
                kept.push(session);
            }
        }
        maps.clear_bits(&bits)?;
        maps.unpoint(attached)?;
        for session in &kept {
            let armed = maps.still_armed(session)?;
            if let Some(place) = maps.standing.get_mut(session.slot as usize) {
                *place = armed;
            }
        }
        maps.write_gate()?;
        Ok(kept)
    }

    /// What became of a restored session.
    pub fn still_armed(&self, slot: u32) -> StillArmed {
        let maps = self.maps();
        let standing = maps.standing.get(slot as usize);
        standing.copied().unwrap_or(StillArmed::No)
    }

    /// Nothing points from an interface that is not bound: not even what was before this agent.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn unpoint(&self, ifindex: u32) -> Result<(), KernelError> {
        let mut maps = self.maps();
        if maps.table.interface(ifindex).is_some() {
            return Ok(());
        }
        maps.point_interface(ifindex, 0)
    }
}

impl Maps {
    /// The session's slot, if it was filled for it.
    fn slot_of(&self, session: &Standing) -> Result<Option<Session>, KernelError> {
        if session.slot >= SESSION_SLOTS {
            return Ok(None);
        }
        let Layout(entry) = self
            .sessions
            .get(&session.slot, 0)
            .map_err(failed("SESSIONS"))?;
        let is_free = self.filters[session.slot as usize].is_none();
        Ok((is_free && entry.generation == session.generation).then_some(entry))
    }

    fn take_up(
        &mut self,
        session: &Standing,
        entry: &Session,
        attached: &Attached,
    ) -> Result<(), KernelError> {
        let slot = session.slot;
        for tap in &session.taps {
            if let Some((point, gone)) = self.point_of(session, tap, attached)? {
                self.table.restore(tap.id, point, gone);
                self.table.enter(tap.id);
            }
        }
        if entry.filter_kind == FILTER_PROGRAM {
            self.pool.hold(
                slot,
                Spans {
                    ethernet: entry.ethernet,
                    ip: entry.ip,
                },
            );
        }
        let index = slot as usize;
        if let Some(seen) = self.seen.get_mut(index) {
            let taps = session.taps.iter().map(|tap| tap.id);
            *seen = Seen::since(taps.zip(session.seen.iter().copied()));
        }
        if let Some(filter) = self.filters.get_mut(index) {
            *filter = Some(ArmedFilter {
                slot,
                generation: session.generation,
                spec: std::sync::Arc::new(session.state.spec.clone()),
            });
        }
        self.armed |= 1 << slot;
        if entry.directions & DIRECTION_INGRESS != 0 {
            self.ingress |= 1 << slot;
        }
        Ok(())
    }

    /// What a session's tap is bound to, and whether that is gone; none if its index is another's.
    fn point_of(
        &self,
        session: &Standing,
        tap: &BoundTap,
        attached: &Attached,
    ) -> Result<Option<(Point, bool)>, KernelError> {
        let index = tap.id.index;
        let Layout(now) = self.taps.get(&index, 0).map_err(failed("TAPS"))?;
        if now.generation != tap.id.generation {
            return Ok(None);
        }
        match tap.hook {
            TapHook::Tc => {
                let ifindex = tap.info.ifindex;
                let end = tap.end;
                let leads_here = self.pointed(ifindex)? == index;
                let gone = !(attached.interfaces.contains(&ifindex) && leads_here);
                Ok(Some((Point::Interface { ifindex, end }, gone)))
            }
            TapHook::Cgroup => Ok(session.place.cgroup.as_ref().map(|cgroup| {
                let point = Point::Cgroup {
                    id: cgroup.id,
                    scope: cgroup.scope,
                };
                (point, !attached.cgroups.contains(&cgroup.id))
            })),
        }
    }

    /// Only these sessions' bits stay.
    fn clear_bits(&mut self, bits: &BTreeMap<u32, u64>) -> Result<(), KernelError> {
        for index in 1..TAP_SLOTS {
            let wanted = bits.get(&index).copied().unwrap_or(0);
            let Layout(TapSessions { ingress, egress }) = self
                .tap_sessions
                .get(&index, 0)
                .map_err(failed("TAP_SESSIONS"))?;
            let there = ingress | egress;
            if there & !wanted != 0 {
                let left = TapSessions {
                    ingress: ingress & wanted,
                    egress: egress & wanted,
                };
                self.tap_sessions
                    .set(index, Layout(left), 0)
                    .map_err(failed("TAP_SESSIONS"))?;
            }
            let covered = self
                .tap_covered
                .get(&index, 0)
                .map_err(failed("TAP_COVERED"))?;
            if covered != 0 {
                self.covered.insert(index, covered);
                self.set_covered(index, covered & there & wanted)?;
            }
        }
        Ok(())
    }

    /// Nothing leads to a tap that is not bound.
    fn unpoint(&mut self, attached: &Attached) -> Result<(), KernelError> {
        let high: Vec<u32> = self
            .ifindex_taps_high
            .keys()
            .filter_map(Result::ok)
            .collect();
        for &ifindex in attached.interfaces.iter().chain(&high) {
            if self.table.interface(ifindex).is_none() {
                self.point_interface(ifindex, 0)?;
            }
        }
        Ok(())
    }

    fn still_armed(&self, session: &Standing) -> Result<StillArmed, KernelError> {
        let slot = session.slot;
        let Layout(budget) = self.budgets.get(&slot, 0).map_err(failed("BUDGETS"))?;
        if budget.told != 0 {
            return Ok(StillArmed::LimitReached);
        }
        for tap in session
            .taps
            .iter()
            .filter(|tap| self.table.is_bound(tap.id))
        {
            let Layout(sessions) = self
                .tap_sessions
                .get(&tap.id.index, 0)
                .map_err(failed("TAP_SESSIONS"))?;
            // The one that each session of a tap has.
            if sessions.ingress >> slot & 1 == 0 {
                return Ok(StillArmed::No);
            }
        }
        Ok(StillArmed::Yes)
    }
}
