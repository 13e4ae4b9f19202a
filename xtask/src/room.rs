//! Room on the disk: tests on a full one fail in ways that do not say so.

use std::path::Path;
use std::process::Command;

/// What everything built and all tests took of a fresh checkout's disk is 12 GiB.
const WANTED: u64 = 14 << 30;

/// For a person: what is free where `path` is, or will be, and whether that may be too little.
pub(crate) fn told(path: &Path) -> String {
    let there = path.ancestors().find(|path| path.exists());
    match there.and_then(free) {
        None => "room on the disk not known".to_owned(),
        Some(bytes) => format!("{:.1} GiB free", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Said at the start, where nothing is built yet.
pub(crate) fn warning(target: &Path) -> Option<String> {
    if target.join("release").exists() {
        return None;
    }
    let bytes = target
        .ancestors()
        .find(|path| path.exists())
        .and_then(free)?;
    (bytes < WANTED).then(|| {
        format!(
            "only {} of {:.0} GiB that a build and all tests take: tests may fail by a full disk",
            told(target),
            WANTED as f64 / f64::from(1 << 30)
        )
    })
}

/// As df has it.
fn free(path: &Path) -> Option<u64> {
    let output = Command::new("df")
        .args(["--block-size=1", "--output=avail"])
        .arg(path)
        .output()
        .ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(output: &str) -> Option<u64> {
    output.lines().nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_tells_the_room_in_its_second_line() {
        assert_eq!(parse("     Avail\n72840192000\n"), Some(72_840_192_000));
        assert_eq!(parse("df: no such file\n"), None);
    }

    #[test]
    fn there_is_room_somewhere_above_what_is_not_there_yet() {
        let text = told(&std::env::temp_dir().join("none/of/these"));
        assert!(text.ends_with("GiB free"), "{text}");
    }
}
