//! Room on the disk: tests on a full one fail in ways that do not say so.

use std::path::Path;
use std::process::Command;

/// In bytes. What everything built and all tests took of an empty disk was 11 GiB, by df.
const WANTED: u64 = 14 << 30;

/// For a person: what is free where `path` is, or will be.
pub(crate) fn told(path: &Path) -> String {
    free(path).map_or("room on the disk not known".to_owned(), |bytes| {
        format!("{:.1} GiB free", gib(bytes))
    })
}

/// Said at the start, where nothing is built yet.
pub(crate) fn warning(target: &Path) -> Option<String> {
    let bytes = free(target).filter(|bytes| *bytes < WANTED)?;
    (!target.join("release").exists()).then(|| {
        format!(
            "only {:.1} GiB free of {:.0} that a build and all tests may take: tests may fail by a full disk",
            gib(bytes),
            gib(WANTED)
        )
    })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Bytes, as df has it.
fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|path| path.exists())?;
    let output = Command::new("df")
        .args(["--block-size=1", "--output=avail"])
        .arg(there)
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
