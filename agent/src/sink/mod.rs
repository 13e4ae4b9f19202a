//! Where captures end up: [`file`](file) in the data directory, [`stream`](stream) to one reader. The
//! [`store`](store) is the directory with its quota and its sidecars, `shelf` a capture's files in
//! it, `amendments` what is asked of it meanwhile, `recover` their repair after a crash, `go_on` how they are gone on with instead;
//! [`evidence`](evidence) signs what is finished, [`upload`] sends it on. [`outputs`](outputs) makes a session's output of them.

mod amendments;
pub mod evidence;
pub mod fail_point;
pub mod file;
mod go_on;
pub mod outputs;
mod recover;
mod shelf;
pub mod store;
pub mod stream;
pub mod upload;

pub use outputs::SessionOutputs;
pub use recover::Recovered;
pub use store::{Store, StoreError};
