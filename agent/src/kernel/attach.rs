//! Programs on interfaces and at the cgroup root. Links close with [`Programs`], so a dead agent
//! leaves nothing attached.

use std::{collections::HashMap, fs::File, path::Path};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, LinkOrder, TcAttachType,
        tc::{SchedClassifierLinkId, TcAttachOptions},
    },
};
use nix::net::if_::if_nametoindex;

use super::{
    load::{CGROUP_PROGRAMS, KernelError, TCX_PROGRAMS, cgroup_skb, classifier},
    stages::Stages,
};

/// The loaded programs and their links on interfaces.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    interfaces: HashMap<u32, [SchedClassifierLinkId; 2]>,
    /// Kept, not used: see [`Stages`].
    _stages: Stages,
}

impl Programs {
    pub(super) fn new(ebpf: Ebpf, stages: Stages) -> Self {
        Self {
            ebpf,
            interfaces: HashMap::new(),
            _stages: stages,
        }
    }

    /// Attaches to the cgroup2 root: every cgroup's packets pass, also those of later ones.
    ///
    /// # Errors
    /// The directory cannot be opened, or the kernel refuses.
    pub fn attach_cgroup_root(&mut self, root: &Path) -> Result<(), KernelError> {
        let directory =
            File::open(root).map_err(|error| KernelError::Io("open the cgroup2 root", error))?;
        let types = [CgroupSkbAttachType::Ingress, CgroupSkbAttachType::Egress];
        for (name, attach_type) in CGROUP_PROGRAMS.into_iter().zip(types) {
            cgroup_skb(&mut self.ebpf, name)?
                // A link always lets others attach; the flag for it is refused there (aya 0.14).
                .attach(&directory, attach_type, CgroupAttachMode::Single)
                .map_err(|source| KernelError::Attach {
                    place: format!("the cgroup2 root `{}`", root.display()),
                    source: Box::new(source),
                })?;
        }
        Ok(())
    }

    /// Attaches to both directions of an interface, before every other program there. Does nothing
    /// if it is attached already. Takes some milliseconds (a grace period under the RTNL lock).
    ///
    /// # Errors
    /// The interface is gone or was renamed meanwhile, or the kernel refuses.
    pub fn attach_interface(&mut self, ifindex: u32, name: &str) -> Result<(), KernelError> {
        if self.interfaces.contains_key(&ifindex) {
            return Ok(());
        }
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
                self.detach(ingress, TCX_PROGRAMS[0]);
                return Err(error);
            }
        };
        // aya attaches by name: it must still have been the same interface.
        if if_nametoindex(name).ok() != Some(ifindex) {
            self.detach(ingress, TCX_PROGRAMS[0]);
            self.detach(egress, TCX_PROGRAMS[1]);
            return Err(KernelError::Io(
                "attach: the interface was renamed or replaced",
                std::io::ErrorKind::NotFound.into(),
            ));
        }
        self.interfaces.insert(ifindex, [ingress, egress]);
        Ok(())
    }

    /// Forgets an interface that is gone; the kernel has taken the programs off it already.
    pub fn interface_gone(&mut self, ifindex: u32) {
        if let Some([ingress, egress]) = self.interfaces.remove(&ifindex) {
            self.detach(ingress, TCX_PROGRAMS[0]);
            self.detach(egress, TCX_PROGRAMS[1]);
        }
    }

    fn detach(&mut self, link: SchedClassifierLinkId, program: &'static str) {
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
