//! `remora audit`: whether a controller's audit log is as it was written.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use remora_capture::audit::{Head, Verifier};

use super::Outcome;
use crate::{args::AuditCommand, terminal};

/// Most older files that are looked for.
const FILES_MAX: u32 = 9999;

pub(super) fn run(command: &AuditCommand) -> anyhow::Result<Outcome> {
    let AuditCommand::Verify { file, head } = command;
    let found = verify(&files(file), head.as_ref())?;
    terminal::print(&found.text).context("standard output failed")?;
    Ok(found.outcome)
}

/// The log's files, the oldest first.
fn files(newest: &Path) -> Vec<PathBuf> {
    let older = |n: u32| {
        let mut name = newest.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let mut files: Vec<_> = (1..=FILES_MAX)
        .map(older)
        .take_while(|path| path.exists())
        .collect();
    files.reverse();
    files.push(newest.to_owned());
    files
}

struct Found {
    text: String,
    outcome: Outcome,
}

fn verify(files: &[PathBuf], head: Option<&Head>) -> anyhow::Result<Found> {
    let mut verifier = Verifier::default();
    let mut is_head_passed = head.is_some_and(|head| head.number == 0);
    for path in files {
        let cannot = || format!("{} cannot be read", path.display());
        let file = File::open(path).with_context(cannot)?;
        let followed = verifier
            .file_watched(BufReader::new(file), |passed| {
                is_head_passed |= head == Some(&passed);
            })
            .with_context(cannot)?;
        if let Err(broken) = followed {
            return Ok(Found {
                text: format!(
                    "BROKEN: {}: {broken}\nTHIS IS NOT WHAT WAS WRITTEN.\n",
                    path.display()
                ),
                outcome: Outcome::Faulty,
            });
        }
    }
    let (first, last) = (verifier.first(), verifier.head());
    let mut text = match (first, last) {
        (Some(first), Some(last)) => format!(
            "proved: entries {first} to {} follow from each other\nhead: {last}\n",
            last.number
        ),
        _ => "the log has no entries\n".to_owned(),
    };
    let mut outcome = Outcome::Done;
    if let Some(first) = first.filter(|first| *first > 1) {
        text.push_str(&format!(
            "NOT PROVED: entries 1 to {}: their files are gone (rotation)\n",
            first - 1
        ));
        outcome = Outcome::Partly;
    }
    match head {
        Some(head) if is_head_passed => {
            text.push_str(&format!(
                "proved: entry {} is the one of --head\n",
                head.number
            ));
        }
        Some(head) => {
            text.push_str(&format!(
                "BROKEN: the log has no entry that is {head}: it was cut off or written anew\n\
                 THIS IS NOT WHAT WAS WRITTEN.\n"
            ));
            outcome = Outcome::Faulty;
        }
        None => {
            text.push_str("NOT PROVED: that no later entry was cut off (give --head)\n");
            outcome = Outcome::Partly;
        }
    }
    Ok(Found { text, outcome })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use remora_capture::audit::{Decision, Entry};

    use super::*;

    fn log(path: &Path, head: Head, entries: u64) -> Head {
        let mut bytes = Vec::new();
        let mut head = head;
        for _ in 0..entries {
            let (line, next) = head.append(&Entry::new("start", Decision::Allowed, "jane"));
            bytes.extend(line);
            head = next;
        }
        fs::write(path, bytes).unwrap();
        head
    }

    #[test]
    fn a_whole_log_over_its_files_is_proved_with_its_head_and_partly_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let middle = log(&dir.path().join("audit.log.1"), Head::START, 3);
        let head = log(&path, middle, 2);
        let all = files(&path);
        assert_eq!(all.len(), 2);
        for (head, outcome) in [
            (Some(&head), Outcome::Done),
            (Some(&middle), Outcome::Done),
            (None, Outcome::Partly),
        ] {
            let found = verify(&all, head).unwrap();
            assert_eq!(found.outcome, outcome, "{}", found.text);
            assert!(found.text.contains("entries 1 to 5"), "{}", found.text);
        }
        fs::remove_file(&all[0]).unwrap();
        let found = verify(&files(&path), Some(&head)).unwrap();
        assert_eq!(found.outcome, Outcome::Partly, "{}", found.text);
        assert!(found.text.contains("entries 1 to 3"), "{}", found.text);
    }

    #[test]
    fn a_changed_last_entry_and_a_cut_end_are_found_by_the_head_and_all_else_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let head = log(&path, Head::START, 3);
        let whole = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = whole.split_inclusive('\n').collect();
        let changed_end = format!(
            "{}{}{}",
            lines[0],
            lines[1],
            lines[2].replace("jane", "joan")
        );
        let cut = lines[..2].concat();
        let changed_start = whole.replacen("jane", "joan", 1);
        for (text, without, with) in [
            (&whole, Outcome::Partly, Outcome::Done),
            (&changed_end, Outcome::Partly, Outcome::Faulty),
            (&cut, Outcome::Partly, Outcome::Faulty),
            (&changed_start, Outcome::Faulty, Outcome::Faulty),
            (
                &whole[..whole.len() - 1].to_owned(),
                Outcome::Faulty,
                Outcome::Faulty,
            ),
        ] {
            fs::write(&path, text).unwrap();
            for (head, expected) in [(None, without), (Some(&head), with)] {
                let found = verify(&files(&path), head).unwrap();
                assert_eq!(found.outcome, expected, "{}", found.text);
            }
        }
    }
}
