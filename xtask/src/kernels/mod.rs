//! `cargo xtask kernels`: the kernel tests on other kernels, each in a virtual machine.
//!
//! ```text
//! archive ─▶ kernel, QEMU, busybox ─┐
//! cargo ───▶ test programs, agent  ─┴▶ image ─▶ vm ─▶ lines ─▶ table
//! ```
//! The programs in the machine are those that `cargo xtask test` runs here, with fewer readers of
//! files (no tshark) and more patience.

mod archive;
mod budget;
mod image;
mod selection;
mod vm;

use std::fs;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tempfile::NamedTempFile;

use crate::build::{Profile, build};
use crate::process::step;
use crate::run::bin_dir;
use crate::setup::{Installing, Purpose, setup};
use crate::test::{Tally, parse_result, program_name, suites};

pub(crate) use archive::Archive;
use image::{Image, Modules};
use selection::{Selected, selected};
use vm::Qemu;

/// This machine's kernel. Needs no virtual machine; its tests are `cargo xtask test`'s.
const HOST: &str = "host";
/// Too old, without TCX, with it, and the newest.
const OTHERS: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];
/// Without TCX and with it: what `cargo xtask test --also kernels` runs. The archive keeps these for years;
/// the newest changes every week.
pub(crate) const STABLE: [&str; 2] = ["6.1", "6.12"];
/// What the test beds are made of, in modules.
const MODULES: [&str; 7] = [
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "cls_u32",
    "cls_matchall",
    "af_packet",
];
/// Programs of this machine that the tests run.
const TOOLS: [&str; 17] = [
    "bpftool", "capinfos", "cat", "cp", "env", "ethtool", "ip", "ls", "nsenter", "ping", "rm",
    "setpriv", "sh", "sleep", "tc", "tcpdump", "test",
];
const OUR_TOOLS: [&str; 4] = ["udpgen", "udpsink", "tcpbulk", "numbers"];

/// tcpdump reads files as its own user.
const USERS: &[u8] = b"root:x:0:0:root:/root:/bin/sh\ntcpdump:x:108:113::/:/bin/false\n";
const GROUPS: &[u8] = b"root:x:0:\ntcpdump:x:113:\n";

/// What came of one kernel.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    name: String,
    booted: Option<f64>,
    /// How many tests the program that runs now was told to run, by name.
    named: u64,
    tally: Tally,
    /// Programs with the instructions that this kernel's verifier processed.
    verified: Vec<(String, u64)>,
    took: Duration,
}

/// Sets up, builds, and runs the kernel tests on each kernel.
///
/// # Errors
/// A test failed on a kernel, or it is not to be had.
pub(crate) fn kernels(
    series: &[String],
    update_budget: bool,
    installing: Installing,
) -> anyhow::Result<()> {
    let tools = setup(Purpose::BuildAndTest, installing)?;
    build(&tools, Profile::Release)?;
    let chosen: Vec<&str> = if series.is_empty() {
        [HOST].into_iter().chain(OTHERS).collect()
    } else {
        series.iter().map(String::as_str).collect()
    };
    let (host, others): (Vec<&str>, Vec<&str>) =
        chosen.into_iter().partition(|series| *series == HOST);
    let mut outcomes = Vec::new();
    if !host.is_empty() {
        outcomes.push(budget::here()?);
    }
    if !others.is_empty() {
        let suites = suites()?;
        let programs = [suites.kernel, suites.end_to_end].concat();
        outcomes.extend(run(&programs, &others)?);
    }
    say!("\n{}", table(&outcomes));
    if update_budget {
        budget::update(&outcomes)?;
    }
    let tally = total(&outcomes);
    say!("{tally}");
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

/// Runs the kernel tests among `programs` on each kernel.
///
/// # Errors
/// There is nothing to run kernels with. One that is not to be had, crashes or hangs is no error,
/// but an outcome.
pub(crate) fn run(programs: &[PathBuf], series: &[&str]) -> anyhow::Result<Vec<Outcome>> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the kernels are for x86-64 machines, and so must the programs be"
    );
    let archive = Archive::open()?;
    let qemu = Qemu::find(&archive)?;
    let busybox = archive.package("busybox-static")?.join("bin/busybox");
    // The archive is asked one at a time, machines run side by side.
    let mut outcomes = Vec::new();
    let mut machines = Vec::new();
    for series in series {
        match Machine::new(&archive, &busybox, programs, series) {
            Ok(machine) => machines.push(machine),
            Err(error) => {
                say!("Linux {series}: {error:#}");
                outcomes.push(Outcome::failed(series));
            }
        }
    }
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    for some in machines.chunks(at_once) {
        thread::scope(|scope| {
            let qemu = &qemu;
            let running: Vec<_> = some
                .iter()
                .map(|machine| scope.spawn(move || run_machine(qemu, machine)))
                .collect();
            let ended = running.into_iter().map(|thread| thread.join());
            outcomes.extend(ended.map(|end| end.unwrap_or_else(|panic| resume_unwind(panic))));
        });
    }
    Ok(outcomes)
}

