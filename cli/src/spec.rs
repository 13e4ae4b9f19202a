//! The capture that the arguments mean.

use std::{num::NonZeroU64, path::Path, time::Duration};

use anyhow::{anyhow, bail};
use remora_capture::{
    filter::{Filter, FilterError, Names, compiler, program::Programs},
    session::{
        Compression, Destination, Direction, Durability, Limits, NameHint, Rotation, SessionSpec,
        Snaplen, SpecError, SuperPackets, Target, Trigger, Writing,
    },
    text,
    upload::SinkName,
};

use crate::{
    args::CaptureArgs,
    options::{Autostop, CaptureOptions, DirectionArg, Label, Name},
    output::compression_of,
};

/// Characters of the user's name that go into the capture's record.
const REQUESTER_MAX: usize = 64;

/// What a capture is beside its options.
pub(crate) struct Wanted<'a> {
    pub(crate) target: Target,
    /// The filter, if it is not among the options.
    pub(crate) words: &'a [String],
    pub(crate) count: Option<NonZeroU64>,
    pub(crate) destination: Destination,
    pub(crate) sink: Option<SinkName>,
    /// How the files are written, by whom ever.
    pub(crate) writing: Writing,
    pub(crate) writer: Writer,
}

/// Who writes the files that the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Agent,
    /// From the capture's stream.
    Us,
}

/// Turns arguments into a spec that is valid.
///
/// # Errors
/// As [`build`].
pub(crate) fn spec(args: &CaptureArgs, requester: &str) -> anyhow::Result<SessionSpec> {
    let (target, words) = target(args)?;
    let (destination, writer) = if args.store {
        (Destination::Store, Writer::Agent)
    } else {
        (Destination::Stream, Writer::Us)
    };
    let wanted = Wanted {
        target,
        words,
        count: args.count,
        destination,
        sink: args.destination.clone(),
        writing: writing(&args.options, args.write.as_deref(), args.compress),
        writer,
    };
    build(&args.options, wanted, requester)
}

/// Turns options into a spec that is valid.
///
/// # Errors
/// On one line what is wrong and what to do; a filter's error has two more lines that point at
/// the word.
pub(crate) fn build(
    options: &CaptureOptions,
    wanted: Wanted<'_>,
    requester: &str,
) -> anyhow::Result<SessionSpec> {
    let Wanted {
        target,
        words,
        count,
        destination,
        sink,
        writing,
        writer,
    } = wanted;
    let filter = filter_text(options, words)?;
    let mut limits = limits(count, &options.autostop);
    writing.validate(&limits)?;
    let writing = match writer {
        Writer::Agent => writing,
        // Only the end that follows from it is the agent's.
        Writer::Us => {
            least(&mut limits.duration, writing.rotation.duration());
            Writing::default()
        }
    };
    let spec = SessionSpec {
        filter: Filter::compile(&filter, compiler(Names::LookedUp))
            .map_err(|error| pointed(&error, &filter))?,
        snaplen: snaplen(options.snaplen.unwrap_or(0))?,
        direction: match options.direction {
            DirectionArg::In => Direction::Ingress,
            DirectionArg::Out => Direction::Egress,
            DirectionArg::Inout => Direction::Both,
        },
        limits,
        writing,
        super_packets: if options.segment {
            SuperPackets::Segmented
        } else {
            SuperPackets::Whole
        },
        destination,
        sink,
        look_back: options.look_back.unwrap_or(Duration::ZERO),
        trigger: Trigger {
            source: "cli".into(),
            requester: requester.to_owned(),
            reason: options.reason.clone().unwrap_or_default(),
            ..Trigger::default()
        },
        labels: options
            .label
            .iter()
            .map(|Label { key, value }| (key.clone(), value.clone()))
            .collect(),
        names: options
            .name
            .iter()
            .map(|Name { address, name }| NameHint {
                address: *address,
                name: name.clone(),
            })
            .collect(),
        ..SessionSpec::new(target)
    };
    spec.validate()?;
    Ok(spec)
}

/// How the files are written; `compress` is of files whose name is not ours to choose.
pub(crate) fn writing(options: &CaptureOptions, named: Option<&Path>, compress: bool) -> Writing {
    Writing {
        rotation: Rotation {
            file_bytes: options.rotate_size,
            interval: options.rotate_seconds,
            files: options.files,
        },
        compression: match named.map(compression_of) {
            Some(compression) => compression,
            None if compress => Compression::Zstd,
            None => Compression::None,
        },
        durability: if options.sync {
            Durability::Synced
        } else {
            Durability::Cached
        },
    }
}

