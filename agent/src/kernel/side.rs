//! The kernel side as sessions use it: tables and programs together.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use remora_agent_common::look_back::FlowState;
use remora_capture::session::{LookBackMode, LookBackRing, TapInfo};

use super::{
    CgroupHooks, FilterTables, InterfaceHook, KernelError, LookBack, LookBackOptions, Programs,
    Tables, Upgrade, grace, look_back::LookBackMaps, restore::Attached,
};
use crate::{
    record::look_back::Reading,
    session::{
        Arming, BoundTap, CgroupPlace, CgroupScope, InterfacePlace, KernelCounts, LeftTap, LinkEnd,
        Place, Slot, Standing, StartError, StillArmed, Takes, TapHook, TapId, Taps, View,
    },
    writer::past::Rings,
};

/// Pause of whoever attaches ahead while a trigger attaches, and for how long at the most: triggers without end
/// must not keep new pods from being recorded.
const GIVE_WAY: Duration = Duration::from_millis(1);
const GIVE_WAY_MAX: Duration = Duration::from_millis(50);

/// Shared by the driver (arming), the API (binding) and the link watch (attaching ahead).
#[derive(Clone, Debug)]
pub struct KernelSide {
    tables: Arc<Tables>,
    /// Held for the milliseconds of an attach; arming never takes it.
    programs: Arc<Mutex<Programs>>,
    /// Triggers that wait for an attach: whoever attaches ahead lets them go first.
    urgent: Arc<AtomicU32>,
    /// Held while a cgroup is bound or released, so that its tap and its links come and go together.
    cgroups: Arc<Mutex<CgroupHooks>>,
    look_back: Arc<LookBack>,
    upgrade: Arc<Upgrade>,
    hook: InterfaceHook,
}

impl KernelSide {
    /// # Errors
    /// The kernel has no memory for look-back, or no thread for filters.
    pub fn new(
        tables: Tables,
        programs: Programs,
        cgroups: CgroupHooks,
        filters: FilterTables,
        look_back: LookBackMaps,
        options: LookBackOptions,
    ) -> Result<Self, KernelError> {
        let tables = Arc::new(tables);
        let look_back = LookBack::new(look_back, options, Arc::clone(&tables))?;
        let upgrade = Upgrade::start(filters, Arc::clone(&tables))?;
        Ok(Self {
            tables,
            hook: programs.hook(),
            programs: Arc::new(Mutex::new(programs)),
            urgent: Arc::default(),
            cgroups: Arc::new(Mutex::new(cgroups)),
            look_back: Arc::new(look_back),
            upgrade: Arc::new(upgrade),
        })
    }

