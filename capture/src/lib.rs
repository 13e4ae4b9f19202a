//! Remora's vocabulary, pure and portable: no async, no kernel, no input or output of its own
//! beyond what it is handed.
//!
//! - [`session`]: what a capture is: target, filter, limits, trigger, counts, state.
//! - [`alert`]: Falco's alerts, and what to capture for them.
//! - [`amendment`]: what is asked of a capture while it runs.
//! - [`audit`]: the log of who wanted what and what was decided, and whether it is whole.
//! - [`evidence`]: manifests, their signatures and their chain; what they prove.
//! - [`exposition`]: metrics in the two text forms that Prometheus takes.
//! - [`filter`]: capture filters in tcpdump's language.
//! - [`merge`]: the streams of several nodes as one.
//! - [`pcapng`]: capture files: writing, mending, reading.
//! - [`segment`]: super-packets cut into what the wire would have carried.
//! - [`sidecar`]: the account beside a finished file.
//! - [`text`]: text from outside, made harmless.
//! - [`upload`]: how far a capture's files are on their way to a store of objects.
#![forbid(unsafe_code)]

pub mod alert;
pub mod amendment;
pub mod audit;
pub mod evidence;
pub mod exposition;
pub mod filter;
pub mod merge;
pub mod pcapng;
pub mod segment;
pub mod session;
pub mod sidecar;
pub mod text;
pub mod upload;
