//! What the programs cost each kernel's verifier, as committed: `KERNEL PROGRAM INSTRUCTIONS` a
//! line. The test `no_program_costs_the_verifier_a_tenth_more_than_its_budget` holds them to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use super::Outcome;
use crate::process::{as_root, output};
use crate::run::bin_dir;
use crate::workspace;

const HEAD: &str = "\
# Instructions that the verifier processes for each program, by kernel.
# Written by `cargo xtask kernels [host] --update-budget`.
";

/// For setpriv: the two capabilities. With more the verifier is less strict, and cheaper.
pub(super) const AGENT_RIGHTS: [&str; 3] = [
    "--inh-caps=-all",
    "--bounding-set=-all,+bpf,+net_admin",
    "--",
];

/// By kernel series and program.
type Budget = BTreeMap<(Series, String), u64>;

/// "6.12", in numeric order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Series(u64, u64);

impl Series {
    /// Of "6.12.117+deb12-cloud-amd64".
    fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(
            numbers.next()?.parse().ok()?,
            numbers.next()?.parse().ok()?,
        ))
    }
}

/// What `remora-agent doctor` says of a program:
/// `ok       program tcx_ingress: loaded, 1234 instructions verified`
pub(super) fn verified(line: &str) -> Option<(String, u64)> {
    let (program, rest) = line
        .strip_prefix("ok       program ")?
        .split_once(": loaded, ")?;
    let (count, _) = rest.split_once(" instructions verified")?;
    Some((program.to_owned(), count.parse().ok()?))
}

fn file() -> PathBuf {
    workspace::root().join("tests/fixtures/verifier-budget.txt")
}

/// What this machine's kernel makes of the programs.
///
/// # Errors
/// It refuses them.
pub(super) fn here() -> anyhow::Result<Outcome> {
    let mut doctor = as_root("setpriv");
    doctor
        .args(AGENT_RIGHTS)
        .arg(bin_dir().join("remora-agent"))
        .arg("doctor");
    let verified: Vec<_> = output(&mut doctor)?.lines().filter_map(verified).collect();
    ensure!(
        !verified.is_empty(),
        "this machine's kernel verified nothing"
    );
    let name = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(Outcome {
        name: name.trim().to_owned(),
        verified,
        ..Outcome::default()
    })
}

/// Writes the figures of these kernels; those of others stay.
///
/// # Errors
/// The file cannot be written.
pub(super) fn update(outcomes: &[Outcome]) -> anyhow::Result<()> {
    let mut budget = parse(&fs::read_to_string(file()).unwrap_or_default());
    for outcome in outcomes
        .iter()
        .filter(|outcome| !outcome.verified.is_empty())
    {
        take(&mut budget, &outcome.name, &outcome.verified)?;
    }
    fs::write(file(), text(&budget))?;
    say!("wrote {}", file().display());
    Ok(())
}

fn take(budget: &mut Budget, release: &str, programs: &[(String, u64)]) -> anyhow::Result<()> {
    let series = Series::of(release).with_context(|| format!("`{release}` is no version"))?;
    // A program that is gone has no budget.
    budget.retain(|(of, _), _| *of != series);
    for (program, count) in programs {
        budget.insert((series, program.clone()), *count);
    }
    Ok(())
}

fn parse(text: &str) -> Budget {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let series = Series::of(words.next()?)?;
            Some((
                (series, words.next()?.to_owned()),
                words.next()?.parse().ok()?,
            ))
        })
        .collect()
}

fn text(budget: &Budget) -> String {
    let mut text = HEAD.to_owned();
    for ((Series(major, minor), program), count) in budget {
        text += &format!("{major}.{minor} {program} {count}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_budget_is_as_the_command_writes_it() {
        let committed = fs::read_to_string(file()).unwrap();
        assert_eq!(text(&parse(&committed)), committed);
    }

    #[test]
    fn a_kernels_figures_replace_those_of_its_series_and_no_others() {
        let mut budget = parse("6.1 a 10\n6.12 a 20\n6.12 gone 5\n");
        take(
            &mut budget,
            "6.12.117+deb12-cloud-amd64",
            &[("a".into(), 21)],
        )
        .unwrap();
        assert_eq!(text(&budget), format!("{HEAD}6.1 a 10\n6.12 a 21\n"));
        let line = "ok       program tcx_ingress: loaded, 70123 instructions verified";
        assert_eq!(verified(line), Some(("tcx_ingress".into(), 70123)));
        assert_eq!(verified("missing  eBPF programs: no"), None);
    }
}
