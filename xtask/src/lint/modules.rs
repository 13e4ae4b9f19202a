//! The arrows inside the agent, and what is kept in one place of it.

use std::path::{Component, Path, PathBuf};

use super::source::{NamedPath, paths};

/// What only `places` (files or folders of `agent/src`) may name.
struct Confined {
    what: &'static str,
    paths: &'static [&'static [&'static str]],
    places: &'static [&'static str],
}

const CONFINED: [Confined; 6] = [
    Confined {
        what: "aya, libc and unsafe code",
        paths: &[&["aya"], &["aya_log"], &["aya_obj"], &["libc"], &["unsafe"]],
        places: &["kernel"],
    },
    Confined {
        what: "kube",
        paths: &[&["kube"], &["k8s_openapi"]],
        places: &["target"],
    },
    Confined {
        what: "tonic and the API's messages",
        paths: &[
            &["tonic"],
            &["tonic_health"],
            &["tonic_reflection"],
            &["prost"],
            &["prost_types"],
            &["remora_proto"],
        ],
        places: &["api", "sink/stream.rs"],
    },
    Confined {
        what: "the environment",
        paths: &[&["std", "env"]],
        places: &["args.rs", "main.rs"],
    },
    Confined {
        what: "clap",
        paths: &[&["clap"]],
        places: &["args.rs", "main.rs"],
    },
    Confined {
        what: "starting tasks",
        paths: &[
            &["tokio", "spawn"],
            &["tokio", "task", "spawn"],
            &["tokio", "task", "JoinSet"],
        ],
        places: &["supervisor", "supervisor.rs"],
    },
];

/// Which module of the agent may use which others. `lib.rs` only lists them.
const ARROWS: [(&str, &[&str]); 15] = [
    ("main", &["app", "args", "cleanup", "doctor", "prepare"]),
    ("app", &EVERYTHING),
    ("doctor", &EVERYTHING),
    ("cleanup", &["args", "kernel"]),
    ("prepare", &["args"]),
    // Types that flags are parsed into.
    (
        "args",
        &["kernel", "session", "target", "telemetry", "writer"],
    ),
    ("api", &["session", "supervisor"]),
    ("telemetry", &["session", "sink", "supervisor", "writer"]),
    // These implement the traits that session and writer define.
    ("kernel", &["session", "writer"]),
    ("target", &["session"]),
    ("sink", &["session", "writer"]),
    ("watch", &["kernel", "session", "target"]),
    ("writer", &["session"]),
    ("session", &[]),
    ("supervisor", &[]),
];

/// `app` and `doctor` put the parts together.
const EVERYTHING: [&str; 10] = [
    "api",
    "args",
    "kernel",
    "session",
    "sink",
    "supervisor",
    "target",
    "telemetry",
    "watch",
    "writer",
];

/// Facts and layouts that use nothing of ours, and that all but `session` may use.
const LEAVES: [&str; 6] = ["budget", "clock", "custody", "node", "record", "upload"];

/// What breaks a rule, as `file:line: what`. Paths are from `agent/src`.
pub(super) fn violations(sources: &[(PathBuf, String)]) -> Vec<String> {
    let mut violations = Vec::new();
    for (file, source) in sources.iter().filter(|(file, _)| !is_test(file)) {
        for path in paths(source) {
            let broken = confined(file, &path).into_iter().chain(arrow(file, &path));
            violations.extend(
                broken.map(|what| format!("agent/src/{}:{}: {what}", file.display(), path.line)),
            );
        }
    }
    violations
}

/// A module of tests in a file of its own.
fn is_test(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| stem == "tests")
        || file.components().any(|part| part.as_os_str() == "tests")
}

fn confined(file: &Path, path: &NamedPath) -> Option<String> {
    // Constants of the compiler, which live where the environment does.
    if path
        .segments
        .starts_with(&["std", "env", "consts"].map(str::to_owned))
    {
        return None;
    }
    let rule = CONFINED.iter().find(|rule| {
        rule.paths.iter().any(|start| {
            path.segments.len() >= start.len()
                && path.segments.iter().zip(*start).all(|(a, b)| a == b)
        })
    })?;
    if rule.places.iter().any(|place| file.starts_with(place)) || is_plain_word(path) {
        return None;
    }
    Some(format!(
        "`{}`: {} is only for {}",
        path.segments.join("::"),
        rule.what,
        rule.places.join(", ")
    ))
}

/// A variable may be called `kube`; only a path, or a keyword, says what it is.
fn is_plain_word(path: &NamedPath) -> bool {
    path.segments.len() == 1 && path.segments[0] != "unsafe"
}

