//! How much may be taken at a place, and whose it is.
//!
//! | place | level |
//! |---|---|
//! | a pod's cgroup, or one in it | its namespace's |
//! | a cgroup that holds pods | the strictest of the node's pods |
//! | the host end of a veth | the strictest of those behind it, once somebody has stayed |
//! | another interface, which all pods' packets may pass; of veths the [node's own](own) | the strictest of the node's pods |
//! | what was left of a pod | its namespace's |
//! | anything else | payload |
//!
//! What is not known is the strictest that it could turn out to be.

use remora_capture::session::{LookBackMode, PodIdentity};

use super::{
    names, own,
    pods::{identity, word},
    residents::Residents,
    resolve::Resolver,
};
use crate::session::{InterfacePlace, LinkEnd, Place, StartError, TapId};

impl Resolver {
    /// The place with its level and its pod.
    ///
    /// # Errors
    /// [`StartError::Private`]: nothing of it may be taken.
    pub(super) fn permitted(&self, mut place: Place) -> Result<Place, StartError> {
        place.pod = self.identity(&place);
        let known = self.privacy(&place);
        let level = known.unwrap_or_else(|| self.pods.strictest());
        let whose = match &place.pod {
            Some(pod) => format!("namespace `{}`", pod.namespace),
            None => "a namespace whose packets may be among these".to_owned(),
        };
        let what = match known {
            Some(level) => format!("{whose} has the privacy level `{}`", word(level)),
            None => format!(
                "it is not known yet which privacy level holds, and it may be `{}`",
                word(level)
            ),
        };
        match level {
            LookBackMode::Payload => {}
            LookBackMode::Headers => place.notes.push(format!(
                "{what}: packets are cut after their transport headers"
            )),
            LookBackMode::Off => {
                let next = match known {
                    Some(_) => "the label remora.dev/privacy of the namespace says so",
                    None => {
                        "try again when the agent has reached the API server; its log says why it has not"
                    }
                };
                return Err(StartError::Private(format!(
                    "{what}: nothing of it is captured; {next}"
                )));
            }
        }
        place.level = level;
        Ok(place)
    }

    /// `None` while it is not known.
    pub(super) fn privacy(&self, place: &Place) -> Option<LookBackMode> {
        if !self.pods.is_kubernetes() {
            return Some(LookBackMode::default());
        }
        if let Some(cgroup) = &place.cgroup {
            return self.pods.level_of(&cgroup.path);
        }
        if place.is_past() {
            let levels = place.left.iter().map(|left| self.level_behind(left.id));
            return strictest(levels);
        }
        let levels = place
            .interfaces
            .iter()
            .map(|interface| match interface.end {
                LinkEnd::VethHost => match self.residents.behind(interface.ifindex) {
                    Some(paths) => strictest(paths.iter().map(|path| self.pods.level_of(path))),
                    None if self.is_own_veth(interface) => self.pods.node_level(),
                    None => None,
                },
                LinkEnd::Loopback | LinkEnd::Other => self.pods.node_level(),
            });
        strictest(levels)
    }

    /// A pod's has no address in a network, and somebody behind it.
    fn is_own_veth(&self, interface: &InterfacePlace) -> bool {
        self.residents.has_nobody(interface.ifindex) && own::connects_the_node(&interface.name)
    }

    /// Of those that live, or lived, behind a tap.
    pub(super) fn level_behind(&self, tap: TapId) -> Option<LookBackMode> {
        let paths = self.residents.seats(tap)?;
        strictest(paths.iter().map(|path| self.pods.level_of(path)))
    }

    pub(super) fn identity(&self, place: &Place) -> Option<Box<PodIdentity>> {
        let path = match &place.cgroup {
            Some(cgroup) => cgroup.path.clone(),
            None => {
                let tap = place.left.first().map(|left| left.id);
                let seat = |residents: &Residents| match (tap, place.interfaces.as_slice()) {
                    (Some(tap), _) => residents.seat(tap),
                    (None, [only]) if only.end == LinkEnd::VethHost => {
                        residents.behind(only.ifindex)?.into_iter().next()
                    }
                    _ => None,
                };
                let seat = seat(&self.residents)?;
                // All of the pod is behind its veth, whichever of its containers was seen.
                return self
                    .pods
                    .of_path(&seat)
                    .map(|pod| Box::new(identity(&pod, None)));
            }
        };
        let pod = self.pods.of_path(&path)?;
        let name = path.rsplit_once('/').map_or("", |(_, name)| name);
        let container = names::container_id(name).and_then(|id| {
            let mut containers = pod.containers.iter();
            let container = containers.find(|container| container.id.as_deref() == Some(id))?;
            Some(container.name.as_str())
        });
        Some(Box::new(identity(&pod, container)))
    }
}

/// `None` if one is not known, or there is none at all.
fn strictest(levels: impl Iterator<Item = Option<LookBackMode>>) -> Option<LookBackMode> {
    levels.collect::<Option<Vec<_>>>()?.into_iter().max()
}
