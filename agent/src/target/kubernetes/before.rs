//! The strictest privacy level, kept for the next agent: it may start while the API server is away, and would
//! know of no namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use remora_capture::session::LookBackMode;

use crate::target::pods::{level, word};

/// Name of the file in the data directory. It holds a word of the label.
const NAME: &str = "privacy-level";
/// Bytes of it that are read.
const WORD_MAX: usize = 16;

/// The file.
#[derive(Debug)]
pub struct Before(PathBuf);

impl Before {
    #[must_use]
    pub fn at(data_dir: &Path) -> Self {
        Self(data_dir.join(NAME))
    }

    /// What the agent before this one knew; `None` if there was none. What cannot be read is the strictest.
    #[must_use]
    pub fn read(&self) -> Option<LookBackMode> {
        match fs::read_to_string(&self.0) {
            Ok(text) if text.len() <= WORD_MAX => Some(level(Some(text.trim_end()))),
            Ok(_) => Some(LookBackMode::Off),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, file = %self.0.display(), "failed to read the privacy level");
                Some(LookBackMode::Off)
            }
        }
    }

    /// Keeps it, if it is another one.
    pub fn write(&self, level: LookBackMode) {
        if self.read() == Some(level) {
            return;
        }
        let aside = self.0.with_extension("new");
        let text = format!("{}\n", word(level));
        let written = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &self.0));
        if let Err(error) = written {
            tracing::warn!(%error, file = %self.0.display(), "failed to keep the privacy level");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_and_what_is_damaged_protects() {
        let directory = tempfile::tempdir().unwrap();
        let before = Before::at(directory.path());
        assert_eq!(before.read(), None);
        for mode in [
            LookBackMode::Payload,
            LookBackMode::Headers,
            LookBackMode::Off,
        ] {
            before.write(mode);
            assert_eq!(before.read(), Some(mode));
        }
        for damaged in ["", "pay", "payloadpayloadpayloadpayload"] {
            fs::write(directory.path().join(NAME), damaged).unwrap();
            assert_eq!(before.read(), Some(LookBackMode::Off), "{damaged}");
        }
    }
}
