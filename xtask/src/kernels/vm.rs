//! A virtual machine that boots a kernel with an [image](super::image) and says what came of it.
//!
//! Emulated (TCG): no right and no hardware is needed; slow, but the verifier and the hooks are the
//! real ones. What its script prints in lines that begin with `@@` is for us:
//!
//! ```text
//! @@ up SECONDS     the kernel has booted
//! @@ tests NUMBER   the next test program runs so many tests by name; 0: all that it has
//! @@ failed PROGRAM a test program did not end well
//! @@ end            everything was run
//! ```

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::archive::Archive;
use crate::process::{find, line, output};

/// Older ones crash newer kernels at random (seen: 7.2 with Linux 6.12).
const QEMU_MAJOR: u32 = 10;
const QEMU_PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];
const QEMU_SUITE: &str = "bookworm-backports";
const MEMORY_MIB: &str = "2048";
/// A machine that is still running then hangs, in seconds.
const TIMEOUT_S: &str = "900";

/// QEMU, wherever it is.
#[derive(Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// Of an unpacked one.
    tree: Option<PathBuf>,
}

impl Qemu {
    /// The machine's own if it is new enough, else Debian's, unpacked.
    pub(crate) fn find(archive: &Archive) -> anyhow::Result<Self> {
        const PROGRAM: &str = "qemu-system-x86_64";
        if let Some(program) = find(PROGRAM)
            && version(&program).is_some_and(|major| major >= QEMU_MAJOR)
        {
            return Ok(Self {
                program,
                tree: None,
            });
        }
        let tree = archive.packages(&QEMU_PACKAGES, QEMU_SUITE)?;
        Ok(Self {
            program: tree.join("usr/bin").join(PROGRAM),
            tree: Some(tree),
        })
    }

    /// Boots a kernel and shows every line to `heard` until the machine is off.
    ///
    /// # Errors
    /// QEMU cannot be started, or the script did not come to its end.
    pub(crate) fn boot(
        &self,
        kernel: &Path,
        image: &Path,
        mut heard: impl FnMut(&str),
    ) -> anyhow::Result<()> {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=10", TIMEOUT_S])
            .arg(&self.program)
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", MEMORY_MIB, "-smp", "1", "-no-reboot", "-nodefaults"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(image)
            .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=3"]);
        if let Some(tree) = &self.tree {
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(tree.join(data));
            }
            command.env("LD_LIBRARY_PATH", library_path(tree));
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{}`", line(&command)))?;
        let mut ended = false;
        for said in BufReader::new(child.stdout.take().expect("piped")).split(b'\n') {
            let said = said?;
            let said = String::from_utf8_lossy(&said);
            let said = said.trim_end_matches('\r');
            ended |= said == "@@ end";
            heard(said);
        }
        let status = child.wait()?;
        ensure!(
            ended,
            "the machine went down or hung before its script's end ({status})"
        );
        Ok(())
    }
}

fn library_path(tree: &Path) -> OsString {
    let lib = tree.join("usr/lib/x86_64-linux-gnu");
    // Some packages still have their libraries in /lib.
    let mut path = lib.into_os_string();
    path.push(":");
    path.push(tree.join("lib/x86_64-linux-gnu"));
    path
}

fn version(program: &Path) -> Option<u32> {
    let text = output(Command::new(program).arg("--version")).ok()?;
    major(&text)
}

/// "QEMU emulator version 10.0.2 (Debian …)".
fn major(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("version ")?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_qemu_says_of_itself() {
        assert_eq!(
            major("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"),
            Some(10)
        );
        assert_eq!(major("QEMU"), None);
    }
}
