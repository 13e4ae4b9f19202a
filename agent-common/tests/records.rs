//! The agent's reader of records, with the tests that lie beside it. `cargo xtask miri` interprets this crate's
//! tests, and would have to build all that the agent depends on for one module that needs nothing of it.
#![expect(
    dead_code,
    unreachable_pub,
    reason = "what the agent does with records is not here"
)]

#[path = "../../agent/src/record/mod.rs"]
mod record;