/// Of all kernels.
pub(crate) fn total(outcomes: &[Outcome]) -> Tally {
    outcomes
        .iter()
        .fold(Tally::default(), |sum, outcome| sum.plus(outcome.tally))
}

/// A kernel, and what it boots with.
#[derive(Debug)]
struct Machine {
    name: String,
    vmlinuz: PathBuf,
    image: NamedTempFile,
}

impl Machine {
    fn new(
        archive: &Archive,
        busybox: &Path,
        programs: &[PathBuf],
        series: &str,
    ) -> anyhow::Result<Self> {
        let name = archive.newest(series)?;
        let tree = archive.kernel(&name)?;
        let vmlinuz = vmlinuz(&tree, &name)?;
        let modules = Modules::of(&tree, busybox)?.wanted(&MODULES)?;
        let content = step(&format!("image for {name}"), || {
            Ok(image(programs, busybox, &modules, &selected(&name))?.to_cpio())
        })?;
        let image = NamedTempFile::new()?;
        fs::write(image.path(), content)?;
        Ok(Self {
            name,
            vmlinuz,
            image,
        })
    }
}

/// What one says is shown behind its number, for another one may run beside it.
fn run_machine(qemu: &Qemu, machine: &Machine) -> Outcome {
    let Machine {
        name,
        vmlinuz,
        image,
    } = machine;
    say!("══ Linux {name}");
    let series: String = name.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let started = Instant::now();
    let mut outcome = Outcome {
        name: name.clone(),
        ..Outcome::default()
    };
    let boot = |outcome: &mut Outcome| {
        qemu.boot(vmlinuz, image.path(), |line| {
            say!("{series:<5}│ {line}");
            outcome.hear(line);
        })
    };
    let mut ended = boot(&mut outcome);
    // The emulator's fault, and no test has begun.
    if let (Err(error), None) = (&ended, outcome.booted) {
        say!("Linux {name}: {error:#}; once more");
        ended = boot(&mut outcome);
    }
    outcome.took = started.elapsed();
    if let Err(error) = &ended {
        say!("Linux {name}: {error:#}");
    }
    if outcome.tally.failed == 0 && (ended.is_err() || outcome.tally.passed == 0) {
        outcome.tally.failed = 1;
    }
    outcome
}

impl Outcome {
    fn failed(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tally: Tally {
                failed: 1,
                ..Tally::default()
            },
            ..Self::default()
        }
    }

    fn hear(&mut self, line: &str) {
        if let Some(seconds) = line.strip_prefix("@@ up ") {
            self.booted = seconds.split(' ').next().and_then(|text| text.parse().ok());
        } else if let Some(tests) = line.strip_prefix("@@ tests ") {
            self.named = tests.parse().unwrap_or_default();
        } else if let Some(tally) = parse_result(line) {
            self.tally = self.tally.plus(tally);
            // One that was renamed would not be missed.
            self.tally.failed += self.named.saturating_sub(tally.passed + tally.failed);
        } else if line.starts_with("@@ failed ") && self.tally.failed == 0 {
            // A program that ended without a result.
            self.tally.failed += 1;
        } else if let Some(verified) = budget::verified(line) {
            self.verified.push(verified);
        }
    }
}

fn vmlinuz(tree: &Path, name: &str) -> anyhow::Result<PathBuf> {
    [
        format!("boot/vmlinuz-{name}"),
        format!("usr/lib/modules/{name}/vmlinuz"),
    ]
    .into_iter()
    .map(|path| tree.join(path))
    .find(|path| path.is_file())
    .with_context(|| format!("no kernel in {}", tree.display()))
}

