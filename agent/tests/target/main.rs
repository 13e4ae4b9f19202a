//! Targets on real cgroups, network namespaces and veths.
//!
//! Each test has a network namespace of its own for its node, so nothing of the machine's network
//! is seen or touched.

mod pods;
mod resolve;
mod rights;
mod support;
mod watch;
