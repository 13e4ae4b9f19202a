//! `remora-agent doctor`: what this kernel and these rights allow.
//!
//! Every line is tried, not guessed from a version.

use std::{fs, io::Write as _, process::ExitCode};

use crate::{
    args::DoctorArgs,
    kernel::{
        self, InterfaceHook, LoadOptions,
        load::RING_BYTES_MIN,
        pins,
        probe::{self, SINCE, Tier},
    },
    node::NodeFacts,
    target::CgroupRoot,
};

/// Capabilities by their bit (linux/capability.h).
const CAPABILITIES: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_BPF", 39)];

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: String,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// The agent runs without it, but not as well; why, or what to do.
    Lesser(String),
    /// The agent cannot do without it; what to do.
    Missing(String),
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            state: State::Ok,
        }
    }

    fn lesser(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            state: State::Lesser(why.into()),
        }
    }

    fn missing(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            state: State::Missing(next.into()),
        }
    }

    fn is_missing(&self) -> bool {
        matches!(self.state, State::Missing(_))
    }
}

/// Prints the report; fails if something is missing that the agent cannot do without.
///
/// # Errors
/// The machine does not tell its name, or nothing can be printed.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let node = NodeFacts::of_this_machine(None)?;
    let mut findings = vec![Finding::ok(format!("kernel: {}", node.kernel))];
    findings.extend(capabilities());
    let permitted = !findings.iter().any(Finding::is_missing);
    let root = match &args.cgroup_root {
        Some(path) => CgroupRoot::at(path),
        None => CgroupRoot::find(),
    };
    match &root {
        Ok(root) => {
            findings.push(Finding::ok(format!(
                "cgroup2 tree: {}",
                root.mount().display()
            )));
        }
        Err(error) => findings.push(Finding::missing("cgroup2 tree", error.to_string())),
    }
    findings.push(jit());
    findings.extend(if permitted {
        kernel_side(root.as_ref().ok())
    } else {
        vec![not_tried()]
    });
    findings.push(processes());
    findings.push(match pins::usable(&args.pin) {
        Ok(()) => Finding::ok(format!("pins (--pin): in {}", args.pin.display())),
        Err(why) => Finding::lesser("pins: captures cannot outlive the agent (--pin)", why),
    });

    let mut out = std::io::stdout().lock();
    for Finding { what, state } in &findings {
        match state {
            State::Ok => writeln!(out, "ok       {what}")?,
            State::Lesser(why) => writeln!(out, "lesser   {what}: {why}")?,
            State::Missing(next) => writeln!(out, "missing  {what}: {next}")?,
        }
    }
    let all = !findings.iter().any(Finding::is_missing);
    if all {
        writeln!(out, "\nThis machine can run the agent: `remora-agent run`.")?;
    }
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn capabilities() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .into_iter()
        .map(|(name, bit)| {
            if effective >> bit & 1 == 1 {
                Finding::ok(format!("right: {name}"))
            } else {
                Finding::missing(
                    format!("right: {name}"),
                    "run as root, or with the capability (`remora-agent run --help` shows how)",
                )
            }
        })
        .collect()
}

fn jit() -> Finding {
    const PATH: &str = "/proc/sys/net/core/bpf_jit_enable";
    match fs::read_to_string(PATH).map(|text| text.trim().to_owned()) {
        Ok(on) if on != "0" => Finding::ok("eBPF programs are compiled (JIT)"),
        Ok(_) => Finding::lesser(
            "eBPF JIT",
            "programs are interpreted and slow; `sysctl net.core.bpf_jit_enable=1`",
        ),
        // Not readable without root on some machines: then the kernel has its default, on.
        Err(_) => Finding::ok("eBPF JIT: the kernel's default"),
    }
}

/// What the kernel would say of programs that it cannot take is of no help, and may mislead.
fn not_tried() -> Finding {
    Finding::missing("eBPF programs", "not tried for what is missing above")
}

fn kernel_side(root: Option<&CgroupRoot>) -> Vec<Finding> {
    let mut findings = features();
    if findings.iter().any(Finding::is_missing) {
        findings.push(not_tried());
    } else {
        findings.extend(programs(root));
    }
    findings
}

/// What the kernel has, tier by tier.
fn features() -> Vec<Finding> {
    probe::features()
        .into_iter()
        .map(|(feature, answer)| {
            let tier = match feature.tier {
                Tier::Capture => "capture",
                Tier::LookBack => "look-back",
            };
            let what = format!("{tier}: {}", feature.name);
            let why = match answer {
                Ok(true) => return Finding::ok(what),
                Ok(false) => format!("this kernel has none; use Linux {SINCE} or newer"),
                Err(error) => error.to_string(),
            };
            match feature.tier {
                Tier::Capture => Finding::missing(what, why),
                Tier::LookBack => Finding::lesser(what, why),
            }
        })
        .collect()
}

fn programs(root: Option<&CgroupRoot>) -> Vec<Finding> {
    let options = LoadOptions {
        ring_bytes: RING_BYTES_MIN,
        log: log::LevelFilter::Off,
        pins: None,
    };
    let loaded = match kernel::load(options) {
        Ok(loaded) => loaded,
        Err(error) => return vec![Finding::missing("eBPF programs", error.to_string())],
    };
    let mut findings: Vec<_> = loaded
        .verified
        .iter()
        .map(|(name, instructions)| {
            Finding::ok(format!(
                "program {name}: loaded, {instructions} instructions verified"
            ))
        })
        .collect();
    let mut programs = loaded.programs;
    if let Some(root) = root {
        let tried = programs.cgroup_hooks(root.mount());
        findings.push(match tried.and_then(|hooks| hooks.try_root()) {
            Ok(()) => Finding::ok("hook: cgroup_skb on cgroups (tried on the root)"),
            Err(error) => Finding::missing("hook: cgroup_skb", error.to_string()),
        });
    }
    // Every network namespace has `lo`, as interface 1.
    findings.push(
        match (programs.attach_interface(1, "lo"), programs.hook()) {
            (Ok(()), InterfaceHook::Tcx) => Finding::ok("hook: TCX on interfaces (tried on lo)"),
            (Ok(()), InterfaceHook::Clsact) => Finding::lesser(
                "hook: filters of the qdisc clsact on interfaces (tried on lo)",
                "TCX, whose links go with the agent, needs Linux 6.6",
            ),
            (Err(error), _) => Finding::missing("hook: interfaces", error.to_string()),
        },
    );
    findings
}

/// pid, unit and container targets, and the way to a pod's veth, need to see processes.
fn processes() -> Finding {
    match fs::read_to_string("/proc/1/cgroup") {
        Ok(_) => Finding::ok("processes of others are visible in /proc"),
        Err(error) => Finding::missing(
            "processes in /proc",
            format!("{error}; pods' veths are not found: mount /proc without hidepid"),
        ),
    }
}
