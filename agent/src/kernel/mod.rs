//! The kernel side: the only module with aya, libc and `unsafe`.
//!
//! - [`load`]: the object, its programs and maps; says what is missing when it cannot.
//! - [`attach`]: programs on interfaces; `clsact`, `tc`: by rtnetlink. [`cgroups`]: on cgroups.
//! - [`probe`]: what this kernel has of that which the programs use.
//! - [`tables`]: the maps, typed.
//! - [`pins`]: maps and links that outlive the agent; [`progress`]: how far it has come.
//! - [`ring`]: the ring's reading end.
//! - [`look_back`]: the look-back rings.
//! - [`side`]: all of it as sessions use it; implements [`crate::session::Taps`].
//! - [`translate`]: filter programs as machine code. [`program`]: loading and running it.
//!   [`upgrade`]: the sessions' filters, made into it behind their backs.
//! - [`grace`]: waiting for programs that are running. [`priority`]: which threads go first.
//!
//! Invariant: a session's slot, its filter, its counters and its budget are in place before a bit is set, and
//! are used again only after disarm, grace and drain.

pub mod attach;
pub mod cgroups;
mod clsact;
pub mod grace;
mod layouts;
pub mod load;
pub mod look_back;
pub mod pins;
mod pool;
pub mod priority;
pub mod probe;
pub mod program;
pub mod progress;
mod restore;
pub mod ring;
mod seen;
pub mod side;
mod stages;
pub mod tables;
mod taps;
mod tc;
pub mod translate;
pub mod upgrade;

pub use attach::{InterfaceHook, Programs, remove_leftovers};
pub use cgroups::CgroupHooks;
pub use load::{KernelError, LoadOptions, Loaded, load, object_digest};
pub use look_back::{LookBack, LookBackOptions};
pub use pins::Pins;
pub use ring::Ring;
pub use side::KernelSide;
pub use tables::Tables;
pub use upgrade::{FilterTables, Upgrade};
