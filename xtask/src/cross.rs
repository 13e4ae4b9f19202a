//! The programs for 64-bit ARM: built and linked here, and tried in an emulator as far as that goes.
//!
//! The toolchain is that of the eBPF object, which has the sources of the standard library: no ready-made one of
//! another processor is needed. libpcap is taken from Debian's packages for ARM, unpacked and not installed.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::build::ebpf_for;
use crate::kernels::Archive;
use crate::process::{output, run, step};
use crate::setup::{self, BpfTools, Installing, Purpose};
use crate::workspace;

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// As Debian calls it.
const ARCHITECTURE: &str = "arm64";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
const ARCHIVER: &str = "aarch64-linux-gnu-ar";
const EMULATOR: &str = "qemu-aarch64";
/// Where Debian's cross compiler has the C library.
const C_LIBRARY: &str = "/usr/aarch64-linux-gnu";
const PROGRAMS: [&str; 3] = ["remora", "remora-agent", "remora-controller"];
/// libpcap, and what it is linked with in its turn.
const LIBRARIES: [&str; 13] = [
    "libpcap0.8",
    "libdbus-1-3",
    "libibverbs1",
    "libnl-3-200",
    "libnl-route-3-200",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libzstd1",
    "libgcc-s1",
];
/// That of the libraries, which cannot be asked here.
const PCAP_VERSION: &str = "1.10.3";

/// Builds the programs, and runs what needs no kernel of that processor.
///
/// # Errors
/// Something is missing, or a program cannot be built or does not do what it should.
pub(crate) fn cross(installing: Installing) -> anyhow::Result<()> {
    let tools = setup::setup(Purpose::Build, installing)?;
    setup::cross_packages(installing)?;
    let libraries = libraries()?;
    let target = workspace::target_dir().join("cross");
    // The same for every processor whose bytes are in this order.
    ebpf_for(&tools, &target)?;
    step(&format!("building for {TARGET}"), || {
        run(&mut build(&tools, &libraries, &target))
    })?;
    let programs = target.join(TARGET).join("debug");
    step("trying the programs in an emulator", || {
        try_out(&programs, &libraries)
    })
}

/// Where the shared libraries lie.
struct Libraries {
    /// libpcap, which the programs are linked with.
    pcap: PathBuf,
    /// All of them, as LD_LIBRARY_PATH has it.
    all: String,
}

fn libraries() -> anyhow::Result<Libraries> {
    let archive = Archive::foreign(ARCHITECTURE)?;
    let tree = archive.group("libpcap", &LIBRARIES)?;
    let [pcap, others] = ["usr/lib", "lib"].map(|lib| tree.join(lib).join("aarch64-linux-gnu"));
    // What a linker looks for, of the package with headers otherwise.
    let name = pcap.join("libpcap.so");
    if !name.exists() {
        symlink("libpcap.so.0.8", &name).with_context(|| name.display().to_string())?;
    }
    let all = format!("{}:{}", pcap.display(), others.display());
    Ok(Libraries { pcap, all })
}

fn build(tools: &BpfTools, libraries: &Libraries, target: &Path) -> Command {
    let mut cargo = tools.toolchain.cargo_command();
    cargo.current_dir(workspace::root());
    cargo.args(["build", "--bins", "-Z", "build-std=std,panic_unwind"]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(target);
    for package in ["remora-cli", "remora-agent", "remora-controller"] {
        cargo.args(["-p", package]);
    }
    // libpcap's own libraries are looked for when it is loaded.
    let flags = format!("-Clinker={COMPILER}\x1f-Clink-arg=-Wl,--allow-shlib-undefined");
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CC_aarch64_unknown_linux_gnu", COMPILER)
        .env("AR_aarch64_unknown_linux_gnu", ARCHIVER)
        .env("LIBPCAP_LIBDIR", &libraries.pcap)
        .env("LIBPCAP_VER", PCAP_VERSION);
    cargo
}

fn try_out(programs: &Path, libraries: &Libraries) -> anyhow::Result<()> {
    for name in PROGRAMS {
        let bytes = fs::read(programs.join(name)).with_context(|| name.to_owned())?;
        // ELF, 64 bits, little-endian; e_machine 183 is AArch64.
        let is_arm = bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&[183, 0]);
        ensure!(is_arm, "{name} is of another processor");
    }
    let emulated = |name: &str, words: &[&str]| {
        let mut command = Command::new(EMULATOR);
        command.args(["-L", C_LIBRARY, "-E"]);
        command.arg(format!("LD_LIBRARY_PATH={}", libraries.all));
        command.arg(programs.join(name)).args(words);
        command.current_dir(workspace::root());
        output(&mut command)
    };
    for name in PROGRAMS {
        let said = emulated(name, &["--version"])?;
        ensure!(said.starts_with(name), "{name} --version says {said}");
        say!("   {}", said.trim());
    }
    // Rules, templates and libpcap's compiler.
    let alert = env::temp_dir().join(format!("remora-cross-{}.json", std::process::id()));
    fs::write(&alert, ALERT)?;
    let path = alert.display().to_string();
    let decided = emulated(
        "remora",
        &["rules", "test", "deploy/rules/falco.yaml", "--alert", &path],
    );
    fs::remove_file(&alert)?;
    let decided = decided?;
    let filter = "filter     host 198.51.100.23 or port 53";
    ensure!(decided.contains(filter), "rules test says {decided}");
    say!("   remora rules test: {}", filter.trim());
    Ok(())
}

const ALERT: &str = r#"{"rule": "Outbound Connection to C2 Servers", "priority": "Critical", "output_fields": {
    "container.id": "ee97d9c4186f", "fd.name": "10.244.1.7:43812->198.51.100.23:4444", "fd.l4proto": "tcp"}}"#;
