//! Where captures end up: [`file`](file) in the data directory, [`stream`](stream) to one reader. The
//! [`store`](store) is the directory with its quota, its sidecars and its repair after a crash.
//! [`outputs`](outputs) makes a session's output of them.

pub mod file;
pub mod outputs;
pub mod store;
pub mod stream;

pub use outputs::SessionOutputs;
pub use store::{Recovered, Store, StoreError};
