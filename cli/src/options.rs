//! What a capture takes from every command line that starts one, and how its values are read.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroU64},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

/// `-Q`, in tcpdump's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionArg {
    /// Into the target.
    In,
    /// Out of the target.
    Out,
    #[default]
    Inout,
}

/// tcpdump's and dumpcap's flags, and ours.
#[derive(Debug, clap::Args)]
pub(crate) struct CaptureOptions {
    /// Only packets that match, in tcpdump's language.
    #[arg(short, long, value_name = "FILTER")]
    pub(crate) filter: Option<String>,
    /// Print the filter's programs as tcpdump -d does, for Ethernet and for raw IP, and end.
    #[arg(short, long)]
    pub(crate) dump: bool,
    /// Bytes kept of each packet: 1 to 262144, of which 0 or nothing means the last.
    #[arg(short, long, alias = "snapshot-length", value_name = "BYTES")]
    pub(crate) snaplen: Option<u64>,
    /// End at duration:SECONDS, packets:N or filesize:KIB, whichever comes first.
    #[arg(short, long, value_name = "CONDITION")]
    pub(crate) autostop: Vec<Autostop>,
    /// Begin another file before one gets larger: in millions of bytes, or in KiB, MiB or GiB with
    /// k, m or g after the number.
    #[arg(short = 'C', long, value_name = "SIZE", value_parser = rotate_size)]
    pub(crate) rotate_size: Option<NonZeroU64>,
    /// Begin another file every so many seconds. Names get a number and the time of their first
    /// packet: web.pcapng is web_000001_20261124112233.pcapng.
    #[arg(short = 'G', long, value_name = "SECONDS", value_parser = duration)]
    pub(crate) rotate_seconds: Option<Duration>,
    /// With -C: keep so many files, removing the oldest. With -G alone: end after so many.
    #[arg(short = 'W', long, value_name = "N")]
    pub(crate) files: Option<NonZeroU32>,
    /// Write packets that are larger than the wire carries (GSO) as the segments that it would have
    /// carried, with their lengths and checksums. A packet's segments have its one packet id.
    #[arg(long)]
    pub(crate) segment: bool,
    /// Have what was written on the disk after 250 ms or 4 MiB, so that it outlasts the machine.
    #[arg(long)]
    pub(crate) sync: bool,
    /// Write packets as they come. That is so in any case (a packet is in the file some 5 ms after it
    /// passed); taken for tcpdump's sake.
    #[arg(short = 'U', long)]
    pub(crate) packet_buffered: bool,
    /// Direction, as the target sees it.
    #[arg(short = 'Q', long, value_enum, default_value_t)]
    pub(crate) direction: DirectionArg,
    /// A name that the file shows for an address.
    #[arg(long, value_name = "ADDR=NAME")]
    pub(crate) name: Vec<Name>,
    /// A label of the capture.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Label>,
    /// Begin so long before now: 30s, 2m. The agent keeps the last packets of pods behind a veth,
    /// also of those that died in the last two minutes;
    /// `--count` counts from now on, `-a filesize:` gives half of the file to them at most.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) look_back: Option<Duration>,
    /// Why, for the capture's record.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// dumpcap's `-a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Autostop {
    Duration(Duration),
    Packets(NonZeroU64),
    /// In bytes; written in KiB.
    FileBytes(NonZeroU64),
}

impl FromStr for Autostop {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (what, value) = text.split_once(':').unwrap_or((text, ""));
        let number = || {
            value
                .parse()
                .with_context(|| format!("`{value}` is not a number over 0"))
        };
        Ok(match what {
            "duration" => Self::Duration(duration(value)?),
            "packets" => Self::Packets(number()?),
            "filesize" => {
                let bytes = number()?.checked_mul(NonZeroU64::new(1024).expect("not 0"));
                Self::FileBytes(bytes.context("more bytes than can be counted")?)
            }
            _ => bail!("use duration:SECONDS, packets:N or filesize:KIB"),
        })
    }
}

/// `--name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) address: IpAddr,
    pub(crate) name: String,
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (address, name) = text.split_once('=').context("use ADDR=NAME")?;
        let address = address
            .parse()
            .context("use ADDR=NAME with an IPv4 or IPv6 address")?;
        Ok(Self {
            address,
            name: name.to_owned(),
        })
    }
}

/// `--label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Label {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => bail!("use KEY=VALUE"),
        }
    }
}

/// tcpdump's `-C`: millions of bytes, or a number with k, m or g for powers of 1024.
fn rotate_size(text: &str) -> anyhow::Result<NonZeroU64> {
    let (number, unit) = match text.chars().last().map(|c| c.to_ascii_lowercase()) {
        Some('k') => (&text[..text.len() - 1], 1 << 10),
        Some('m') => (&text[..text.len() - 1], 1 << 20),
        Some('g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1_000_000),
    };
    let number: u64 = number
        .parse()
        .ok()
        .context("use millions of bytes, or a number with k, m or g")?;
    let bytes = number
        .checked_mul(unit)
        .context("more bytes than can be counted")?;
    NonZeroU64::new(bytes).context("a file of 0 bytes holds nothing")
}

/// Seconds (`10`, `0.5`), or a number with its unit (`500ms`, `2m`, `1h30m`).
pub(crate) fn duration(text: &str) -> anyhow::Result<Duration> {
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).context("not a length of time");
    }
    let duration: jiff::SignedDuration = text
        .parse()
        .ok()
        .context("use seconds, or a number with a unit like 30s or 2m")?;
    duration
        .try_into()
        .ok()
        .context("a length of time is not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_tcpdumps() {
        for (text, bytes) in [
            ("1", 1_000_000),
            ("8k", 8192),
            ("2M", 2 << 20),
            ("1g", 1 << 30),
        ] {
            assert_eq!(rotate_size(text).unwrap().get(), bytes, "{text}");
        }
    }

    #[test]
    fn lengths_of_time_have_units_or_are_seconds() {
        for (text, millis) in [
            ("10", 10_000),
            ("0.25", 250),
            ("500ms", 500),
            ("1m30s", 90_000),
        ] {
            assert_eq!(
                duration(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
    }
}