/// The filter as the options or, if there is none, the words have it.
///
/// # Errors
/// It is there twice.
pub(crate) fn filter_text(options: &CaptureOptions, words: &[String]) -> anyhow::Result<String> {
    match (&options.filter, words) {
        (None, words) => Ok(words.join(" ")),
        (Some(filter), []) => Ok(filter.clone()),
        (Some(_), [word, ..]) => bail!(
            "the filter is there twice, by -f and by the words from `{word}` on; give it once"
        ),
    }
}

/// Who asks, by their own word: the agent or the controller adds what it knows by itself.
pub(crate) fn requester() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    text::excerpt(&name.unwrap_or_default(), REQUESTER_MAX).to_string()
}

fn pointed(error: &FilterError, text: &str) -> anyhow::Error {
    anyhow!("filter: {error}\n{}", error.pointer(text))
}

/// The filter's programs as `-d` prints them; with -f no target is needed.
///
/// # Errors
/// As [`spec`].
pub(crate) fn dump(args: &CaptureArgs) -> anyhow::Result<String> {
    match &args.options.filter {
        Some(filter) if args.words.is_empty() => listing(filter),
        _ => listing(&filter_text(&args.options, target(args)?.1)?),
    }
}

/// The programs of a filter for both link types.
///
/// # Errors
/// The filter is not one.
pub(crate) fn listing(text: &str) -> anyhow::Result<String> {
    let programs = Programs::compile(text, compiler(Names::LookedUp))
        .map_err(|error| pointed(&error, text))?;
    let raw = programs.raw.map_or_else(
        || "none: such packets cannot match".to_owned(),
        |program| program.to_string(),
    );
    Ok(format!(
        "Ethernet, of interfaces:\n{}\nraw IP, of loopback and host services:\n{raw}",
        programs.ethernet
    ))
}

/// The target, and the words that are left for the filter.
fn target(args: &CaptureArgs) -> anyhow::Result<(Target, &[String])> {
    if let Some(name) = &args.interface {
        if name == "any" {
            bail!("there is no interface `any` here; cgroup:/ captures the node's own interfaces");
        }
        let target = Target::Interface(name.clone());
        target.validate()?;
        return Ok((target, &args.words));
    }
    let Some((first, words)) = args.words.split_first() else {
        bail!("no target; use -i IFACE, or a target like pid:4321, unit:NAME or cgroup:PATH");
    };
    Ok((first.parse()?, words))
}

fn snaplen(bytes: u64) -> Result<Snaplen, SpecError> {
    match u32::try_from(bytes) {
        // As tcpdump has it.
        Ok(0) => Ok(Snaplen::MAX),
        Ok(bytes) => bytes.try_into(),
        Err(_too_large) => Err(SpecError::Snaplen(bytes)),
    }
}

/// The least of each kind: whichever comes first ends the capture.
fn limits(count: Option<NonZeroU64>, conditions: &[Autostop]) -> Limits {
    let mut limits = Limits {
        packets: count,
        ..Limits::default()
    };
    for condition in conditions {
        match *condition {
            Autostop::Duration(duration) => least(&mut limits.duration, Some(duration)),
            Autostop::Packets(packets) => least(&mut limits.packets, Some(packets)),
            Autostop::FileBytes(bytes) => least(&mut limits.file_bytes, Some(bytes)),
        }
    }
    limits
}