    /// Takes up the sessions of an agent before this one, on the interfaces that have its links still.
    /// Look-back begins anew.
    ///
    /// # Returns
    /// Those that were armed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restore(
        &self,
        standing: Vec<Standing>,
        interfaces: BTreeSet<u32>,
    ) -> Result<Vec<Standing>, KernelError> {
        // The programs of that agent, which were replaced a moment ago, look into its own rings.
        grace::wait();
        let mut hooks = self.cgroup_hooks();
        let cgroups = hooks.attached();
        let attached = Attached {
            interfaces,
            cgroups: cgroups.clone(),
        };
        let standing = self.tables.restore(standing, &attached)?;
        for id in cgroups {
            if self.tables.cgroup_scope(id).is_none() {
                hooks.detach(id);
            }
        }
        drop(hooks);
        for session in &standing {
            self.upgrade.look_at(&session.taps);
        }
        Ok(standing)
    }

    fn cgroup_hooks(&self) -> MutexGuard<'_, CgroupHooks> {
        self.cgroups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches to an interface and binds it, if that is not done yet.
    ///
    /// # Errors
    /// The interface is gone, no tap is free, or the kernel refuses.
    pub fn ensure_interface(
        &self,
        ifindex: u32,
        name: &str,
        end: LinkEnd,
    ) -> Result<(), KernelError> {
        if self.tables.interface(ifindex).is_some() {
            return Ok(());
        }
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        self.tables.unpoint(ifindex)?;
        programs.attach_interface(ifindex, name)?;
        // Bound after it is attached: a bound interface is one whose packets are seen.
        self.tables.bind_interface(ifindex, end)
    }

    /// The same ahead of any trigger, of which each that waits goes first.
    ///
    /// # Errors
    /// As [`KernelSide::ensure_interface`].
    pub fn ensure_interface_ahead(
        &self,
        ifindex: u32,
        name: &str,
        end: LinkEnd,
    ) -> Result<(), KernelError> {
        let mut waited = Duration::ZERO;
        while self.urgent.load(Ordering::Acquire) > 0 && waited < GIVE_WAY_MAX {
            thread::sleep(GIVE_WAY);
            waited += GIVE_WAY;
        }
        self.ensure_interface(ifindex, name, end)
    }

    /// Begins to record an interface that is bound.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn record(&self, ifindex: u32, mode: LookBackMode) -> Result<(), KernelError> {
        match self.tables.interface(ifindex) {
            Some((tap, LinkEnd::VethHost)) => self.look_back.begin(tap, mode),
            _ => Ok(()),
        }
    }

    /// Records a tap in this mode from now on. What a less strict one has kept of it is thrown away.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_look_back_mode(&self, tap: TapId, mode: LookBackMode) -> Result<(), KernelError> {
        self.look_back.set_mode(tap, mode)
    }

    /// The look-back rings, by ifindex. Copies them all: for a person or a scrape.
    pub fn look_back_rings(&self) -> HashMap<u32, (TapId, LookBackRing)> {
        let bound = self.tables.interfaces();
        let taps = bound
            .into_iter()
            .filter_map(|(ifindex, _)| Some((self.tables.interface(ifindex)?.0, ifindex)));
        let taps: HashMap<TapId, u32> = taps.collect();
        match self.look_back.facts() {
            Ok(facts) => facts
                .into_iter()
                .filter_map(|(tap, facts)| Some((*taps.get(&tap)?, (tap, facts))))
                .collect(),
            Err(error) => {
                tracing::error!(%error, "failed to read the look-back rings");
                HashMap::new()
            }
        }
    }

    /// What an interface's tap is bound to is not what has its index now, or leads elsewhere.
    pub fn interface_gone(&self, ifindex: u32) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        self.let_go(ifindex, &mut programs);
    }

    /// A device that had this index is gone, of which one may have been told late: another one that has it by
    /// now keeps its tap.
    pub fn device_gone(&self, ifindex: u32) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if !programs.is_on(ifindex) {
            self.let_go(ifindex, &mut programs);
        }
    }

    fn let_go(&self, ifindex: u32, programs: &mut Programs) {
        let tap = self.tables.interface(ifindex);
        // First, so that its tap's next owner never writes into its ring.
        if let Some((tap, _)) = tap {
            self.look_back.end(tap);
        }
        self.tables.interface_gone(ifindex);
        programs.interface_gone(ifindex);
    }

    /// The tap is of the device that has its interface's index now; lets go of it if it is not.
    fn is_current(&self, tap: &BoundTap) -> bool {
        let ifindex = tap.info.ifindex;
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_bound = self
            .tables
            .interface(ifindex)
            .is_some_and(|(id, _)| id == tap.id);
        if is_bound && !programs.is_on(ifindex) {
            self.let_go(ifindex, &mut programs);
            return false;
        }
        is_bound
    }

    /// Taps that are recorded, or will be, with their ifindexes.
    pub fn recorded(&self) -> Vec<(TapId, u32)> {
        let recorded = self.look_back.followed();
        let interfaces = self.tables.interfaces().into_iter();
        interfaces
            .filter_map(|(ifindex, _)| Some((self.tables.interface(ifindex)?.0, ifindex)))
            .filter(|(tap, _)| recorded.contains(tap))
            .collect()
    }

    /// Lets go of rings whose time is over; tells the taps that have one still.
    pub fn tidy_look_back(&self) -> HashSet<TapId> {
        self.look_back.tidy();
        self.look_back.taps()
    }

    /// Filters as machine code.
    pub fn upgrade(&self) -> &Upgrade {
        &self.upgrade
    }

    /// How the programs are on interfaces.
    pub fn hook(&self) -> InterfaceHook {
        self.hook
    }

    /// Takes off interfaces what would outlive the process; nothing is attached afterwards.
    pub fn close(&self) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.close();
    }

    /// ifindexes that are bound now.
    pub fn interfaces(&self) -> Vec<(u32, LinkEnd)> {
        self.tables.interfaces()
    }

    fn enter(&self, place: &Place, taps: &mut Vec<BoundTap>) -> Result<(), KernelError> {
        for interface in &place.interfaces {
            let InterfacePlace {
                ifindex,
                name,
                end,
                view: _,
            } = interface;
            let urgent = Urgent::new(&self.urgent);
            let attached = self.ensure_interface(*ifindex, name, *end);
            drop(urgent);
            attached?;
            let (id, end) = self.tables.enter_interface(*ifindex).ok_or_else(|| {
                KernelError::Scope(format!("interface `{name}` went away; try again"))
            })?;
            let mut tap = Tables::describe_interface(id, end, interface, place.takes());
            tap.info.hook = self.hook.name().to_owned();
            taps.push(tap);
        }
        for LeftTap { id, interface } in &place.left {
            self.tables.enter(*id);
            let mut tap = Tables::describe_interface(*id, interface.end, interface, place.takes());
            tap.info.hook = self.hook.name().to_owned();
            taps.push(tap);
        }
        if let Some(cgroup) = &place.cgroup {
            let mut hooks = self.cgroup_hooks();
            let id = self
                .tables
                .enter_cgroup(cgroup.id, cgroup.level, cgroup.scope)?;
            let attached = hooks.attach(cgroup, id);
            if attached.is_err() {
                self.tables.leave(id);
            }
            attached?;
            taps.push(describe_cgroup(id, cgroup));
        }
        Ok(())
    }
}

