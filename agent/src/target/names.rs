//! What the name of a cgroup directory says about who made it.
//!
//! | maker | names |
//! |---|---|
//! | containerd, runc, Docker with cgroupfs | `<id>` |
//! | with systemd | `cri-containerd-<id>.scope`, `docker-<id>.scope`, `crio-<id>.scope`, `libpod-<id>.scope` |
//! | kubelet, a pod | `pod<uid>`, `kubepods-burstable-pod<uid with underscores>.slice` |
//! | Podman, a pod | `machine-libpod_pod_<id>.slice` |
//! | systemd | the unit's name, after `_` if the kernel could mistake it for a control file |
//!
//! Names are a workload's word where it may make cgroups of its own, so nobody may be told apart
//! by a name alone: [`nesting`] ranks what lies inside containers behind what does not.

/// Fewest hex digits of a container id: what `docker ps` shows.
const CONTAINER_ID_MIN: usize = 12;
/// Hex digits of a full container id.
const CONTAINER_ID_MAX: usize = 64;

/// The container id in a directory name; a monitor (`crio-conmon-<id>.scope`) is no container.
pub(super) fn container_id(name: &str) -> Option<&str> {
    if is_monitor(name) {
        return None;
    }
    if is_hex(name) && (CONTAINER_ID_MIN..=CONTAINER_ID_MAX).contains(&name.len()) {
        return Some(name);
    }
    // A pod's UID ends in `-` and 12 hex digits, too: without `.scope`, only a full id counts.
    let (body, shortest) = match name.strip_suffix(".scope") {
        Some(body) => (body, CONTAINER_ID_MIN),
        None => (name, CONTAINER_ID_MAX),
    };
    let (prefix, id) = body.rsplit_once('-')?;
    let fits = (shortest..=CONTAINER_ID_MAX).contains(&id.len());
    (!prefix.is_empty() && fits && is_hex(id)).then_some(id)
}

/// A process that watches over a container from outside of its namespaces.
pub(super) fn is_monitor(name: &str) -> bool {
    name.contains("conmon")
}

/// The directory holds a pod: its containers and its sandbox.
pub(super) fn is_pod(name: &str) -> bool {
    if let Some(uid) = name.strip_prefix("pod") {
        return is_uid(uid);
    }
    let slice = name.strip_suffix(".slice").unwrap_or(name);
    let kubernetes = slice
        .rsplit_once("-pod")
        .is_some_and(|(parent, uid)| parent.contains("kubepods") && is_uid(uid));
    let podman = slice
        .rsplit_once("libpod_pod_")
        .is_some_and(|(_, id)| id.len() == CONTAINER_ID_MAX && is_hex(id));
    kubernetes || podman
}

/// The directory is that of the systemd unit `unit`.
pub(super) fn is_unit(name: &str, unit: &str) -> bool {
    name == unit || name.strip_prefix('_') == Some(unit)
}

/// How many containers and user sessions the directory at `path` lies in, itself not counted.
pub(super) fn nesting(path: &str) -> usize {
    let parents = path.rsplit_once('/').map_or("", |(parents, _)| parents);
    parents
        .split('/')
        .filter(|name| container_id(name).is_some() || is_user_session(name))
        .count()
}

fn is_user_session(name: &str) -> bool {
    name.starts_with("user@") && name.ends_with(".service")
}

/// A Kubernetes UID: 36 characters, or 32 for a pod from a manifest file; systemd names have `_`
/// for `-`.
fn is_uid(text: &str) -> bool {
    (32..=36).contains(&text.len())
        && text
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-' | b'_'))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "6e858ea516b6826b46d8405beb4c9717649f578660b11d8cfa2b5206cf147dfe";

    #[test]
    fn every_runtime_s_directory_gives_its_container_id() {
        for name in [
            ID.to_owned(),
            format!("cri-containerd-{ID}.scope"),
            format!("docker-{ID}.scope"),
            format!("crio-{ID}.scope"),
            format!("libpod-{ID}.scope"),
            format!("libpod-payload-{ID}"),
        ] {
            assert_eq!(container_id(&name), Some(ID), "{name}");
        }
        assert_eq!(container_id("3f2a00000000"), Some("3f2a00000000"));
    }

    #[test]
    fn what_only_looks_like_a_container_gives_none() {
        for name in [
            "",
            "web",
            "3f2a0000000",
            "init.scope",
            "session-12.scope",
            "run-r6e858ea516b6826b46d8405beb4c9717.scope",
            "poda65ca62e-5639-44ba-b2a1-a3cf1580c82c",
            "kubepods-besteffort-poda65ca62e_5639_44ba_b2a1_a3cf1580c82c.slice",
            "-6e858ea516b6.scope",
        ] {
            assert_eq!(container_id(name), None, "{name}");
        }
        assert_eq!(container_id(&format!("crio-conmon-{ID}.scope")), None);
        assert_eq!(
            container_id(&format!("machine-libpod_pod_{ID}.slice")),
            None
        );
    }

    #[test]
    fn pods_of_both_cgroup_drivers_are_pods_and_their_parents_are_not() {
        for name in [
            "poda65ca62e-5639-44ba-b2a1-a3cf1580c82c",
            "pod0123456789abcdef0123456789abcdef",
            "kubepods-poda65ca62e_5639_44ba_b2a1_a3cf1580c82c.slice",
            "kubepods-besteffort-poda65ca62e_5639_44ba_b2a1_a3cf1580c82c.slice",
            "kubelet-kubepods-burstable-poda65ca62e_5639_44ba_b2a1_a3cf1580c82c.slice",
        ] {
            assert!(is_pod(name), "{name}");
        }
        assert!(is_pod(&format!("machine-libpod_pod_{ID}.slice")));
        for name in [
            "kubepods",
            "kubepods-besteffort.slice",
            "podman.service",
            "pod",
            ID,
        ] {
            assert!(!is_pod(name), "{name}");
        }
    }

    #[test]
    fn containers_and_user_sessions_nest() {
        assert_eq!(nesting("/system.slice/nginx.service"), 0);
        assert_eq!(nesting(&format!("/docker/{ID}")), 0);
        assert_eq!(
            nesting(&format!("/docker/{ID}/system.slice/nginx.service")),
            1
        );
        assert_eq!(
            nesting("/user.slice/user@1000.service/app.slice/nginx.service"),
            1
        );
    }

    proptest! {
        #[test]
        fn an_id_found_is_hex_and_the_name_s_own_part(name in ".{0,80}") {
            if let Some(id) = container_id(&name) {
                prop_assert!(id.len() >= CONTAINER_ID_MIN && id.len() <= CONTAINER_ID_MAX);
                prop_assert!(is_hex(id) && name.contains(id));
            }
            let _ = is_pod(&name);
        }

        #[test]
        fn a_scope_s_id_comes_back(prefix in "[a-z]{1,12}", id in "[0-9a-f]{12,64}") {
            let name = format!("{prefix}-{id}.scope");
            prop_assert_eq!(container_id(&name), Some(id.as_str()));
            prop_assert!(!is_pod(&name));
        }
    }
}