fn least<T: Ord + Copy>(limit: &mut Option<T>, value: Option<T>) {
    *limit = [*limit, value].into_iter().flatten().min();
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, Command};

    fn try_spec(line: &str) -> anyhow::Result<SessionSpec> {
        let words = ["remora", "capture"]
            .into_iter()
            .chain(line.split_whitespace());
        match Args::try_parse_from(words).unwrap().command {
            Command::Capture(args) => spec(&args, "root"),
            other => panic!("{other:?}"),
        }
    }

    fn error(line: &str) -> String {
        try_spec(line).unwrap_err().to_string()
    }

    #[test]
    fn trailing_words_are_the_filter() {
        let spec = try_spec("cgroup:/remora/web -w f tcp port 80").unwrap();
        assert_eq!(spec.target, Target::CgroupPath("/remora/web".into()));
        assert_eq!(spec.filter.text(), "tcp port 80");
        assert_eq!(spec.destination, Destination::Stream);
    }

    #[test]
    fn with_an_interface_all_words_are_the_filter() {
        let spec = try_spec("-i eth0 udp port 53").unwrap();
        assert_eq!(spec.target, Target::Interface("eth0".into()));
        assert_eq!(spec.filter.text(), "udp port 53");
    }

    #[test]
    fn all_options_reach_the_spec() {
        let spec = try_spec(
            "unit:nginx.service -s 96 -c 9 -a packets:10 -a duration:10 -a duration:20 \
             -a filesize:4 -Q in --store --name 10.0.0.1=web --label case=42 --look-back 30s \
             --reason odd",
        )
        .unwrap();
        assert_eq!(spec.snaplen.get(), 96);
        assert_eq!(
            spec.limits,
            Limits {
                packets: NonZeroU64::new(9),
                file_bytes: NonZeroU64::new(4096),
                duration: Some(Duration::from_secs(10)),
            }
        );
        assert_eq!(spec.direction, Direction::Ingress);
        assert_eq!(spec.destination, Destination::Store);
        assert_eq!(spec.names[0].name, "web");
        assert_eq!(spec.labels["case"], "42");
        assert_eq!(spec.look_back, Duration::from_secs(30));
        assert_eq!(spec.trigger.source, "cli");
        assert_eq!(spec.trigger.requester, "root");
        assert_eq!(spec.trigger.reason, "odd");
    }

    #[test]
    fn snaplen_0_is_the_largest_as_in_tcpdump() {
        assert_eq!(try_spec("pid:1 -s 0").unwrap().snaplen, Snaplen::MAX);
    }

    #[test]
    fn a_bad_filter_is_pointed_at() {
        let error = error("pid:1 tcp prot 80");
        let lines: Vec<_> = error.lines().collect();
        assert!(
            lines[0].starts_with("filter: syntax error at `prot` (word 2)"),
            "{error}"
        );
        assert_eq!(lines[1..], ["tcp prot 80", "    ^^^^"]);
    }

    #[test]
    fn all_of_tcpdumps_language_is_taken() {
        let spec = try_spec("pid:1 tcp[tcpflags] & tcp-syn != 0 or not port 22").unwrap();
        assert_eq!(
            spec.filter.text(),
            "tcp[tcpflags] & tcp-syn != 0 or not port 22"
        );
        assert!(spec.filter.meaning().programs().is_some());
    }

    #[test]
    fn a_dump_has_the_programs_of_both_link_types() {
        let dumped = |line: &str| {
            let words = ["remora", "capture", "-d"]
                .into_iter()
                .chain(line.split_whitespace());
            match Args::try_parse_from(words).unwrap().command {
                Command::Capture(args) => dump(&args).unwrap(),
                other => panic!("{other:?}"),
            }
        };
        for line in ["-f ip", "pid:1 ip"] {
            assert_eq!(
                dumped(line),
                "Ethernet, of interfaces:\n\
                 (000) ldh      [12]\n\
                 (001) jeq      #0x800           jt 2\tjf 3\n\
                 (002) ret      #262144\n\
                 (003) ret      #0\n\
                 raw IP, of loopback and host services:\n\
                 (000) ldb      [0]\n\
                 (001) and      #0xf0\n\
                 (002) jeq      #0x40            jt 3\tjf 4\n\
                 (003) ret      #262144\n\
                 (004) ret      #0"
            );
        }
        assert!(dumped("-f vlan").ends_with("none: such packets cannot match"));
    }

    #[test]
    fn what_is_refused_says_what_to_do() {
        for (line, part) in [
            ("", "no target; use -i IFACE"),
            ("tcp port 80", "use cgroup:PATH"),
            ("-i any", "cgroup:/"),
            ("-i a/b", "is not an interface name"),
            ("pid:0", "is not a process id"),
            ("pid:1 -f tcp udp", "give it once"),
            ("pid:1 -s 4294967296", "use 1 to 262144"),
            ("pid:1 -a duration:0", "at most 7 days"),
            ("pid:1 --name 10.0.0.1=a_b/c", "is not a host name"),
        ] {
            let error = error(line);
            assert!(error.contains(part), "{line}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
