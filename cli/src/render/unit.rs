//! Numbers for people.

use std::time::Duration;

/// A length of time in the two units that matter, as kubectl shows an age: `95s`, `5m30s`, `3h10m`,
/// `12d`.
pub(crate) fn age(duration: Duration) -> String {
    let s = duration.as_secs();
    let (m, h, d) = (s / 60, s / 3600, s / 86400);
    match s {
        0..120 => format!("{s}s"),
        120..600 => match s % 60 {
            0 => format!("{m}m"),
            rest => format!("{m}m{rest}s"),
        },
        600..10_800 => format!("{m}m"),
        10_800..28_800 => match m % 60 {
            0 => format!("{h}h"),
            rest => format!("{h}h{rest}m"),
        },
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => match h % 24 {
            0 => format!("{d}d"),
            rest => format!("{d}d{rest}h"),
        },
        _ => format!("{d}d"),
    }
}

/// Bytes in the largest binary unit that leaves a whole number before the point.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut size = bytes as f64 / 1024.0;
    if size < 1.0 {
        return format!("{bytes} bytes");
    }
    for unit in &UNITS[..5] {
        if size < 1024.0 {
            return format!("{size:.1} {unit}");
        }
        size /= 1024.0;
    }
    format!("{size:.1} {}", UNITS[5])
}

/// `1 packet`, `2 packets`.
pub(crate) fn packets(count: u64) -> String {
    format!("{count} packet{}", if count == 1 { "" } else { "s" })
}
