//! The audit log: who wanted what, and what was decided. One JSON object a line, each with the SHA-256 of the
//! line before it.
//!
//! ```text
//! {"number":1,"previous":"0000…","time":…,"action":"start","decision":"allowed","who":"jane",…}
//! {"number":2,"previous":"9f2c…", …        ▲ SHA-256 of line 1, without its line end
//! ```
//! A line that was changed, taken out, put in or moved breaks the chain at the next line; what was done to the
//! end is seen by the [`Head`], if it was kept elsewhere. A log that was rotated begins with a later number:
//! what was before is gone, what is there is proved.

mod chain;
mod verify;

pub use chain::{Decision, Entry, Head, HeadError, LINE_MAX, Line};
pub use verify::{Break, Verifier};
