//! The cluster as the API server tells it. The only place that knows kube.
//!
//! [`index`] is what is known, without any input or output; the watches tell it.

pub mod index;
