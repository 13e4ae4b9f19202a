//! The Go tool, and an environment in which it asks nobody but the module proxy.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::{find_all, output};

/// Where Go's own archive is unpacked to.
const USUAL: &str = "/usr/local/go/bin/go";
/// From this minor on Go fetches the newer Go that a module asks for, as a module.
const FETCHES_ITSELF: u32 = 21;

/// A Go, and where it keeps what it downloads and compiles.
#[derive(Debug)]
pub(crate) struct Go {
    program: PathBuf,
    proxy: String,
    caches: PathBuf,
}

impl Go {
    /// `REMORA_GO`, else the first on PATH, else the usual place.
    ///
    /// # Errors
    /// There is none, or it is too old.
    pub(crate) fn find(caches: &Path) -> Result<Self> {
        let program = env::var_os("REMORA_GO")
            .map(PathBuf::from)
            .or_else(|| find_all("go").into_iter().next())
            .or_else(|| Some(PathBuf::from(USUAL)).filter(|path| path.exists()))
            .context(
                "no Go: the cluster's programs and Talon's actionner are built by it. Install Go 1.26 (or any from 1.21 \
                 on, which fetches it), or set REMORA_GO to its `go`",
            )?;
        let asked = output(Command::new(&program).args(["env", "GOVERSION", "GOPROXY"]))?;
        let (version, proxies) = asked.trim_end().split_once('\n').unwrap_or_default();
        ensure!(
            minor(version).is_some_and(|minor| minor >= FETCHES_ITSELF),
            "{} is {version}, and 1.{FETCHES_ITSELF} is the oldest that will do: set REMORA_GO to \
             a newer one",
            program.display()
        );
        Ok(Self {
            proxy: without_direct(proxies),
            caches: caches.to_owned(),
            program,
        })
    }

    /// `go` in the module's folder.
    pub(crate) fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(folder)
            .env("GOPROXY", &self.proxy)
            .env("GOMODCACHE", self.caches.join("modules"))
            .env("GOCACHE", self.caches.join("compiled"))
            // Writable modules can be removed like other files.
            .env("GOFLAGS", "-mod=readonly -modcacherw -buildvcs=false")
            .env("GOWORK", "off")
            .env("CGO_ENABLED", "0");
        command
    }
}

/// "go1.26.8" is 26.
fn minor(version: &str) -> Option<u32> {
    let mut parts = version
        .strip_prefix("go1.")?
        .split(|c: char| !c.is_ascii_digit());
    parts.next()?.parse().ok()
}

/// The proxies without `direct`, which would ask the hosts that modules are named after.
fn without_direct(proxies: &str) -> String {
    let kept: Vec<&str> = proxies
        .split([',', '|'])
        .map(str::trim)
        .filter(|proxy| !["", "direct"].contains(proxy))
        .collect();
    if kept.is_empty() {
        return "off".to_owned();
    }
    kept.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_list_leads_to_the_hosts_of_modules() {
        assert_eq!(
            without_direct("https://p.example,direct"),
            "https://p.example"
        );
        assert_eq!(
            without_direct("https://a|https://b|direct"),
            "https://a,https://b"
        );
        assert_eq!(without_direct("direct"), "off");
        assert_eq!(without_direct("off"), "off");
    }

    #[test]
    fn a_version_is_read_by_its_minor() {
        assert_eq!(minor("go1.26.8"), Some(26));
        assert_eq!(minor("go1.27rc1"), Some(27));
        assert_eq!(minor("devel +abc"), None);
    }
}
