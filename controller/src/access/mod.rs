//! Who may do what: asked of Kubernetes before each call, and refused whenever that gives no clear yes.
//!
//! ```text
//! call ─▶ Caller (token or certificate) ─TokenReview─▶ User ─┐
//! Action, Scope ─▶ rights (pure) ─────────────────────────────┴─SubjectAccessReview, one a right─▶ judge (pure)
//! ```
//! | action | verb and resource, in each namespace that is touched |
//! |---|---|
//! | [`Action::Start`] | `create captures.remora.dev` |
//! | [`Action::Stop`] | `update captures.remora.dev`: the capture stays, its state changes |
//! | [`Action::Show`] | `get captures.remora.dev` |
//! | [`Action::List`], [`Action::Status`] | `list captures.remora.dev` |
//! | [`Action::Watch`] | `watch captures.remora.dev` |
//! | [`Action::Read`] | `get captures.remora.dev/data`: packets are secret, that they were taken is not |
//! | [`Action::Delete`] | `delete captures.remora.dev/data`: the object of the capture is another matter |
//! | [`Action::Hold`] | `create captures.remora.dev/hold` |
//! | [`Action::Release`] | `delete captures.remora.dev/hold`: who holds need not be who lets go |
//!
//! What is in no namespace (a node, the state of all agents) needs the right in the whole cluster.
//!
//! Invariants:
//! - No credentials, no user, no answer within [`DEADLINE`], an answer that is none: denied, with that
//!   reason.
//! - A yes holds for [`ALLOW_FOR`], a no for [`DENY_FOR`]; that nobody could be asked is not kept. What
//!   lasts (a stream, a watch) asks again every [`ALLOW_FOR`].
//! - Tokens are kept as hashes, never logged, and never passed on.

mod cache;
mod caller;
mod cluster;
mod denied;
mod guard;
mod review;
mod rights;
mod seam;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use caller::{Caller, Credentials, Token};
pub use cluster::{ClusterAccess, Identified};
pub use denied::Denied;
pub use guard::{About, Guard, Known};
pub use review::Reviews;
pub use rights::{Action, NAMESPACES_MAX, Right, Scope, User};

/// How long the API server may take to answer all that one call needs.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// How long a yes is taken for the same again.
pub const ALLOW_FOR: Duration = Duration::from_secs(10);
/// How long a no is.
pub const DENY_FOR: Duration = Duration::from_secs(1);
