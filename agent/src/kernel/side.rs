//! The kernel side as sessions use it: tables and programs together.

use std::sync::{Arc, Mutex, PoisonError};

use remora_capture::session::TapInfo;

use super::{InterfaceHook, KernelError, Programs, Tables};
use crate::session::{
    Arming, BoundTap, CgroupPlace, CgroupScope, InterfacePlace, KernelCounts, LinkEnd, Place, Slot,
    StartError, TapHook, TapId, Taps, View,
};

/// Shared by the driver (arming), the API (binding) and the link watch (attaching ahead).
#[derive(Clone, Debug)]
pub struct KernelSide {
    tables: Arc<Tables>,
    /// Held for the milliseconds of an attach; arming never takes it.
    programs: Arc<Mutex<Programs>>,
    hook: InterfaceHook,
}

impl KernelSide {
    pub fn new(tables: Tables, programs: Programs) -> Self {
        Self {
            tables: Arc::new(tables),
            hook: programs.hook(),
            programs: Arc::new(Mutex::new(programs)),
        }
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
        programs.attach_interface(ifindex, name)?;
        // Bound after it is attached: a bound interface is one whose packets are seen.
        self.tables.bind_interface(ifindex, end)
    }

    /// An interface is gone, and its number may come back as another's.
    pub fn interface_gone(&self, ifindex: u32) {
        self.tables.interface_gone(ifindex);
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.interface_gone(ifindex);
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
            self.ensure_interface(*ifindex, name, *end)?;
            let (id, end) = self.tables.enter_interface(*ifindex).ok_or_else(|| {
                KernelError::Scope(format!("interface `{name}` went away; try again"))
            })?;
            let mut tap = Tables::describe_interface(id, end, interface);
            tap.info.hook = self.hook.name().to_owned();
            taps.push(tap);
        }
        if let Some(cgroup) = &place.cgroup {
            let id = self
                .tables
                .enter_cgroup(cgroup.id, cgroup.level, cgroup.scope)?;
            taps.push(describe_cgroup(id, cgroup));
        }
        Ok(())
    }
}

fn describe_cgroup(id: TapId, cgroup: &CgroupPlace) -> BoundTap {
    let description = match cgroup.scope {
        CgroupScope::LoopbackOnly => "the pod's loopback; Ethernet headers are synthetic",
        CgroupScope::All => "packets of the cgroup's sockets; Ethernet headers are synthetic",
    };
    BoundTap {
        id,
        info: TapInfo {
            hook: "cgroup".to_owned(),
            interface: match cgroup.scope {
                CgroupScope::LoopbackOnly => "lo".to_owned(),
                CgroupScope::All => "cgroup".to_owned(),
            },
            ifindex: 0,
            cgroup_id: cgroup.id,
            description: description.to_owned(),
        },
        hook: TapHook::Cgroup,
        view: View::Pod,
        end: LinkEnd::Other,
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

    fn arm(&self, arming: &Arming, taps: &[BoundTap]) -> Result<(), StartError> {
        self.tables
            .arm(arming, taps)
            .map_err(|error| StartError::Kernel(error.to_string()))
    }

    fn disarm(&self, slot: Slot, taps: &[BoundTap]) {
        self.tables.disarm(slot, taps);
    }

    fn grace(&self) {
        self.tables.grace();
    }

    fn counts(&self, slot: Slot) -> KernelCounts {
        self.tables.counts(slot)
    }

    fn release(&self, taps: &[BoundTap]) {
        for tap in taps {
            self.tables.leave(tap.id);
        }
    }

    fn is_bound(&self, tap: TapId) -> bool {
        self.tables.is_bound(tap)
    }
}