fn image(
    programs: &[PathBuf],
    busybox: &Path,
    modules: &[(String, Vec<u8>)],
    tests: &[Selected],
) -> anyhow::Result<Image> {
    let mut image = Image::new();
    image.file("bin/busybox", fs::read(busybox)?);
    for tool in TOOLS {
        image.tool(tool)?;
    }
    image.file("etc/passwd", USERS.to_vec());
    image.file("etc/group", GROUPS.to_vec());
    for (number, (name, content)) in modules.iter().enumerate() {
        image.file(&format!("modules/{number:02}-{name}.ko"), content.clone());
    }
    // As cargo lays them out: a test is in deps, the tools are above it.
    image.built("build/remora-agent", &bin_dir().join("remora-agent"))?;
    for (name, _) in tests {
        let program = programs
            .iter()
            .find(|path| program_name(path) == *name)
            .with_context(|| format!("no test program `{name}` was built"))?;
        image.built(&format!("build/deps/{name}"), program)?;
        for tool in OUR_TOOLS {
            let tool_path = program.ancestors().nth(2).map(|path| path.join(tool));
            let tool_path = tool_path.with_context(|| format!("no place for `{tool}`"))?;
            image.built(&format!("build/{tool}"), &tool_path)?;
        }
    }
    image.file("init", script(tests).into_bytes());
    Ok(image)
}

fn script(tests: &[Selected]) -> String {
    let mut script = "\
#!/bin/sh
b=/bin/busybox
export PATH=/usr/sbin:/usr/bin HOME=/root RUST_BACKTRACE=1
export REMORA_BIN_DIR=/build REMORA_TEST_READERS=capinfos,tcpdump REMORA_TEST_PATIENCE=10
$b mount -t proc none /proc
$b mount -t sysfs none /sys
$b mount -t devtmpfs none /dev
$b mount -t tmpfs none /run
$b mount -t tmpfs none /tmp
$b mount -t cgroup2 none /sys/fs/cgroup
$b mount -t bpf none /sys/fs/bpf
for module in /modules/*; do $b insmod $module; done
ip link set lo up
echo \"@@ up $($b cat /proc/uptime)\"
run() { \"$@\" 2>&1 || echo \"@@ failed $1\"; }
cd /build
"
    .to_owned();
    let rights = budget::AGENT_RIGHTS.join(" ");
    script += &format!("setpriv {rights} ./remora-agent doctor\n");
    for (program, names) in tests {
        script += &format!("echo '@@ tests {}'\n", names.len());
        let names = names.join(" ");
        let exact = if names.is_empty() { "" } else { "--exact" };
        let ignored = if names.contains("old_kernel") {
            "--ignored"
        } else {
            ""
        };
        script += &format!("run deps/{program} --test-threads=1 {ignored} {exact} {names}\n");
    }
    script + "echo '@@ end'\n$b poweroff -f\n"
}

pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:<28}{:>8}{:>8}{:>8}{:>10}  instructions verified",
        "kernel", "boot s", "passed", "failed", "seconds"
    );
    for outcome in outcomes {
        let verified: Vec<String> = outcome
            .verified
            .iter()
            .map(|(program, count)| format!("{program} {count}"))
            .collect();
        table += &format!(
            "\n{:<28}{:>8.1}{:>8}{:>8}{:>10.1}  {}",
            outcome.name,
            outcome.booted.unwrap_or_default(),
            outcome.tally.passed,
            outcome.tally.failed,
            outcome.took.as_secs_f64(),
            if verified.is_empty() {
                "refused".to_owned()
            } else {
                verified.join(", ")
            }
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_made_of_what_the_machine_says() {
        let mut outcome = Outcome::default();
        for line in [
            "@@ up 2.51 1.00",
            "ok       program tcx_ingress: loaded, 70123 instructions verified",
            "@@ tests 0",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "@@ tests 2",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out",
        ] {
            outcome.hear(line);
        }
        assert_eq!(outcome.booted, Some(2.51));
        assert_eq!(outcome.verified, [("tcx_ingress".to_owned(), 70123)]);
        assert_eq!((outcome.tally.passed, outcome.tally.failed), (5, 0));

        outcome.hear("@@ failed deps/which_packets");
        assert_eq!(outcome.tally.failed, 1, "it ended without a result");
        outcome.hear("@@ tests 2");
        outcome.hear("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 8 filtered out");
        assert_eq!(outcome.tally.failed, 2, "one of two names is no test's");
    }
}
