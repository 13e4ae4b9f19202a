//! `cargo xtask`: everything that is done to this repository rather than by it.
//!
//! - [`setup`]: what a machine needs, found or installed.
//! - [`build`]: the eBPF object, then the programs that embed it.
//! - [`image`]: the programs as an OCI image. [`manifests`]: the chart as plain manifests.
//! - [`lint`]: format, clippy, the arrows between crates and modules, generated code, licences.
//! - [`test`]: every layer of tests this machine can run.
//! - [`kernels`]: the kernel tests on other kernels, in virtual machines.
//! - [`cross`]: the programs for another processor.
//! - [`fuzz`]: the fuzz targets, by libFuzzer.
//! - [`cluster`]: a real Kubernetes on this machine.
//! - [`manual`]: manual pages and completions, for packages.
//! - [`run`]: the demo, the benchmark, the simulation.
#![forbid(unsafe_code)]

/// `println!`, though its reader may have gone (`| head`): what was begun is done all the same. A test's own
/// lines are the harness's, which keeps them: some look like results.
macro_rules! say {
    ($($text:tt)*) => {{
        if cfg!(test) {
            println!($($text)*);
        } else {
            use std::io::Write as _;
            let _gone = writeln!(std::io::stdout(), $($text)*);
        }
    }};
}

mod actionner;
mod build;
mod cluster;
mod cross;
mod fuzz;
mod image;
mod kernels;
mod lint;
mod manifests;
mod manual;
mod miri;
mod process;
mod room;
mod run;
mod setup;
mod spills;
mod test;
mod versitygw;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::build::Profile;
use crate::fuzz::Finds;
use crate::image::Programs;
use crate::setup::{Installing, Purpose};
use crate::test::{Also, Scope};

