//! The built binary against an agent that follows a script: the faults that a real one cannot be
//! asked for. What a real agent does with real packets is shown by the suites in `tests/`.

mod agent;
mod capture;
#[cfg(feature = "kubernetes")]
mod cluster;
mod faults;
mod program;
mod rules;
mod steering;
mod trigger;
