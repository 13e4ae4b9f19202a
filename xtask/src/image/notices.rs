//! The licences of the crates that are linked: their texts have to go along with the programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::crates::Crate;

/// How the names of files begin that a licence asks to pass on.
const NAMES: [&str; 5] = ["copying", "copyright", "licence", "license", "notice"];
/// No licence is longer.
const TEXT_MAX: u64 = 256 * 1024;

/// One text: the crates, then each licence's words once, with the crates that have it.
///
/// # Errors
/// A crate's directory cannot be read.
pub(super) fn of(crates: &[Crate]) -> anyhow::Result<Vec<u8>> {
    let mut text = "Remora's programs are linked with these crates:\n\n".to_owned();
    let mut by_words: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for linked in crates.iter().filter(|linked| !linked.ours) {
        let name = format!("{} {}", linked.name, linked.version);
        writeln!(text, "{name}: {}", linked.licence)?;
        for words in texts(&linked.directory)? {
            let of = by_words.entry(words).or_default();
            if of.last() != Some(&name) {
                of.push(name.clone());
            }
        }
    }
    // Sorted by crates rather than by words.
    let mut licences: Vec<(Vec<String>, String)> = by_words
        .into_iter()
        .map(|(words, of)| (of, words))
        .collect();
    licences.sort();
    for (of, words) in licences {
        write!(
            text,
            "\n{:=<78}\n{}\n{:-<78}\n{words}",
            "",
            of.join(", "),
            ""
        )?;
    }
    Ok(text.into_bytes())
}

/// The licences in a crate's directory, without blanks at the ends.
fn texts(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        let meta = entry.metadata()?;
        if meta.is_file()
            && meta.len() <= TEXT_MAX
            && NAMES.iter().any(|start| name.starts_with(start))
        {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let bytes = fs::read(path).with_context(|| path.display().to_string())?;
            let words = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
            Ok(format!("{}\n", words.trim()))
        })
        .collect()
}
