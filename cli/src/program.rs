//! One binary, three names: which of them it was called by.

use std::{ffi::OsString, path::Path};

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `remora`: a client of one agent.
    Remora,
    /// `kubectl remora`, or `remora --controller …`: a client of a cluster's controllers.
    Kubectl,
    /// `remoradump`: Wireshark's external capture program.
    Extcap,
}

/// kubectl's name for the program that completes the plug-in's words.
const COMPLETER: &str = "kubectl_complete-remora";

impl Program {
    /// By the command line, which is made into what its grammar takes.
    pub(crate) fn called(words: &mut Vec<OsString>) -> Self {
        let name = words.first().map(Path::new).and_then(Path::file_stem);
        match name.and_then(|name| name.to_str()) {
            // kubectl finds plug-ins by underscores for dashes, too.
            Some("kubectl-remora" | "kubectl_remora") => Self::Kubectl,
            Some(COMPLETER) => {
                words.insert(1, "__complete".into());
                // An option among what is typed is none of ours.
                words.insert(2, "--".into());
                Self::Kubectl
            }
            Some(crate::extcap::NAME) => Self::Extcap,
            _ if names_controller(words) => Self::Kubectl,
            _ => Self::Remora,
        }
    }
}

/// `--controller` is among the options.
fn names_controller(words: &[OsString]) -> bool {
    words
        .iter()
        .take_while(|word| *word != "--")
        .filter_map(|word| word.to_str())
        .any(|word| word == "--controller" || word.starts_with("--controller="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &str) -> (Program, String) {
        let mut words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let program = Program::called(&mut words);
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        (program, words.join(" "))
    }

    #[test]
    fn the_name_decides() {
        for (line, program) in [
            ("remora list", Program::Remora),
            ("/usr/bin/remora list", Program::Remora),
            ("anything list", Program::Remora),
            ("kubectl-remora list", Program::Kubectl),
            ("/home/u/.krew/bin/kubectl-remora list", Program::Kubectl),
            ("/x/extcap/remoradump --capture", Program::Extcap),
            ("remora --controller unix:/c.sock list", Program::Kubectl),
            ("remora list --controller=unix:/c.sock", Program::Kubectl),
            ("remora capture pid:1 -- --controller", Program::Remora),
        ] {
            assert_eq!(called(line), (program, line.to_owned()), "{line}");
        }
    }

    #[test]
    fn what_kubectl_wants_completed_is_no_option_of_ours() {
        assert_eq!(
            called("/b/kubectl_complete-remora capture -n "),
            (
                Program::Kubectl,
                "/b/kubectl_complete-remora __complete -- capture -n ".to_owned()
            )
        );
    }
}
