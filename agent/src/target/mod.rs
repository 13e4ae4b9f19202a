//! Targets: where on this node the packets of a cgroup, process, unit, container or interface
//! pass.
//!
//! ```text
//!  pod:shop/cart-7d9 (by its uid)
//!  container:3f2a…  pid:4321   unit:nginx.service   cgroup:/remora/web   cgroup:4711   interface:eth0
//!        │             │               │                   │                 │              │
//!        ▼             ▼               ▼                   ▼                 ▼              │
//!      its cgroup, then the pod    ┌────────────── its cgroup ──────────────────┐           │
//!        around it, if any ───────▶│ processes ─▶ network namespaces ─▶ veths   │           │
//!                                  └──────────────────────┬─────────────────────┘           │
//!                                                         ▼                                 ▼
//!                      Resolved { cgroup, scope of the cgroup programs, interfaces, notes }
//! ```
//! A pod's packets are taken at the host end of its veth, which alone sees all of them, and its
//! loopback by the cgroup programs. The veth is left out when it may carry packets of others:
//! then the cgroup programs take all they see. Where [another's program](bypass) puts packets into the pod past
//! the host end, they take what the pod receives.
//!
//! | processes of the cgroup | cgroup programs | interfaces |
//! |---|---|---|
//! | all in one other network namespace, alone in there, veths lead there | loopback | the veths |
//! | as above, but packets come in there past the veths | loopback, what is received | the veths, what is sent |
//! | as above, but not alone in there | all | - |
//! | all in the agent's own network namespace | all | - |
//! | in several; or where no veth leads; none at all; not to be seen | all | - |
//! | (a process in the root cgroup) where veths lead | - | the veths |
//! | (the root cgroup: the node) | - | [the node's own](own) |
//! | (a process in the root cgroup) elsewhere | refused | refused |
//!
//! A container or process means its whole pod, for the network namespace is the pod's. A cgroup
//! or unit means that cgroup alone, as does a container by its name in a pod: one container of a pod is
//! told from the others, and from the pod's sandbox, by its sockets.
//!
//! Invariants: no packet passes two of the places in a [`Resolved`]; none of another pod does.
//! All of it works as any user with no rights over the processes: it reads `/proc` and the cgroup
//! tree, and asks rtnetlink. It holds at the moment of the look-up; who goes on from there watches
//! with [`LinkWatcher`] and [`Resolver::revisit`].
//!
//! It attaches nothing. What it knows of Kubernetes is in [`pods`]; only `kubernetes` asks the API server.

#![forbid(unsafe_code)]

mod addresses;
mod bypass;
mod census;
mod cgroup;
mod departed;
mod error;
mod known;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod links;
mod message;
mod modes;
mod names;
mod own;
mod placement;
mod pod;
pub mod pods;
mod presume;
mod private;
mod procfs;
mod residents;
mod resolve;
mod root;
mod rtnl;
mod session;
mod sharers;

pub use census::{Among, Census, Learned};
pub use cgroup::Cgroup;
pub use error::ResolveError;
pub use known::KnownVeths;
pub use links::{Interface, InterfaceKind, LinkEvent, LinkWatcher};
pub use modes::{ModeRule, Modes, NoRule};
pub use resolve::{CgroupScope, Resolved, Resolver, Revisit};
pub use root::CgroupRoot;
pub use session::link_end;
