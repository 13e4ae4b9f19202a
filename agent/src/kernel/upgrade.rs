//! From the interpreter to machine code, while packets pass.
//!
//! ```text
//! sessions of a tap change ─▶ settle ─▶ translate, load ─▶ filter array [tap] = program
//!                                                            ─▶ grace ─▶ TAP_COVERED [tap] = its sessions
//! entry: sessions of the packet all covered? ─▶ the tap's program; else ─▶ the interpreter
//! ```
//! Both give the same verdict, so a packet may meet either. What must not be: a packet whose session
//! the program that it meets does not have. Three rules see to that:
//! - A program goes into the array before its sessions are covered, and has all that are armed: so
//!   also those that are covered by the program before it.
//! - A session that ends is uncovered before its slot is used again ([`Tables::disarm`]), so what is
//!   covered is never another session than the program's.
//! - Entry reads a packet's sessions before what is covered, and that before the array.
//!
//! One thread does it, never the trigger's. Terms are compared without a program, at first; here they
//! become programs as well, by libpcap. A build without it leaves their taps with the `decide` stage.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::Ebpf;
use remora_agent_common::stage::STAGE_CAPTURE;
use remora_capture::filter::{
    Meaning, Names, compiler,
    program::{Program as Classic, Programs},
};

use super::{
    KernelError, Tables,
    cgroups::Words,
    grace,
    load::take_map,
    program::{CallTable, Kind, Program, ProgramError},
    stages::{Stages, call_table},
    tables::{ArmedFilter, TapFilters},
    translate::{
        Link, Refused,
        insn::{Alu, Insn, Jump, Reg, Size, alu64, call, exit, jump_if, load, map, store},
        translate,
    },
};
use crate::session::{BoundTap, TapHook};

/// Sessions that come and go together become one program, and the first packets have the CPU.
const SETTLE: Duration = Duration::from_millis(10);

/// Where `struct __sk_buff` has `cb` (linux/bpf.h, v6.18); the sessions in question are its first
/// two words.
const CB_SESSIONS: i16 = 48;
/// `bpf_tail_call(ctx, array, index)`.
const TAIL_CALL: i32 = 12;
/// `TCX_NEXT`, and a cgroup program's pass.
const TC_NEXT: i32 = -1;
const CGROUP_PASS: i32 = 1;

/// The arrays of the taps' programs, and of the stages that these go on with.
#[derive(Debug)]
pub struct FilterTables {
    tc: Calls,
    cgroup: Calls,
}

/// Of one program type.
#[derive(Debug)]
struct Calls {
    filters: CallTable,
    stages: CallTable,
    /// What its programs must name.
    words: Option<Words>,
}

impl FilterTables {
    pub(super) fn take(
        ebpf: &mut Ebpf,
        stages: &Stages,
        words: &Words,
    ) -> Result<Self, KernelError> {
        let mut calls = |name, stages: &CallTable, words| {
            Ok::<_, KernelError>(Calls {
                filters: call_table(name, &take_map(ebpf, name)?)?,
                stages: stages
                    .try_clone()
                    .map_err(|error| KernelError::Io("keep a map of programs", error))?,
                words,
            })
        };
        Ok(Self {
            tc: calls("TC_FILTERS", &stages.tc, None)?,
            cgroup: calls("CGROUP_FILTERS", &stages.cgroup, Some(words.try_clone()?))?,
        })
    }
}

/// The thread that makes taps' filters into machine code.
#[derive(Debug)]
pub struct Upgrade {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    came: Condvar,
    loaded: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Work {
    /// Indices of taps whose sessions have changed.
    taps: BTreeSet<u32>,
    closed: bool,
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for taps; none once it is closed.
    fn next(&self) -> Option<BTreeSet<u32>> {
        let none = |work: &mut Work| work.taps.is_empty() && !work.closed;
        let work = self.came.wait_while(self.work(), none);
        if work.unwrap_or_else(PoisonError::into_inner).closed {
            return None;
        }
        thread::sleep(SETTLE);
        let mut work = self.work();
        (!work.closed).then(|| std::mem::take(&mut work.taps))
    }
}

impl Upgrade {
    /// # Errors
    /// There are no threads left.
    pub(super) fn start(tables: FilterTables, taps: Arc<Tables>) -> Result<Self, KernelError> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("filters".to_owned())
            .spawn(move || {
                while let Some(indices) = theirs.next() {
                    for index in indices {
                        theirs.upgrade(&tables, &taps, index);
                    }
                }
            })
            .map_err(|error| KernelError::Io("start a thread for filters", error))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The sessions of these taps have changed, or the taps are gone. Returns at once.
    pub(super) fn look_at(&self, taps: &[BoundTap]) {
        let indices = taps.iter().map(|tap| tap.id.index);
        self.shared.work().taps.extend(indices);
        self.shared.came.notify_one();
    }

