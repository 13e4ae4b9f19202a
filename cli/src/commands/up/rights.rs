//! Whether the agent will have the rights that it takes.

use std::fs;

use anyhow::bail;

/// CAP_NET_ADMIN and CAP_BPF of capabilities(7).
const NEEDED: u64 = 1 << 12 | 1 << 39;

/// # Errors
/// It will not; says what to do.
pub(super) fn check() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !suffice(&status) {
        bail!(
            "the agent needs root, or CAP_BPF and CAP_NET_ADMIN: run `sudo remora up`, or see \
             `remora-agent run --help` for its rights alone"
        );
    }
    Ok(())
}

/// Of /proc/PID/status: root's programs get what is in the bounding set, others' what is ambient.
fn suffice(status: &str) -> bool {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let is_root = field("Uid").and_then(|ids| ids.split_whitespace().nth(1)) == Some("0");
    let set = field(if is_root { "CapBnd" } else { "CapAmb" });
    let set = set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_some_and(|set| set & NEEDED == NEEDED)
}

#[cfg(test)]
mod tests {
    use super::suffice;

    #[test]
    fn root_needs_the_bounding_set_and_others_ambient_capabilities() {
        let status = |uid: u32, bounding: &str, ambient: &str| {
            format!(
                "Name:\tremora\nUid:\t7\t{uid}\t7\t7\nCapBnd:\t{bounding}\nCapAmb:\t{ambient}\n"
            )
        };
        let (all, needed, none) = ("000001ffffffffff", "0000008000001000", "0000000000000000");
        assert!(suffice(&status(0, all, none)));
        assert!(suffice(&status(0, needed, none)));
        assert!(!suffice(&status(0, "0000000000001000", all)));
        assert!(suffice(&status(1000, all, needed)));
        assert!(!suffice(&status(1000, all, "0000008000000000")));
        assert!(!suffice(""));
    }
}
