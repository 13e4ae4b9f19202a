//! How much of its packets may be taken of a namespace's pods, by the namespace's label.
//!
//! | label `remora.dev/privacy` | look-back keeps, captures get |
//! |---|---|
//! | none at all, `payload` | whole packets |
//! | `headers` | each packet up to the end of its transport header |
//! | `none` | nothing; a capture is refused |
//! | anything else | as `none`: who wrote it meant to protect something |

use std::collections::BTreeMap;

use remora_capture::session::LookBackMode;

/// The label's key.
pub const PRIVACY_LABEL: &str = "remora.dev/privacy";
/// Namespaces that are remembered. Of those beyond nothing is known, so that the strictest holds.
pub(super) const NAMESPACES_MAX: usize = 32_768;

/// What is known of the cluster's namespaces. Pure.
#[derive(Debug, Default)]
pub struct Namespaces {
    known: BTreeMap<String, LookBackMode>,
    /// The list that is being read.
    listing: Option<BTreeMap<String, LookBackMode>>,
    listed: bool,
    /// What is taken for the strictest until all are listed.
    unlisted: LookBackMode,
}

/// What a label's value means.
#[must_use]
pub fn level(label: Option<&str>) -> LookBackMode {
    match label {
        None | Some("payload") => LookBackMode::Payload,
        Some("headers") => LookBackMode::Headers,
        Some(_) => LookBackMode::Off,
    }
}

/// A level in the label's words.
#[must_use]
pub fn word(level: LookBackMode) -> &'static str {
    match level {
        LookBackMode::Payload => "payload",
        LookBackMode::Headers => "headers",
        LookBackMode::Off => "none",
    }
}

impl Namespaces {
    /// `unlisted`: what is taken for the strictest level until all are listed, for one the strictest when an
    /// earlier agent ran here.
    #[must_use]
    pub fn new(unlisted: LookBackMode) -> Self {
        Self {
            unlisted,
            ..Self::default()
        }
    }

    pub fn begin_list(&mut self) {
        self.listing = Some(BTreeMap::new());
    }

    /// The list is whole.
    pub fn end_list(&mut self) {
        if let Some(listing) = self.listing.take() {
            self.known = listing;
            self.listed = true;
        }
    }

    /// A namespace is there, with this label or without.
    pub fn apply(&mut self, name: String, label: Option<&str>) {
        // While a list is read, what it says holds if it is stricter: the old word may be newer.
        let known = self.listing.as_mut().unwrap_or(&mut self.known);
        if known.len() < NAMESPACES_MAX || known.contains_key(&name) {
            known.insert(name, level(label));
        }
    }

    pub fn delete(&mut self, name: &str) {
        self.known.remove(name);
        if let Some(listing) = &mut self.listing {
            listing.remove(name);
        }
    }

    /// Of a namespace's pods; `None` as long as it is not known.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<LookBackMode> {
        let listing = self.listing.as_ref();
        let listed = listing.and_then(|listing| listing.get(name));
        self.known.get(name).max(listed).copied()
    }

    /// The strictest that a pod's level could turn out to be.
    #[must_use]
    pub fn strictest(&self) -> LookBackMode {
        let listing = self.listing.iter().flat_map(BTreeMap::values);
        let known = self.known.values().chain(listing).copied().max();
        let known = known.unwrap_or_default();
        if self.listed {
            known
        } else {
            known.max(self.unlisted)
        }
    }

    /// All are known.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_none_protects() {
        for (label, expected) in [
            (None, LookBackMode::Payload),
            (Some("payload"), LookBackMode::Payload),
            (Some("headers"), LookBackMode::Headers),
            (Some("none"), LookBackMode::Off),
            (Some("Headers"), LookBackMode::Off),
            (Some(""), LookBackMode::Off),
        ] {
            assert_eq!(level(label), expected, "{label:?}");
        }
        for mode in [
            LookBackMode::Payload,
            LookBackMode::Headers,
            LookBackMode::Off,
        ] {
            assert_eq!(level(Some(word(mode))), mode);
        }
    }

    #[test]
    fn what_is_not_known_is_the_strictest_that_could_hold() {
        let mut namespaces = Namespaces::new(LookBackMode::Off);
        assert_eq!(namespaces.strictest(), LookBackMode::Off);
        namespaces.begin_list();
        namespaces.apply("shop".to_owned(), None);
        assert_eq!(namespaces.of("shop"), Some(LookBackMode::Payload));
        assert_eq!(namespaces.of("bank"), None);
        assert_eq!(namespaces.strictest(), LookBackMode::Off);
        namespaces.end_list();
        assert_eq!(namespaces.strictest(), LookBackMode::Payload);
        namespaces.apply("bank".to_owned(), Some("headers"));
        assert_eq!(namespaces.strictest(), LookBackMode::Headers);
        namespaces.delete("bank");
        assert_eq!(namespaces.of("bank"), None);
        assert_eq!(namespaces.strictest(), LookBackMode::Payload);
    }

    #[test]
    fn what_an_earlier_agent_knew_counts_until_all_are_listed() {
        let mut namespaces = Namespaces::new(LookBackMode::Headers);
        assert_eq!(namespaces.strictest(), LookBackMode::Headers);
        namespaces.begin_list();
        namespaces.apply("bank".to_owned(), Some("none"));
        assert_eq!(namespaces.strictest(), LookBackMode::Off);
        namespaces.end_list();
        namespaces.apply("bank".to_owned(), None);
        assert_eq!(namespaces.strictest(), LookBackMode::Payload);
    }

    #[test]
    fn while_a_list_is_read_the_stricter_word_holds() {
        let mut namespaces = Namespaces::new(LookBackMode::Off);
        namespaces.begin_list();
        namespaces.apply("bank".to_owned(), Some("headers"));
        namespaces.apply("gone".to_owned(), None);
        namespaces.end_list();
        namespaces.begin_list();
        namespaces.apply("bank".to_owned(), None);
        assert_eq!(namespaces.of("bank"), Some(LookBackMode::Headers));
        namespaces.end_list();
        assert_eq!(namespaces.of("bank"), Some(LookBackMode::Payload));
        assert_eq!(namespaces.of("gone"), None);
    }
}