/// A trigger that waits for an attach.
struct Urgent<'a>(&'a AtomicU32);

impl<'a> Urgent<'a> {
    fn new(waiting: &'a AtomicU32) -> Self {
        waiting.fetch_add(1, Ordering::AcqRel);
        Self(waiting)
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn describe_cgroup(id: TapId, cgroup: &CgroupPlace) -> BoundTap {
    let description = match cgroup.scope {
        CgroupScope::LoopbackOnly => "the pod's loopback; Ethernet headers are synthetic",
        CgroupScope::Received => {
            "the pod's loopback, and what its sockets receive; Ethernet headers are synthetic"
        }
        CgroupScope::All => "packets of the cgroup's sockets; Ethernet headers are synthetic",
    };
    BoundTap {
        id,
        info: TapInfo {
            hook: "cgroup".to_owned(),
            interface: match cgroup.scope {
                CgroupScope::LoopbackOnly => "lo".to_owned(),
                CgroupScope::Received | CgroupScope::All => "cgroup".to_owned(),
            },
            ifindex: 0,
            cgroup_id: cgroup.id,
            description: description.to_owned(),
            look_back: None,
        },
        hook: TapHook::Cgroup,
        view: View::Pod,
        end: LinkEnd::Other,
        takes: Takes::All,
    }
}

impl Taps for KernelSide {
    fn bind(&self, place: &Place) -> Result<Vec<BoundTap>, StartError> {
        let mut taps = Vec::new();
        match self.enter(place, &mut taps) {
            Ok(()) => Ok(taps),
            Err(error) => {
                self.release(&taps);
                Err(StartError::Kernel(error.to_string()))
            }
        }
    }

    fn scope(&self, cgroup: u64) -> Option<CgroupScope> {
        self.tables.cgroup_scope(cgroup)
    }

    fn arm(&self, arming: &Arming, taps: &[BoundTap]) -> Result<(), StartError> {
        self.tables.arm(arming, taps).map_err(|error| match error {
            KernelError::PoolFull { .. } => StartError::Quota(error.to_string()),
            _ => StartError::Kernel(error.to_string()),
        })?;
        self.upgrade.look_at(taps);
        if !arming.spec.look_back.is_zero() {
            for tap in taps {
                if let Err(error) = self.look_back.freeze(tap.id) {
                    tracing::error!(%error, "failed to keep what a session looks back at");
                }
            }
        }
        Ok(())
    }

    fn restrict(&self, taps: &[(TapId, LookBackMode)]) -> Result<(), StartError> {
        let each = |&(tap, level)| self.tables.restrict(tap, level);
        let restricted = taps.iter().try_for_each(each);
        restricted.map_err(|error| StartError::Kernel(error.to_string()))
    }

    fn set_deadline(&self, slot: Slot, deadline_ns: Option<u64>) -> Result<(), StartError> {
        self.tables
            .set_deadline(slot, deadline_ns)
            .map_err(|error| StartError::Kernel(error.to_string()))
    }

    fn disarm(&self, slot: Slot, taps: &[BoundTap]) {
        self.tables.disarm(slot, taps);
        self.upgrade.look_at(taps);
    }

    fn grace(&self) {
        self.tables.grace();
    }

    fn counts(&self, slot: Slot) -> KernelCounts {
        self.tables.counts(slot)
    }

    fn seen(&self, taps: &[BoundTap]) -> Vec<u64> {
        self.tables.seen(taps)
    }

    fn still_armed(&self, slot: Slot) -> StillArmed {
        self.tables.still_armed(slot.0)
    }

    fn release(&self, taps: &[BoundTap]) {
        for tap in taps {
            match tap.hook {
                TapHook::Tc => {
                    self.tables.leave(tap.id);
                }
                TapHook::Cgroup => {
                    let mut hooks = self.cgroup_hooks();
                    if let Some(cgroup) = self.tables.leave(tap.id) {
                        hooks.detach(cgroup);
                    }
                }
            }
        }
        self.upgrade.look_at(taps);
    }

    fn is_bound(&self, tap: TapId) -> bool {
        self.tables.is_bound(tap)
    }

    fn are_current(&self, taps: &[BoundTap]) -> bool {
        let mut interfaces = taps.iter().filter(|tap| tap.hook == TapHook::Tc);
        interfaces.all(|tap| self.is_current(tap))
    }
}

impl Rings for KernelSide {
    fn read(&self, tap: TapId, armed_ns: u64) -> Result<Vec<Arc<Reading>>, String> {
        self.look_back
            .read(tap, armed_ns)
            .map_err(|error| error.to_string())
    }

    fn flow(&self, index: u32) -> Option<FlowState> {
        match self.look_back.flow(index) {
            Ok(flow) => Some(flow),
            Err(error) => {
                tracing::error!(%error, "failed to read a flow's state");
                None
            }
        }
    }
}
