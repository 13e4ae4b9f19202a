//! A real Kubernetes: that the bed is one, and what Remora does in it.
//!
//! One cluster serves all tests, one after the other; each has a namespace of its own.
#![forbid(unsafe_code)]

mod alerts;
mod bad_input;
mod bed;
mod caller;
mod capture;
mod capturing;
mod chart;
mod churn;
mod converge;
mod crowd;
mod faults;
mod fresh;
mod installed;
mod node_agent;
mod objects;
mod past;
mod rights;
mod shop;
mod speed;
mod upgrade;
mod witness;

use std::{process::ExitCode, sync::Arc};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use remora_tests::{
    cluster::{Cluster, leftovers::Machine},
    signals, wait,
};

/// A test, by name.
type Test = (&'static str, fn(&Cluster) -> Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Two processors, one cluster, and tests that stop its API server.
    arguments.test_threads.get_or_insert(1);
    let all = [
        &bed::TESTS[..],
        &chart::FIRST,
        &capture::TESTS,
        &objects::TESTS,
        &bad_input::TESTS,
        &rights::TESTS,
        &past::TESTS,
        &faults::TESTS,
        &churn::TESTS,
        &crowd::TESTS,
        &upgrade::TESTS,
        &speed::TESTS,
        &fresh::TESTS,
        &chart::LAST,
    ]
    .concat();
    let wanted = all.iter().any(|(name, _)| {
        let trial = Trial::test(*name, || Ok(()));
        !arguments.is_filtered_out(&trial)
    });
    if arguments.list || !wanted {
        return libtest_mimic::run(&arguments, trials(&all, None)).exit_code();
    }
    match run(&arguments, &all) {
        Ok(code) => code,
        Err(error) => {
            println!("no cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, all: &[Test]) -> Result<ExitCode> {
    signals::interrupt_waits()?;
    let before = Machine::look()?;
    let cluster = Arc::new(Cluster::start()?);
    let conclusion = libtest_mimic::run(arguments, trials(all, Some(&cluster)));
    drop(Arc::into_inner(cluster));
    // Whatever was asked for, this is looked at.
    let everything = Arguments::default();
    let last = Trial::test("a_cluster_that_ended_leaves_nothing", move || {
        Machine::is_as_before(&before).map_err(failed)
    });
    let last = libtest_mimic::run(&everything, vec![last]);
    Ok(if conclusion.has_failed() {
        conclusion.exit_code()
    } else {
        last.exit_code()
    })
}

fn trials(all: &[Test], cluster: Option<&Arc<Cluster>>) -> Vec<Trial> {
    let trial = |&(name, test): &Test| {
        let cluster = cluster.cloned();
        Trial::test(name, move || match cluster {
            Some(cluster) => one(test, &cluster).map_err(failed),
            None => Err("no cluster".into()),
        })
    };
    all.iter().map(trial).collect()
}

fn one(test: fn(&Cluster) -> Result<()>, cluster: &Cluster) -> Result<()> {
    ensure!(!wait::is_interrupted(), "interrupted");
    test(cluster)
}

/// With all of its causes.
fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
