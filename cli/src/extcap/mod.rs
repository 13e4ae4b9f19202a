//! `remoradump`: Wireshark's external capture program.
//!
//! Wireshark asks for interfaces, link types and arguments, and prints of what it gets on standard
//! output. It then starts the program with `--capture`, which becomes the command line of `remora
//! capture` or `kubectl remora capture`. SIGTERM, or the end of the fifo's reader, ends the capture.
//!
//! A filter is checked by `--extcap-capture-filter` without `--capture`: what is on standard output is
//! the error, nothing is none. The exit code is 0 in both cases: Wireshark does not read what a program
//! that failed has printed.

mod args;
mod sentences;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tokio::net::unix::pipe;

pub(crate) use args::ExtcapArgs;
use sentences::Interface;

use crate::{commands::Outcome, spec, terminal};

/// Name that Wireshark knows the program by.
pub(crate) const NAME: &str = "remoradump";

/// What is to be done beside printing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing(Outcome),
    /// This command line, of the program that its first word names.
    Capture(Vec<OsString>),
}

/// Answers Wireshark.
///
/// # Errors
/// The interface is not one of ours, or the arguments are not what a capture takes.
pub(crate) fn run(args: &ExtcapArgs) -> anyhow::Result<Asked> {
    if args.install {
        return install();
    }
    if args.extcap_interfaces {
        return print(&sentences::interfaces(&interfaces()));
    }
    if args.version {
        return print(&format!("{NAME} {}\n", sentences::VERSION));
    }
    let interface = match &args.extcap_interface {
        Some(name) => Interface::named(name).with_context(|| {
            format!(
                "`{}` is not an interface of remoradump",
                name.escape_debug()
            )
        })?,
        None if args.extcap_version.is_some() => {
            return print(&format!("extcap {{version={}}}\n", sentences::VERSION));
        }
        None => bail!("--extcap-interface NAME is missing"),
    };
    if args.extcap_config {
        return print(&sentences::config(interface));
    }
    if args.extcap_dlts {
        return print(sentences::dlts());
    }
    match &args.extcap_capture_filter {
        _ if args.capture => Ok(Asked::Capture(command_line(args, interface)?)),
        Some(filter) => match spec::listing(filter) {
            Ok(_) => Ok(Asked::Nothing(Outcome::Done)),
            // One line: what Wireshark shows.
            Err(error) => print(&format!(
                "{}\n",
                error.to_string().lines().next().unwrap_or("refused")
            )),
        },
        None => bail!("nothing is asked; --help tells what can be"),
    }
}

/// Those of this build.
fn interfaces() -> Vec<Interface> {
    Interface::ALL
        .into_iter()
        .filter(|interface| cfg!(feature = "kubernetes") || *interface != Interface::Cluster)
        .collect()
}

fn print(text: &str) -> anyhow::Result<Asked> {
    terminal::print(text).context("standard output failed")?;
    Ok(Asked::Nothing(Outcome::Done))
}

/// The command line that captures.
///
/// # Errors
/// There is no target, or an argument is not for this interface.
fn command_line(args: &ExtcapArgs, interface: Interface) -> anyhow::Result<Vec<OsString>> {
    let target = args.target.as_deref().map(str::trim).unwrap_or_default();
    if target.is_empty() {
        bail!(
            "no target: set it in the interface's options (tshark: -o extcap.{}.target:…)",
            interface.name()
        );
    }
    let mut words: Vec<OsString> = match interface {
        Interface::Cluster => vec!["kubectl-remora".into(), "capture".into()],
        Interface::Node => vec!["remora".into(), "capture".into()],
    };
    let mut option = |name: &str, value: &str| {
        if !value.is_empty() {
            words.push(format!("--{name}={value}").into());
        }
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    option("filter", &text(&args.extcap_capture_filter));
    option("look-back", &text(&args.look_back));
    match interface {
        Interface::Cluster => {
            option("namespace", &text(&args.namespace));
            option("container", &text(&args.container));
            option("context", &text(&args.context));
        }
        Interface::Node => option("agent", &text(&args.agent)),
    }
    if let Some(bytes) = args.snaplen {
        option("snaplen", &bytes.to_string());
    }
    for (flag, is_set) in [
        ("--segment", args.segment),
        ("--fixed", args.fixed && interface == Interface::Cluster),
    ] {
        words.extend(is_set.then(|| flag.into()));
    }
    let mut path = |name: &str, path: &Path| {
        let mut word = OsString::from(format!("--{name}="));
        word.push(path);
        words.push(word);
    };
    if let (Interface::Cluster, Some(file)) = (interface, &args.kubeconfig)
        && !file.as_os_str().is_empty()
    {
        path("kubeconfig", file);
    }
    path("write", args.fifo.as_deref().context("--fifo is missing")?);
    match target.strip_prefix("-l") {
        Some(labels) if interface == Interface::Cluster => {
            words.push(format!("--selector={}", labels.trim()).into());
        }
        _ => words.extend(["--".into(), target.into()]),
    }
    Ok(words)
}

/// Opens and closes the fifo, so that who waits for packets sees the end: for a capture that failed
/// before it had any. To be called within a runtime.
pub(crate) fn release(fifo: Option<&Path>) {
    // One that nobody reads is refused rather than waited for.
    let _nobody_reads = fifo.map(|fifo| pipe::OpenOptions::new().open_sender(fifo));
}

impl ExtcapArgs {
    /// Where the packets go.
    pub(crate) fn fifo(&self) -> Option<&Path> {
        self.fifo.as_deref().filter(|_| self.capture)
    }
}

/// Links this program into Wireshark's personal folder.
fn install() -> anyhow::Result<Asked> {
    let folder =
        personal_folder().context("no home directory: link the program by hand (--help)")?;
    let program = std::env::current_exe().context("where this program is")?;
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let link = folder.join(NAME);
    match fs::read_link(&link) {
        Ok(there) if there == program => {}
        // Another version's link.
        Ok(_) => {
            fs::remove_file(&link).with_context(|| link.display().to_string())?;
            symlink(&program, &link)?;
        }
        Err(_no_link) => symlink(&program, &link)?,
    }
    terminal::note(&format!(
        "{} is {}; Wireshark shows its interfaces after the next start",
        link.display(),
        program.display()
    ));
    Ok(Asked::Nothing(Outcome::Done))
}

fn symlink(program: &Path, link: &Path) -> anyhow::Result<()> {
    std::os::unix::fs::symlink(program, link)
        .with_context(|| format!("{} cannot be made", link.display()))
}

/// Where Wireshark 4.0 looks; `tshark -G folders` tells where another does.
fn personal_folder() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::env::home_dir()?.join(".config")))?;
    Some(config.join("wireshark/extcap"))
}

#[cfg(test)]
mod tests;
