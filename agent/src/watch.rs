//! Watches the node's interfaces: attaches to the host end of every pod's veth, those that are there and
//! those that come, so that a trigger finds its tap in place; records them; and learns by what names
//! they are known, so that they are found after they are gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use remora_capture::session::LookBackMode;

use crate::{
    kernel::KernelSide,
    session::{LinkEnd, TapId},
    target::{Among, Census, Interface, LinkEvent, LinkWatcher, Modes, Resolver, link_end},
};

/// How often it looks whether the agent is ending.
const LINK_WAIT: Duration = Duration::from_millis(200);
/// How often rings are let go whose time is over.
const TIDY: Duration = Duration::from_secs(1);
/// Events that are handled between two looks at who is behind the veths.
const EVENTS_MAX: usize = 64;

/// One thread; clones stop it.
#[derive(Clone, Debug)]
pub struct LinkWatch {
    ending: Arc<AtomicBool>,
    kernel: KernelSide,
    resolver: Arc<Resolver>,
    modes: Arc<Modes>,
}

impl LinkWatch {
    #[must_use]
    pub fn new(kernel: KernelSide, resolver: Arc<Resolver>, modes: Modes) -> Self {
        Self {
            ending: Arc::default(),
            kernel,
            resolver,
            modes: Arc::new(modes),
        }
    }

    /// Until it is told to stop.
    pub fn run(&self, mut watcher: LinkWatcher) {
        let mut census = Census::new(Instant::now());
        let mut tidy = Instant::now();
        let mut known_pods = 0;
        while !self.ending.load(Ordering::Relaxed) {
            let wait = census.wait(Instant::now()).min(LINK_WAIT);
            self.handle(events(&mut watcher, wait), &mut census);
            if let Some(among) = census.due(Instant::now()) {
                self.look(among, &mut watcher, &mut census);
            }
            let version = self.resolver.pods().version();
            if version != known_pods {
                known_pods = version;
                self.set_modes(&self.kernel.recorded());
            }
            if tidy <= Instant::now() {
                self.tidy();
                tidy = Instant::now() + TIDY;
            }
        }
    }

    fn tidy(&self) {
        let kept = self.kernel.tidy_look_back();
        self.resolver.forget(&kept, &self.kernel.recorded());
    }

    /// The thread ends within a moment.
    pub fn stop(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    fn handle(&self, events: Vec<LinkEvent>, census: &mut Census) {
        let any = !events.is_empty();
        for event in events {
            if matches!(event, LinkEvent::Up(_) | LinkEvent::Changed(_)) {
                census.arrived(Instant::now());
            }
            let mode = self.resolver.unknown_mode(&self.modes);
            link_event(&self.kernel, event, mode);
        }
        // One that came may have taken the memory of one that is gone.
        if any {
            self.tidy();
        }
    }

    fn look(&self, among: Among, watcher: &mut LinkWatcher, census: &mut Census) {
        let begun = Instant::now();
        let recorded = self.kernel.recorded();
        let mut learned = match self.resolver.look_behind(&recorded, among) {
            Ok(learned) => learned,
            Err(error) => {
                tracing::debug!(%error, "it is not known who is behind the interfaces");
                Vec::new()
            }
        };
        // The interface that was asked for was the tap's, unless its index came again meanwhile:
        // all events up to the question are here.
        let events = events(watcher, Duration::ZERO);
        learned.retain(|learned| {
            !events
                .iter()
                .any(|event| is_other(event, learned.ifindex()))
        });
        if events.len() < EVENTS_MAX {
            self.resolver.remember(learned);
            self.set_modes(&recorded);
        }
        let unknown = self.resolver.has_unknown(&recorded);
        census.looked(among, begun.elapsed(), unknown, Instant::now());
        self.handle(events, census);
    }

    fn set_modes(&self, recorded: &[(TapId, u32)]) {
        if self.modes.is_uniform() && !self.resolver.pods().is_kubernetes() {
            return;
        }
        for &(tap, ifindex) in recorded {
            let mode = self.resolver.mode(tap, &self.modes);
            if let Err(error) = self.kernel.set_look_back_mode(tap, mode) {
                tracing::error!(ifindex, %mode, %error, "failed to set a look-back mode");
            }
        }
    }
}

/// What is there within `wait`, at most [`EVENTS_MAX`].
fn events(watcher: &mut LinkWatcher, wait: Duration) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    let mut wait = wait;
    while events.len() < EVENTS_MAX {
        match watcher.next(wait) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "failed to watch the interfaces");
                thread::sleep(LINK_WAIT);
                break;
            }
        }
        wait = Duration::ZERO;
    }
    events
}

/// After it, the interface of that index may be another device, or lead elsewhere. One that is gone is
/// told of before its index is another's, and that other one only when it is up.
fn is_other(event: &LinkEvent, ifindex: u32) -> bool {
    match event {
        LinkEvent::Up(interface) | LinkEvent::Changed(interface) => interface.ifindex == ifindex,
        LinkEvent::Gone { ifindex: gone } => *gone == ifindex,
        LinkEvent::Resync => true,
    }
}

fn link_event(kernel: &KernelSide, event: LinkEvent, mode: LookBackMode) {
    match event {
        LinkEvent::Up(interface) => attach(kernel, &interface, mode),
        // Another name is harmless, but the other end may be in another pod now: whoever captures
        // here is told that its tap is gone, and the interface is bound anew.
        LinkEvent::Changed(interface) => {
            kernel.interface_gone(interface.ifindex);
            attach(kernel, &interface, mode);
        }
        LinkEvent::Gone { ifindex } => kernel.device_gone(ifindex),
        // Any of them may be another device now; those that are there are told as up again.
        LinkEvent::Resync => {
            tracing::warn!("events of interfaces were lost; binding all of them anew");
            for (ifindex, _) in kernel.interfaces() {
                kernel.interface_gone(ifindex);
            }
        }
    }
}

fn attach(kernel: &KernelSide, interface: &Interface, mode: LookBackMode) {
    let end = link_end(interface.kind);
    if end != LinkEnd::VethHost {
        return;
    }
    let attached = kernel
        .ensure_interface_ahead(interface.ifindex, &interface.name, end)
        .and_then(|()| kernel.record(interface.ifindex, mode));
    if let Err(error) = attached {
        tracing::debug!(interface = %interface.name, %error, "not attached");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::InterfaceKind;

    #[test]
    fn what_was_learned_of_a_veth_that_came_again_is_nobodys() {
        let interface = Interface {
            ifindex: 7,
            name: "veth7".to_owned(),
            kind: InterfaceKind::Veth,
        };
        assert!(is_other(&LinkEvent::Up(interface.clone()), 7));
        assert!(is_other(&LinkEvent::Changed(interface.clone()), 7));
        assert!(is_other(&LinkEvent::Resync, 7));
        assert!(!is_other(&LinkEvent::Up(interface), 8));
        assert!(is_other(&LinkEvent::Gone { ifindex: 7 }, 7));
        assert!(!is_other(&LinkEvent::Gone { ifindex: 8 }, 7));
    }
}
