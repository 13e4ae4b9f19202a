//! Programs on interfaces.
//!
//! By TCX where the kernel has it (6.6), else by [clsact](super::clsact). Links close
//! with [`Programs`] unless they are pinned, so a dead agent leaves nothing attached; filters of clsact
//! stay, and the next agent removes them ([`remove_leftovers`]).

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::AsFd as _,
    path::Path,
    sync::Arc,
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, ProgramFd, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError},
        tc::{SchedClassifierLinkId, TcAttachOptions},
    },
    sys::SyscallError,
};
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::{
    CgroupHooks, Pins,
    cgroups::Words,
    clsact::{self, Clsact},
    load::{CGROUP_PROGRAMS, KernelError, TCX_PROGRAMS, cgroup_skb, classifier},
    pins::link_name,
    program::on_tcx_ingress,
    stages::Stages,
};

/// How programs are on interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceHook {
    /// Links of the interface; Linux 6.6.
    Tcx,
    /// Filters of a qdisc; every kernel.
    Clsact,
}

impl InterfaceHook {
    /// As files and the API name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// The better one that this kernel has: asked, not guessed from its version. What answers to
    /// the question for TCX programs has TCX; a kernel without says EINVAL.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        // Every network namespace has `lo`.
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                if io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                Self::Clsact
            }
            _ => Self::Tcx,
        }
    }
}

/// Ingress and egress of an interface.
#[derive(Debug)]
enum TcxLinks {
    Held([SchedClassifierLinkId; 2]),
    Pinned,
}

/// The loaded programs and what they are attached to.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    hook: InterfaceHook,
    tcx: HashMap<u32, TcxLinks>,
    /// Where links are that outlive the agent.
    pins: Option<Arc<Pins>>,
    /// Made with the first interface.
    clsact: Option<Clsact>,
    words: Words,
    /// Nothing is attached any more.
    closed: bool,
    /// Kept, not used: see [`CallTable`](super::program::CallTable).
    _stages: Stages,
}

impl Programs {
    pub(super) fn new(ebpf: Ebpf, stages: Stages, words: Words) -> Self {
        Self {
            ebpf,
            hook: InterfaceHook::of_this_kernel(),
            tcx: HashMap::new(),
            pins: None,
            clsact: None,
            words,
            closed: false,
            _stages: stages,
        }
    }

    /// Links are pinned from now on. Those that an agent before this one left get the programs of this
    /// one.
    ///
    /// # Returns
    /// Interfaces that have them.
    ///
    /// # Errors
    /// There is no TCX, or the kernel refuses.
    pub fn pin(&mut self, pins: Pins) -> Result<BTreeSet<u32>, KernelError> {
        if self.hook == InterfaceHook::Clsact {
            return Err(KernelError::PinWithoutTcx);
        }
        let interfaces = pins.interfaces()?;
        for &ifindex in &interfaces {
            for program in TCX_PROGRAMS {
                let fd = program_fd(classifier(&mut self.ebpf, program)?.fd(), ifindex)?;
                pins.update(&link_name(program, ifindex), fd)?;
            }
            self.tcx.insert(ifindex, TcxLinks::Pinned);
        }
        self.pins = Some(Arc::new(pins));
        Ok(interfaces)
    }

