//! Where the packets of a target passed that is gone.
//!
//! | what is left | whom its look-back is taken of |
//! |---|---|
//! | its cgroup, without processes | the resident that lived in that very cgroup |
//! | nothing | the resident that had its name, and left last |
//!
//! A resident that is not gone counts, too: a container may have ended while its pod goes on.

use std::time::Instant;

use remora_capture::session::{LookBackMode, Target};

use super::{
    cgroup::Monitors,
    error::{ResolveError, shown},
    links::Interface,
    residents::Found,
    resolve::{Located, Resolver},
    session::{link_end, view},
};
use crate::session::{InterfacePlace, LeftTap, Place};

impl Resolver {
    /// Where the packets of `target` passed, if it is gone or has no process any more and a look
    /// remembers it.
    ///
    /// # Errors
    /// [`ResolveError::Unsupported`] if they passed together with those of others.
    pub fn departed(&self, target: &Target) -> Result<Option<Place>, ResolveError> {
        let found = match self.locate(target) {
            Ok(Located::Cgroup { cgroup, .. }) => {
                let members = cgroup.members(Monitors::Skipped);
                if !members.pids.is_empty() || members.hidden > 0 {
                    return Ok(None);
                }
                // The name may have come again: only the same cgroup is meant.
                self.residents.find(&Target::CgroupId(cgroup.id))
            }
            Ok(Located::Whole(_)) => return Ok(None),
            Err(ResolveError::NotFound { .. }) => match target {
                Target::Pod(pod) => self.residents_of_pod(pod)?,
                _ => self.residents.find(target),
            },
            Err(error) => return Err(error),
        };
        past(target, found)
    }
}

fn past(target: &Target, found: Vec<Found>) -> Result<Option<Place>, ResolveError> {
    let Some(Found { resident, cgroup }) = found.first().cloned() else {
        return Ok(None);
    };
    if let Some(cgroup) = &cgroup
        && !resident.is_alone(cgroup)
    {
        return Err(ResolveError::unsupported(
            format!(
                "{target} is gone, and others were behind {}, too",
                shown(&resident.interface.name)
            ),
            "name its pod by one of its containers (container:ID), or the interface \
             (interface:NAME)",
        ));
    }
    // A pod may have several veths.
    let same = |other: &&Found| {
        other.cgroup == cgroup
            && other.resident.netns == resident.netns
            && other.resident.left.is_none() == resident.left.is_none()
    };
    let all: Vec<&Found> = match &cgroup {
        Some(_) => found.iter().filter(same).collect(),
        None => found.iter().take(1).collect(),
    };
    let left = all.iter().map(|found| LeftTap {
        id: found.resident.tap,
        interface: interface(&found.resident.interface, target),
    });
    let names: Vec<_> = all
        .iter()
        .map(|found| shown(&found.resident.interface.name))
        .collect();
    let whose = match &cgroup {
        Some(cgroup) => format!("cgroup {} (id {})", shown(&cgroup.path), cgroup.id),
        None => format!("what was behind {}", names.join(", ")),
    };
    let when = match &resident.left {
        Some(left) => format!("gone {:.1} s ago", since(*left)),
        None => "without processes".to_owned(),
    };
    let more = found.len() - all.len();
    let mut notes = vec![format!(
        "the target is gone: here is what look-back kept of it{}, and nothing that comes",
        if is_part(target) {
            ", all of its pod's network"
        } else {
            ""
        }
    )];
    if let Some(cgroup) = &cgroup
        && all.iter().any(|found| found.resident.had_visitors(cgroup))
    {
        notes.push(
            "others were seen behind its interface for a moment; packets may be of theirs"
                .to_owned(),
        );
    }
    if more > 0 {
        notes.push(format!("{more} others of that name are not here"));
    }
    Ok(Some(Place {
        cgroup: None,
        interfaces: Vec::new(),
        left: left.collect(),
        description: format!("{whose} behind {}, {when}", names.join(", ")),
        notes,
        level: LookBackMode::default(),
        pod: None,
    }))
}

/// It means one of those that share the pod's network.
fn is_part(target: &Target) -> bool {
    match target {
        Target::Container(_) | Target::Pid(_) => true,
        Target::Pod(pod) => pod.container.is_some(),
        _ => false,
    }
}

fn since(then: Instant) -> f64 {
    Instant::now().saturating_duration_since(then).as_secs_f64()
}

fn interface(interface: &Interface, target: &Target) -> InterfacePlace {
    InterfacePlace {
        ifindex: interface.ifindex,
        name: interface.name.clone(),
        end: link_end(interface.kind),
        view: view(target),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::residents::{
            Resident,
            tests::{resident, seat},
        },
        *,
    };

    fn found(residents: &[Resident], path: &str) -> Vec<Found> {
        let cgroup = |resident: &Resident| {
            let named = resident.cgroups.iter().find(|named| named.path == path);
            named.cloned()
        };
        residents
            .iter()
            .map(|resident| Found {
                resident: resident.clone(),
                cgroup: cgroup(resident),
            })
            .collect()
    }

    #[test]
    fn a_cgroup_that_held_several_pods_is_the_past_of_none() {
        let target = Target::CgroupPath("/node".to_owned());
        // Alone in the first one's network, but the second one's is not the first one's.
        let two = [resident(1, "web", 10), resident(2, "api", 20)];
        let place = past(&target, found(&two, "/node")).unwrap().unwrap();
        assert_eq!(place.left.len(), 1);
        assert!(place.is_past() && place.notes[1].contains("1 others"));
    }

    #[test]
    fn both_veths_of_a_pod_are_taken() {
        let (first, mut second) = (resident(1, "web", 10), resident(2, "web", 10));
        second.netns = first.netns;
        let target = Target::CgroupPath("/node/web".to_owned());
        let place = past(&target, found(&[first, second], "/node/web"));
        assert_eq!(place.unwrap().unwrap().left.len(), 2);
    }

    #[test]
    fn one_container_of_a_pod_is_refused_as_a_cgroup() {
        let mut pod = resident(1, "web", 10);
        pod.seats.push(seat(10));
        let path = pod.cgroups[0].path.clone();
        let target = Target::CgroupPath(path.clone());
        let refused = past(&target, found(&[pod], &path)).unwrap_err();
        assert!(matches!(refused, ResolveError::Unsupported { .. }));
    }
}
