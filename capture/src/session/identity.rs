//! Which pod a capture is of, as it was known on the node: for the names in its files and for its account.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::NameHint;
use crate::text::one_line;

/// Containers of a pod that are told.
const CONTAINERS_MAX: usize = 64;
/// Labels of a pod that are told.
const LABELS_MAX: usize = 64;
/// Addresses of a pod that are told: two by default.
const ADDRESSES_MAX: usize = 8;
/// Longest text of it, in bytes: an image's name with its digest.
const TEXT_MAX: usize = 512;
/// Longest list of labels in an interface description, in bytes.
const LABEL_TEXT_MAX: usize = 1024;
/// Longest name in a Name Resolution Block, in bytes: Wireshark cuts there.
const NAME_MAX: usize = 63;

/// A pod, and the container of it that is captured. Bounded by [`PodIdentity::bounded`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The one that is captured; `None`: the whole pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Its processes are in the node's network.
    pub host_network: bool,
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub containers: Vec<ContainerIdentity>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerIdentity {
    pub name: String,
    /// "init", "sidecar" or "ephemeral"; empty for the others.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// As the runtime has it; empty if it was not made yet.
    pub id: String,
    pub image: String,
    /// With the image's digest.
    pub image_id: String,
    pub restarts: u32,
}

impl PodIdentity {
    /// No longer and with no more of each than files and accounts take; what comes from outside in
    /// one line without control characters.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let text = |text: &mut String| *text = one_line(text, TEXT_MAX);
        for field in [&mut self.namespace, &mut self.name, &mut self.uid] {
            text(field);
        }
        if let Some(container) = &mut self.container {
            text(container);
        }
        self.addresses.truncate(ADDRESSES_MAX);
        let labels = std::mem::take(&mut self.labels).into_iter();
        self.labels = labels
            .take(LABELS_MAX)
            .map(|(key, value)| (one_line(&key, TEXT_MAX), one_line(&value, TEXT_MAX)))
            .collect();
        self.containers.truncate(CONTAINERS_MAX);
        for container in &mut self.containers {
            let ContainerIdentity {
                name,
                kind,
                id,
                image,
                image_id,
                restarts: _,
            } = container;
            for field in [name, kind, id, image, image_id] {
                text(field);
            }
        }
        self
    }

    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// For an interface description: images, labels. Empty if none are known.
    #[must_use]
    pub fn description(&self) -> String {
        let captured = self.containers.iter().filter(|container| {
            let container_wanted = self.container.as_deref();
            container_wanted.is_none_or(|wanted| wanted == container.name)
        });
        let images: Vec<_> = captured
            .map(|container| format!("{}={}", container.name, container.image))
            .collect();
        let labels = self.labels.iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let parts = [("images", images), ("labels", labels)];
        let parts = parts.into_iter().filter(|(_, texts)| !texts.is_empty());
        let parts: Vec<_> = parts
            .map(|(what, texts)| one_line(&format!("{what} {}", texts.join(",")), LABEL_TEXT_MAX))
            .collect();
        parts.join("; ")
    }

    /// `pod.namespace` for each of its addresses, in what a Name Resolution Block may hold. A pod in the
    /// node's network has none of its own: its addresses are everybody's on the node.
    #[must_use]
    pub fn names(&self) -> Vec<NameHint> {
        if self.host_network {
            return Vec::new();
        }
        let name = host_name(&self.name, &self.namespace);
        let hints = self.addresses.iter().map(|&address| NameHint {
            address,
            name: name.clone(),
        });
        hints.filter(NameHint::is_usable).collect()
    }
}

/// Both at their full length if there is room, else the namespace is cut first: a pod's name is the longer
/// way to tell it.
fn host_name(pod: &str, namespace: &str) -> String {
    let clean = |text: &str| -> String {
        let bytes = text.bytes().map(|byte| byte.to_ascii_lowercase());
        bytes
            .map(|byte| match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => char::from(byte),
                _ => '-',
            })
            .collect()
    };
    let mut name = format!("{}.{}", clean(pod), clean(namespace));
    name.truncate(NAME_MAX);
    name.trim_end_matches(['.', '-']).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(namespace: &str, name: &str) -> PodIdentity {
        PodIdentity {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            ..PodIdentity::default()
        }
    }

    #[test]
    fn each_address_has_the_pod_s_name_unless_it_is_the_node_s() {
        let mut pod = pod("shop", "cart-7d9");
        let names = pod.names();
        assert_eq!(names.len(), 2);
        assert!(names.iter().all(|hint| hint.name == "cart-7d9.shop"));
        pod.host_network = true;
        assert_eq!(pod.names(), []);
    }

    #[test]
    fn a_description_has_images_and_labels_of_what_is_captured() {
        let container = |name: &str| ContainerIdentity {
            name: name.to_owned(),
            image: format!("example/{name}:1"),
            ..ContainerIdentity::default()
        };
        let mut pod = PodIdentity {
            containers: vec![container("web"), container("proxy")],
            labels: BTreeMap::from([("app".to_owned(), "cart".to_owned())]),
            ..pod("shop", "cart")
        };
        assert_eq!(
            pod.description(),
            "images web=example/web:1,proxy=example/proxy:1; labels app=cart"
        );
        pod.container = Some("proxy".to_owned());
        assert_eq!(
            pod.description(),
            "images proxy=example/proxy:1; labels app=cart"
        );
        assert_eq!(PodIdentity::default().description(), "");
    }

    proptest! {
        #[test]
        fn names_are_usable_whatever_the_pod_is_called(pod_name in ".{0,90}", namespace in ".{0,90}") {
            for hint in pod(&namespace, &pod_name).names() {
                prop_assert!(hint.is_usable(), "{hint:?}");
                prop_assert!(!hint.name.ends_with(['.', '-']));
            }
        }

        #[test]
        fn what_comes_from_outside_is_bounded_and_on_one_line(text in "\\PC{0,2000}", many in 0usize..200) {
            let container = ContainerIdentity { name: text.clone(), image: text.clone(), ..ContainerIdentity::default() };
            let pod = PodIdentity {
                labels: (0..many).map(|i| (format!("{i}{text}"), text.clone())).collect(),
                containers: vec![container; many],
                ..pod(&text, &text)
            }
            .bounded();
            prop_assert!(pod.labels.len() <= LABELS_MAX && pod.containers.len() <= CONTAINERS_MAX);
            prop_assert!(pod.name.len() <= TEXT_MAX && !pod.name.contains('\n'));
            prop_assert!(pod.description().len() <= 2 * LABEL_TEXT_MAX + 2);
        }
    }
}