    /// What comes onto cgroups. To be called once, after [`pin`](Self::pin).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cgroup_hooks(&mut self, mount: &Path) -> Result<CgroupHooks, KernelError> {
        let mut fd = |name| {
            let program = cgroup_skb(&mut self.ebpf, name)?;
            let fd = program
                .fd()
                .and_then(|fd| Ok(fd.as_fd().try_clone_to_owned()?));
            fd.map_err(|error| KernelError::from_program(name, error))
        };
        let programs = [fd(CGROUP_PROGRAMS[0])?, fd(CGROUP_PROGRAMS[1])?];
        CgroupHooks::new(mount, programs, self.words.try_clone()?, self.pins.clone())
    }

    /// Takes this way onto interfaces instead of the kernel's best; for those that come.
    pub fn use_hook(&mut self, hook: InterfaceHook) {
        self.hook = hook;
    }

    /// How programs are on interfaces.
    #[must_use]
    pub fn hook(&self) -> InterfaceHook {
        self.hook
    }

    /// Attaches to both directions of an interface, before every other program there. Does nothing
    /// if it is attached already. TCX takes some milliseconds (a grace period under the RTNL lock).
    ///
    /// # Errors
    /// The interface is gone or was renamed meanwhile, or the kernel refuses.
    pub fn attach_interface(&mut self, ifindex: u32, name: &str) -> Result<(), KernelError> {
        if self.closed {
            return Err(KernelError::Io(
                "attach: the agent is ending",
                io::ErrorKind::Interrupted.into(),
            ));
        }
        match self.hook {
            InterfaceHook::Tcx if self.tcx.contains_key(&ifindex) => Ok(()),
            InterfaceHook::Tcx => self.attach_tcx(ifindex, name),
            InterfaceHook::Clsact => self.attach_clsact(ifindex, name),
        }
    }

    fn attach_clsact(&mut self, ifindex: u32, name: &str) -> Result<(), KernelError> {
        let clsact = match &mut self.clsact {
            Some(clsact) => clsact,
            none => {
                none.insert(Clsact::new().map_err(|error| KernelError::Io("set up clsact", error))?)
            }
        };
        let mut fd = |program| {
            classifier(&mut self.ebpf, program)?
                .fd()
                .and_then(|fd| Ok(fd.try_clone()?))
                .map_err(|source| KernelError::Attach {
                    place: format!("interface `{name}`"),
                    source: Box::new(source),
                })
        };
        let programs = [fd(TCX_PROGRAMS[0])?, fd(TCX_PROGRAMS[1])?];
        clsact
            .attach(ifindex, [programs[0].as_fd(), programs[1].as_fd()])
            .map_err(|source| KernelError::Clsact {
                interface: name.to_owned(),
                source,
            })
    }

    fn attach_tcx(&mut self, ifindex: u32, name: &str) -> Result<(), KernelError> {
        let failed = |source| KernelError::Attach {
            place: format!("interface `{name}`"),
            source: Box::new(source),
        };
        let mut attach = |program, direction| {
            classifier(&mut self.ebpf, program)?
                .attach_with_options(
                    name,
                    direction,
                    TcAttachOptions::TcxOrder(LinkOrder::first()),
                )
                .map_err(failed)
        };
        let ingress = attach(TCX_PROGRAMS[0], TcAttachType::Ingress)?;
        let egress = match attach(TCX_PROGRAMS[1], TcAttachType::Egress) {
            Ok(egress) => egress,
            Err(error) => {
                self.detach_tcx(ingress, TCX_PROGRAMS[0]);
                return Err(error);
            }
        };
        // aya attaches by name: it must still have been the same interface.
        if if_nametoindex(name).ok() != Some(ifindex) {
            self.detach_tcx(ingress, TCX_PROGRAMS[0]);
            self.detach_tcx(egress, TCX_PROGRAMS[1]);
            return Err(KernelError::Io(
                "attach: the interface was renamed or replaced",
                io::ErrorKind::NotFound.into(),
            ));
        }
        let links = [ingress, egress];
        let links = match &self.pins {
            None => TcxLinks::Held(links),
            Some(_) => {
                self.pin_tcx(ifindex, links)?;
                TcxLinks::Pinned
            }
        };
        self.tcx.insert(ifindex, links);
        Ok(())
    }

    fn pin_tcx(
        &mut self,
        ifindex: u32,
        links: [SchedClassifierLinkId; 2],
    ) -> Result<(), KernelError> {
        let failed = |source| KernelError::Attach {
            place: format!("interface {ifindex}"),
            source: Box::new(source),
        };
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        // A link that was pinned for an interface that is gone.
        pins.forget_interface(ifindex);
        for (program, link) in TCX_PROGRAMS.into_iter().zip(links) {
            let link = classifier(&mut self.ebpf, program)?
                .take_link(link)
                .map_err(failed)?;
            let link = FdLink::try_from(link).map_err(|error| failed(no_link(error)))?;
            if let Err(error) = pins.pin(link, &link_name(program, ifindex)) {
                pins.forget_interface(ifindex);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The programs are on the device that has this index now; they were attached to one that had it then.
    /// Takes the kernel's lock over all links. If that cannot be told, nothing speaks against it.
    pub fn is_on(&mut self, ifindex: u32) -> bool {
        let on = match self.hook {
            InterfaceHook::Tcx => self.is_on_tcx(ifindex),
            InterfaceHook::Clsact => match &mut self.clsact {
                Some(clsact) => clsact.is_on(ifindex),
                None => Ok(false),
            },
        };
        match on {
            Ok(on) => on,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => false,
            Err(error) => {
                tracing::error!(%error, ifindex, "failed to ask what is on an interface");
                true
            }
        }
    }

    fn is_on_tcx(&mut self, ifindex: u32) -> io::Result<bool> {
        let program = classifier(&mut self.ebpf, TCX_PROGRAMS[0]).map_err(io::Error::other)?;
        let id = program.info().map_err(io::Error::other)?.id();
        Ok(on_tcx_ingress(ifindex)?.contains(&id))
    }

    /// Takes the programs off an interface. If it is gone, the kernel has done so already.
    pub fn interface_gone(&mut self, ifindex: u32) {
        match self.tcx.remove(&ifindex) {
            Some(TcxLinks::Held([ingress, egress])) => {
                self.detach_tcx(ingress, TCX_PROGRAMS[0]);
                self.detach_tcx(egress, TCX_PROGRAMS[1]);
            }
            Some(TcxLinks::Pinned) => {
                if let Some(pins) = &self.pins {
                    pins.forget_interface(ifindex);
                }
            }
            None => {}
        }
        if let Some(clsact) = &mut self.clsact
            && let Err(error) = clsact.detach(ifindex)
        {
            tracing::debug!(%error, ifindex, "failed to detach");
        }
    }

    /// Takes off interfaces what would outlive the process. Nothing can be attached afterwards.
    pub fn close(&mut self) {
        self.closed = true;
        self.clsact = None;
    }

    fn detach_tcx(&mut self, link: SchedClassifierLinkId, program: &'static str) {
        let detached = classifier(&mut self.ebpf, program).and_then(|program| {
            program.detach(link).map_err(|source| KernelError::Attach {
                place: "nothing".to_owned(),
                source: Box::new(source),
            })
        });
        if let Err(error) = detached {
            tracing::debug!(%error, program, "failed to detach");
        }
    }
}

fn no_link(error: LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

fn program_fd(
    fd: Result<&ProgramFd, ProgramError>,
    ifindex: u32,
) -> Result<&ProgramFd, KernelError> {
    fd.map_err(|source| KernelError::Attach {
        place: format!("interface {ifindex}"),
        source: Box::new(source),
    })
}

/// Removes the filters that agents left on interfaces of this network namespace when they died.
///
/// # Returns
/// The interfaces' names.
///
/// # Errors
/// rtnetlink refuses.
pub fn remove_leftovers() -> Result<Vec<String>, KernelError> {
    let interfaces =
        clsact::sweep().map_err(|error| KernelError::Io("remove a dead agent's filters", error))?;
    Ok(interfaces
        .into_iter()
        .map(|ifindex| {
            if_indextoname(ifindex).map_or_else(
                |_gone| format!("interface {ifindex}"),
                |name| name.to_string_lossy().into_owned(),
            )
        })
        .collect())
}
