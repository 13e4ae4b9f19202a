//! Where kubelet puts a pod's cgroup.
//!
//! ```text
//! cgroupfs  ROOT/kubepods/pod<uid>                                      guaranteed
//!           ROOT/kubepods/{burstable,besteffort}/pod<uid>
//! systemd   ROOT/<p>kubepods.slice/<p>kubepods-pod<uid_>.slice           guaranteed
//!           ROOT/<p>kubepods.slice/<p>kubepods-{burstable,besteffort}.slice/
//!                <p>kubepods-{burstable,besteffort}-pod<uid_>.slice
//! ```
//! ROOT is the tree's root, or any cgroup (`--cgroup-root`; kind has `/kubelet` and
//! `/kubelet.slice`, and lies in its node's container); `<p>` names the slices around, as systemd
//! wants it. In systemd's names `_` stands for the uid's `-`.

/// Classes that have a directory of their own.
const CLASSES: [&str; 2] = ["besteffort", "burstable"];

/// The uid in the name of a pod's directory, as Kubernetes writes it.
pub(in crate::target) fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => {
            let (parent, uid) = slice.rsplit_once("-pod")?;
            parent.contains("kubepods").then_some(uid)?
        }
        None => name.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    is_uid(&uid).then_some(uid)
}

/// 36 characters with dashes, or 32 without: the hash of a manifest file.
pub(super) fn is_uid(text: &str) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    match text.len() {
        32 => text.as_bytes().iter().all(is_digit),
        36 => {
            let mut bytes = text.bytes().enumerate();
            let dashes = [8, 13, 18, 23];
            let fits = |(at, byte)| dashes.contains(&at) == (byte == b'-');
            bytes.all(fits) && text.bytes().all(|b| b == b'-' || is_digit(&b))
        }
        _ => false,
    }
}

/// The directory holds the pods of a node's kubelet.
pub(in crate::target) fn is_pods_root(name: &str) -> bool {
    name == "kubepods"
        || name
            .strip_suffix(".slice")
            .is_some_and(|slice| slice.ends_with("kubepods"))
}

/// Uids of the pods that a cgroup's path leads through, the outermost first.
pub(in crate::target) fn pods_on(path: &str) -> impl Iterator<Item = String> {
    path.split('/').filter_map(pod_uid)
}

/// Where the pod of that uid may be below the directory of the kubelet's pods.
pub(in crate::target) fn candidates(pods_root: &str, uid: &str) -> Vec<String> {
    let name = pods_root
        .rsplit_once('/')
        .map_or(pods_root, |(_, name)| name);
    match name.strip_suffix(".slice") {
        Some(slice) => {
            let uid = uid.replace('-', "_");
            let in_class = CLASSES.iter().map(|class| {
                format!("{pods_root}/{slice}-{class}.slice/{slice}-{class}-pod{uid}.slice")
            });
            let guaranteed = format!("{pods_root}/{slice}-pod{uid}.slice");
            in_class.chain([guaranteed]).collect()
        }
        None => {
            let in_class = CLASSES
                .iter()
                .map(|class| format!("{pods_root}/{class}/pod{uid}"));
            in_class.chain([format!("{pods_root}/pod{uid}")]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "a65ca62e-5639-44ba-b2a1-a3cf1580c82c";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn every_directory_of_a_pod_gives_its_uid_and_no_other_does() {
        for (name, uid) in [
            ("poda65ca62e-5639-44ba-b2a1-a3cf1580c82c", Some(UID)),
            (
                "kubepods-poda65ca62e_5639_44ba_b2a1_a3cf1580c82c.slice",
                Some(UID),
            ),
            (
                "kubelet-kubepods-burstable-poda65ca62e_5639_44ba_b2a1_a3cf1580c82c.slice",
                Some(UID),
            ),
            ("pod0123456789abcdef0123456789abcdef", Some(HASH)),
            (
                "kubepods-pod0123456789abcdef0123456789abcdef.slice",
                Some(HASH),
            ),
            ("poda65ca62e-5639-44ba-b2a1-a3cf1580c82", None),
            ("poda65ca62e--639-44ba-b2a1-a3cf1580c82c", None),
            ("other-poda65ca62e_5639_44ba_b2a1_a3cf1580c82c.slice", None),
            ("kubepods.slice", None),
            ("pod", None),
            ("podman", None),
        ] {
            assert_eq!(pod_uid(name).as_deref(), uid, "{name}");
        }
    }

    #[test]
    fn a_path_names_its_pods_from_the_outermost() {
        let inner = HASH;
        let path = format!("/kubepods/pod{UID}/0f/kubelet/kubepods/besteffort/pod{inner}/c");
        assert_eq!(pods_on(&path).collect::<Vec<_>>(), [UID, inner]);
        assert_eq!(pods_on("/system.slice/nginx.service").count(), 0);
    }

    #[test]
    fn roots_of_both_drivers_and_of_nested_kubelets_are_known() {
        for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
            assert!(is_pods_root(name), "{name}");
        }
        for name in ["kubepods-burstable.slice", "kubelet", "besteffort", ""] {
            assert!(!is_pods_root(name), "{name}");
        }
    }

    proptest! {
        /// What is looked for is found again in its name, whatever the driver and class.
        #[test]
        fn each_candidate_is_the_pod_s(
            root in "(/[a-z]{1,8}){0,3}",
            prefix in "([a-z]{1,6}-)?",
            systemd: bool,
            words in proptest::array::uniform4(any::<u32>()),
            is_static: bool,
        ) {
            let hex = words.map(|word| format!("{word:08x}")).concat();
            let uid = if is_static {
                hex
            } else {
                let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
                parts.join("-")
            };
            let pods = if systemd {
                format!("{root}/{prefix}kubepods.slice")
            } else {
                format!("{root}/kubepods")
            };
            let candidates = candidates(&pods, &uid);
            prop_assert_eq!(candidates.len(), 3);
            for path in candidates {
                let (parent, name) = path.rsplit_once('/').unwrap();
                prop_assert!(parent.starts_with(&pods));
                prop_assert_eq!(pod_uid(name), Some(uid.clone()));
            }
        }
    }
}