    /// Programs loaded so far.
    pub fn loaded(&self) -> u64 {
        self.shared.loaded.load(Ordering::Relaxed)
    }

    /// How often filters were too long, or refused by the kernel.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        self.shared.work().closed = true;
        self.shared.came.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for filters had panicked");
        }
    }
}

/// Why a tap stays with the interpreter.
#[derive(Debug, thiserror::Error)]
enum NotUpgraded {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("put a filter program into its map: {0}")]
    Put(#[source] std::io::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Shared {
    fn upgrade(&self, tables: &FilterTables, taps: &Tables, index: u32) {
        let armed = taps.filters(index);
        let armed = armed.filter(|armed| !armed.sessions.is_empty());
        let Some(armed) = armed else {
            // Nobody calls it: a tap without sessions has none covered.
            for calls in [&tables.tc, &tables.cgroup] {
                if let Err(error) = calls.filters.clear(index) {
                    tracing::error!(%error, "failed to take a filter program out of its map");
                }
            }
            return;
        };
        match armed.put(tables, taps) {
            Ok(false) => {}
            Ok(true) => {
                self.loaded.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "a tap's filters stay with the interpreter");
            }
        }
    }
}

impl TapFilters {
    /// Whether there is a program now; not if a session's filter has none.
    fn put(&self, tables: &FilterTables, taps: &Tables) -> Result<bool, NotUpgraded> {
        let (calls, link, kind, pass) = match self.hook {
            TapHook::Tc => (&tables.tc, Link::Ethernet, Kind::Classifier, TC_NEXT),
            TapHook::Cgroup => (&tables.cgroup, Link::Ip, Kind::CgroupIngress, CGROUP_PASS),
        };
        let Some(programs) = self.programs(link) else {
            return Ok(false);
        };
        let programs: Vec<_> = programs
            .iter()
            .map(|(slot, program)| (*slot, program.as_ref()))
            .collect();
        let code = translate(&programs, link, &epilogue(calls, pass))?;
        let program = Program::load(kind, "remora_filter", c"Dual MIT/GPL", &code)?;
        calls
            .filters
            .set(self.tap.index, &program)
            .map_err(NotUpgraded::Put)?;
        grace::wait();
        let sessions: Vec<_> = self
            .sessions
            .iter()
            .map(|session| (session.slot, session.generation))
            .collect();
        taps.cover(self.tap, &sessions)?;
        Ok(true)
    }

    /// By their slots; a session that takes nothing at this hook has none.
    fn programs(&self, link: Link) -> Option<Vec<(u8, Cow<'_, Classic>)>> {
        let mut programs = Vec::new();
        for ArmedFilter { slot, spec, .. } in &self.sessions {
            let program = match spec.filter.meaning() {
                Meaning::Programs(Programs { ethernet, raw }) => match link {
                    Link::Ethernet => Some(Cow::Borrowed(ethernet)),
                    Link::Ip => raw.as_ref().map(Cow::Borrowed),
                },
                Meaning::Terms(terms) if terms.is_empty() => Some(Cow::Owned(Classic::take_all())),
                Meaning::Terms(_) => {
                    let Programs { ethernet, raw } =
                        Programs::compile(spec.filter.text(), compiler(Names::Refused)).ok()?;
                    let program = match link {
                        Link::Ethernet => Some(ethernet),
                        Link::Ip => raw,
                    };
                    program.map(Cow::Owned)
                }
                Meaning::Unread => return None,
            };
            // One of 64.
            programs.extend(program.map(|program| (*slot as u8, program)));
        }
        Some(programs)
    }
}

/// Of the packet's sessions, those that take it, go on to the capture stage.
fn epilogue(calls: &Calls, pass: i32) -> Vec<Insn> {
    let mut taken = vec![
        store(Size::Double, Reg::R6, CB_SESSIONS, Reg::R7),
        alu64(Alu::Mov, Reg::R1, Reg::R6),
    ];
    if let Some(words) = &calls.words {
        taken.extend(map(Reg::R2, words.number()));
    }
    taken.extend(map(Reg::R2, calls.stages.number()));
    taken.extend([
        alu64(Alu::Mov, Reg::R3, STAGE_CAPTURE.cast_signed()),
        call(TAIL_CALL),
    ]);
    let mut epilogue = vec![
        load(Size::Double, Reg::R1, Reg::R6, CB_SESSIONS),
        alu64(Alu::And, Reg::R7, Reg::R1),
        jump_if(Jump::Eq, Reg::R7, 0, taken.len() as i16),
    ];
    epilogue.extend(taken);
    epilogue.extend([alu64(Alu::Mov, Reg::R0, pass), exit()]);
    epilogue
}