fn arrow(file: &Path, path: &NamedPath) -> Option<String> {
    let from = module_path(file);
    let from = from.first().map_or("lib", String::as_str);
    let to = used_module(file, path)?;
    let (is_leaf, may_use_leaves) = (LEAVES.contains(&to.as_str()), from != "session");
    if from == "lib" || to == from || is_leaf && may_use_leaves && !LEAVES.contains(&from) {
        return None;
    }
    let arrows = ARROWS.iter().find(|(module, _)| *module == from);
    let Some(allowed) = arrows
        .map(|(_, allowed)| *allowed)
        .or(LEAVES.contains(&from).then_some(&[]))
    else {
        return Some(format!(
            "module `{from}` has no arrows: add it to xtask/src/lint/modules.rs"
        ));
    };
    (!allowed.contains(&to.as_str())).then(|| {
        format!(
            "`{}`: `{from}` may not use `{to}`",
            path.segments.join("::")
        )
    })
}

/// The top-level module of the agent that a path in `file` leads into, if it leads into one.
fn used_module(file: &Path, path: &NamedPath) -> Option<String> {
    let mut segments = path.segments.iter().map(String::as_str).peekable();
    let mut here = module_path(file);
    match segments.next()? {
        "crate" | "remora_agent" => here.clear(),
        "super" => {
            here.pop();
            while segments.next_if_eq(&"super").is_some() {
                here.pop();
            }
        }
        _ => return None,
    }
    let module = here
        .into_iter()
        .next()
        .or_else(|| segments.next().map(str::to_owned))?;
    // A name in the root that is no module (a function, a re-export) starts no arrow.
    module
        .chars()
        .all(|c| c.is_ascii_lowercase() || c == '_')
        .then_some(module)
}

/// `kernel/ring.rs` is `[kernel, ring]`, `kernel/mod.rs` is `[kernel]`, `lib.rs` is `[]`.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file
        .with_extension("")
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    path.pop_if(|last| last == "mod" || last == "lib");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, source: &str) -> Vec<String> {
        violations(&[(file.into(), source.into())])
    }

    /// Each rule: a source that breaks it, and the same source where it is allowed.
    #[test]
    fn what_is_confined_is_refused_elsewhere_and_allowed_at_home() {
        for (source, stranger, home) in [
            (
                "use aya::maps::HashMap;",
                "session/mod.rs",
                "kernel/maps.rs",
            ),
            (
                "fn f() { unsafe { g() } }",
                "writer/mod.rs",
                "kernel/clock.rs",
            ),
            (
                "let x = libc::AF_INET;",
                "target/veth.rs",
                "kernel/netlink.rs",
            ),
            ("use kube::Client;", "api/mod.rs", "target/pods.rs"),
            ("use tonic::Status;", "session/mod.rs", "api/capture.rs"),
            ("use remora_proto::v1;", "sink/store.rs", "sink/stream.rs"),
            ("use std::{env, fs};", "app.rs", "args.rs"),
            ("use clap::Parser;", "app.rs", "args.rs"),
            (
                "fn f() { tokio::spawn(g()); }",
                "session/mod.rs",
                "supervisor.rs",
            ),
        ] {
            let found = check(stranger, source);
            assert_eq!(found.len(), 1, "{stranger}: {source}: {found:?}");
            assert!(
                found[0].starts_with(&format!("agent/src/{stranger}:1: ")),
                "{found:?}"
            );
            assert_eq!(check(home, source), [""; 0], "{home}: {source}");
        }
    }

    #[test]
    fn arrows_lead_downward_only() {
        for (file, source) in [
            ("api/capture.rs", "use crate::kernel::Maps;"),
            ("session/mod.rs", "use crate::writer;"),
            ("session/mod.rs", "use crate::clock::ClockOffset;"),
            ("kernel/ring.rs", "use crate::sink::Store;"),
            ("writer/mod.rs", "fn f() -> crate::sink::Store {}"),
            ("clock.rs", "use crate::node::NodeFacts;"),
            ("clock.rs", "use crate::session::Id;"),
            ("sink/store.rs", "use crate::api::Server;"),
            ("writer/queue.rs", "use super::super::api::Server;"),
            ("writer/mod.rs", "use super::app;"),
            ("telemetry/mod.rs", "use crate::kernel;"),
            ("main.rs", "use remora_agent::kernel::Maps;"),
        ] {
            assert_eq!(check(file, source).len(), 1, "{file}: {source}");
        }
        for (file, source) in [
            ("main.rs", "use remora_agent::app;"),
            (
                "app.rs",
                "use crate::{api, kernel, session, sink, target, writer};",
            ),
            (
                "api/capture.rs",
                "use crate::session::Id; use super::reason; use crate::clock;",
            ),
            ("kernel/mod.rs", "impl crate::session::Kernel for Maps {}"),
            (
                "kernel/ring.rs",
                "use super::maps; use super::super::session::Kernel;",
            ),
            ("writer/mod.rs", "use crate::record::Record;"),
            ("node.rs", "const A: &str = std::env::consts::ARCH;"),
            ("lib.rs", "pub use crate::app::run;"),
            ("session/tests.rs", "use crate::kernel::Maps;"),
        ] {
            assert_eq!(check(file, source), [""; 0], "{file}: {source}");
        }
    }

    #[test]
    fn a_module_that_the_table_does_not_know_is_named() {
        let found = check("novelty/mod.rs", "use crate::session::Id;");
        assert!(found[0].contains("`novelty` has no arrows"), "{found:?}");
    }
}