/// Builds, tests and shows Remora.
///
/// On a fresh machine with Rust, `cargo xtask demo` shows a whole capture and `cargo xtask test`
/// passes every test; both set up what is missing first.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what building and testing need
    ///
    /// A toolchain for the kernel's BPF target (REMORA_BPF_RUSTC and REMORA_BPF_CARGO, a rustup
    /// nightly with rust-src, or the distribution's), bpf-linker (REMORA_BPF_LINKER, the cache
    /// ~/.cache/remora, PATH, or built into that cache), and the Debian packages of the tools
    /// that the tests use. Says what is missing and why before it installs. A second run does
    /// nothing.
    Setup {
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Build the eBPF object and the programs into target/release
    ///
    /// The programs are remora, remora-agent and remora-controller; the object is inside the
    /// agent. `cargo build` alone works too, and embeds the object if this command built one.
    Build {
        /// Build the programs unoptimised, into target/debug (the eBPF object is always optimised)
        #[arg(long)]
        debug: bool,
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Make the OCI image, and its SBOM
    ///
    /// An archive for `ctr images import`, `skopeo copy oci-archive:FILE …` or `podman load`, of a
    /// build of its own (target/image) that has no path of this machine in it. The same sources and
    /// libraries give the same digest, which is printed last.
    Image {
        /// Where the archive and the SBOM go [default: target/image]
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Pack the programs of this directory as they are, like target/release: for a test
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Check format, clippy, dependency arrows, generated code and licences
    Lint {
        /// Repair what can be repaired: format, clippy's suggestions, generated code
        #[arg(long)]
        fix: bool,
    },
    /// Set up, build, lint, and pass every test that this machine can run
    ///
    /// Needs root for the kernel and end-to-end layers and asks sudo for it. Ends with a table
    /// and one line `N passed, N failed, N skipped`.
    Test {
        /// Run only tests with this in their name, and no lint
        filter: Option<String>,
        /// Run this layer, too
        #[arg(long, value_enum, value_name = "LAYER", conflicts_with = "filter")]
        also: Vec<Also>,
        /// Run every layer that there is
        #[arg(long, conflicts_with_all = ["filter", "also"])]
        all: bool,
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Run the kernel tests on other kernels, in virtual machines
    ///
    /// Debian's cloud kernels and, where it is missing, its QEMU are unpacked into
    /// ~/.cache/remora/kernels, never installed. Emulated: needs neither KVM nor root. Ends with a
    /// table of kernels, and what each verifier made of the programs.
    Kernels {
        /// Series like 6.1, `newest`, or `host`: this machine's [default: host 5.10 6.1 6.12 newest]
        series: Vec<String>,
        /// Write these verifiers' figures into tests/fixtures/verifier-budget.txt
        #[arg(long)]
        update_budget: bool,
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Run the fuzz targets, each for a while, by libFuzzer
    ///
    /// Needs a C++ compiler, for libFuzzer. What reaches new code stays in target/fuzz/corpus for
    /// the next run; `cargo xtask test` runs the inputs of tests/fuzz/corpus.
    Fuzz {
        /// The targets (tests/fuzz/fuzz_targets) [default: all]
        targets: Vec<String>,
        /// How long each runs
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Then replace the target's inputs in tests/fuzz/corpus by the fewest that reach most: 150 at most
        #[arg(long)]
        keep: bool,
    },
    /// Interpret the tests of agent-common, by Miri
    ///
    /// Needs a nightly toolchain of rustup's with the components miri and rust-src.
    Miri,
    /// Build the programs for 64-bit ARM, and try them in an emulator
    ///
    /// Into target/cross, by Debian's cross compiler and the toolchain of the eBPF object; libpcap is unpacked
    /// into ~/.cache/remora/cross-arm64, not installed. What needs a kernel of that processor is not tried.
    Cross {
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Show a capture: two pods, real traffic, a Falco alert, the packets
    Demo(ProgramArgs),
    /// Measure the goals P1 to P9 of the data path beside tcpdump: all, or `bench P1 P5`
    Bench(ProgramArgs),
    /// One controller in a large cluster: thousands of agents, many pods and an API server, all simulated
    ///
    /// By default 5 000 nodes, 150 000 pods and 10 000 alerts a minute; see `simulate -- --help`.
    Simulate(ProgramArgs),
    /// A real Kubernetes on this machine: control plane, two nodes, containers
    ///
    /// etcd, Kubernetes, containerd and Helm are built from Go modules into ~/.cache/remora/cluster:
    /// once for each set of versions, 10 to 15 minutes on two processors. Everything runs in
    /// namespaces of its own, as root, and `down` leaves nothing.
    Cluster {
        #[command(subcommand)]
        task: cluster::Task,
    },
    /// Render the chart into deploy/manifests, by Helm
    Manifests {
        /// Write nothing; fail when the committed manifest is not what the chart renders
        #[arg(long)]
        check: bool,
    },
    /// Write manual pages and shell completions into target/manual
    ///
    /// Of remora, kubectl-remora and remoradump, by the programs' own grammar: for packages, which
    /// link the one binary under these names (and as kubectl_complete-remora, which kubectl asks to
    /// complete the plug-in's words).
    Manual,
    /// Generate what is committed: the API, the chart's schema, rules and README
    Codegen {
        /// Write nothing; fail when something committed is not what its source says
        #[arg(long)]
        check: bool,
    },
}

#[derive(Args)]
struct InstallArgs {
    /// Install nothing: say what is missing, print the command that installs it, and fail
    #[arg(long)]
    no_install: bool,
}

#[derive(Args)]
struct ProgramArgs {
    #[command(flatten)]
    install: InstallArgs,
    /// Handed on; `-- --help` shows what there is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl InstallArgs {
    fn policy(&self) -> Installing {
        if self.no_install {
            Installing::Refused
        } else {
            Installing::Allowed
        }
    }
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup { install } => {
            let tools = setup::setup(Purpose::BuildAndTest, install.policy())?;
            say!("ready: {tools}");
            Ok(())
        }
        Task::Build { debug, install } => {
            let tools = setup::setup(Purpose::Build, install.policy())?;
            build::build(
                &tools,
                if debug {
                    Profile::Dev
                } else {
                    Profile::Release
                },
            )
        }
        Task::Image {
            output,
            programs,
            install,
        } => {
            let programs = programs.map_or(Programs::Built(install.policy()), Programs::Taken);
            let output = output.unwrap_or_else(|| workspace::target_dir().join("image"));
            let made = image::image(&programs, &output)?;
            say!("{} {}", made.digest.as_str(), made.archive.display());
            Ok(())
        }
        Task::Lint { fix: false } => lint::check().into_result(),
        Task::Lint { fix: true } => lint::fix(),
        Task::Test {
            filter,
            also,
            all,
            install,
        } => {
            let scope = match &filter {
                Some(filter) => Scope::Named(filter),
                None if all => Scope::All(&Also::ALL),
                None => Scope::All(&also),
            };
            test::test(scope, install.policy())
        }
        Task::Kernels {
            series,
            update_budget,
            install,
        } => kernels::kernels(&series, update_budget, install.policy()),
        Task::Fuzz {
            targets,
            seconds,
            keep,
        } => {
            let finds = if keep { Finds::Kept } else { Finds::Local };
            fuzz::fuzz(&targets, seconds, finds)
        }
        Task::Cross { install } => cross::cross(install.policy()),
        Task::Miri => miri::miri(),
        Task::Demo(demo) => run::run("demo", &demo.args, demo.install.policy()),
        Task::Bench(bench) => run::run("bench", &bench.args, bench.install.policy()),
        Task::Simulate(simulate) => run::run("simulate", &simulate.args, simulate.install.policy()),
        Task::Cluster { task } => cluster::perform(task),
        Task::Manifests { check } => manifests::manifests(check),
        Task::Manual => manual::manual(),
        Task::Codegen { check } => process::run(&mut lint::codegen(check)),
    }
}
