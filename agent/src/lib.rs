//! Laid out.

pub mod target;
