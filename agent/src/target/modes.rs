//! How much look-back keeps of whom: the agent's settings, by the paths of cgroups.
//!
//! A veth comes before anybody is known behind it, and who sets a network up is there before its
//! pod. So the strictest mode of all holds until somebody has stayed behind it for a while, and
//! afterwards the strictest of all that were seen there.

use std::str::FromStr;

use remora_capture::session::{LookBackMode, NoMode};

/// Whose cgroup, or one around it, is at a path that fits the pattern (`*`: any characters) has this
/// mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeRule {
    pattern: String,
    mode: LookBackMode,
}

/// A text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRule {
    #[error("write PATTERN=MODE, like '/kubepods/*=headers'")]
    Form,
    #[error(transparent)]
    Mode(#[from] NoMode),
}

impl FromStr for ModeRule {
    type Err = NoRule;

    fn from_str(text: &str) -> Result<Self, NoRule> {
        match text.rsplit_once('=') {
            Some((pattern, mode)) if !pattern.is_empty() => Ok(Self {
                pattern: pattern.to_owned(),
                mode: mode.parse()?,
            }),
            _ => Err(NoRule::Form),
        }
    }
}

/// The node's modes.
#[derive(Clone, Debug, Default)]
pub struct Modes {
    default: LookBackMode,
    rules: Vec<ModeRule>,
}

impl Modes {
    /// The first rule that fits counts.
    #[must_use]
    pub fn new(default: LookBackMode, rules: Vec<ModeRule>) -> Self {
        Self { default, rules }
    }

    /// Of whom nothing is known.
    #[must_use]
    pub fn unknown(&self) -> LookBackMode {
        let modes = self.rules.iter().map(|rule| rule.mode);
        modes.fold(self.default, Ord::max)
    }

    /// All have the same.
    #[must_use]
    pub fn is_uniform(&self) -> bool {
        self.rules.iter().all(|rule| rule.mode == self.default)
    }

    /// Of those in these cgroups together.
    #[must_use]
    pub fn of(&self, paths: &[String]) -> LookBackMode {
        let modes = paths.iter().map(|path| {
            let rule = self.rules.iter().find(|rule| rule.fits(path));
            rule.map_or(self.default, |rule| rule.mode)
        });
        modes.max().unwrap_or_else(|| self.unknown())
    }
}

impl ModeRule {
    fn fits(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| at);
        let mut around = ends.skip(1).chain([path.len()]);
        around.any(|end| matches(&self.pattern, path.get(..end).unwrap_or(path)))
    }
}

/// In time linear in the text for each `*`: only the last one is ever tried again.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn modes(default: LookBackMode, rules: &[&str]) -> Modes {
        let rules = rules.iter().map(|rule| rule.parse().unwrap());
        Modes::new(default, rules.collect())
    }

    fn of(modes: &Modes, paths: &[&str]) -> LookBackMode {
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        modes.of(&paths)
    }

    #[test]
    fn a_rule_is_for_a_cgroup_and_all_in_it_and_the_first_counts() {
        let modes = modes(
            LookBackMode::Payload,
            &["/kube/a=payload", "/kube/*=headers", "*.secret=off"],
        );
        for (path, mode) in [
            ("/kube/a", LookBackMode::Payload),
            ("/kube/a/container", LookBackMode::Payload),
            ("/kube/ab", LookBackMode::Headers),
            ("/kube/b/c", LookBackMode::Headers),
            ("/kube", LookBackMode::Payload),
            ("/system/x.secret/y", LookBackMode::Off),
            ("/system/x.secrets", LookBackMode::Payload),
        ] {
            assert_eq!(of(&modes, &[path]), mode, "{path}");
        }
    }

    #[test]
    fn of_several_and_of_the_unknown_the_strictest_counts() {
        let modes = modes(LookBackMode::Payload, &["/a=headers", "/b=off"]);
        assert_eq!(of(&modes, &["/a", "/c"]), LookBackMode::Headers);
        assert_eq!(of(&modes, &["/c", "/b", "/a"]), LookBackMode::Off);
        assert_eq!(modes.unknown(), LookBackMode::Off);
        assert_eq!(of(&modes, &[]), LookBackMode::Off);
        assert!(!modes.is_uniform());
        assert!(Modes::new(LookBackMode::Headers, Vec::new()).is_uniform());
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for (text, error) in [
            ("", NoRule::Form),
            ("=off", NoRule::Form),
            ("/a", NoRule::Form),
            ("/a=whole", NoRule::Mode(NoMode)),
        ] {
            assert_eq!(text.parse::<ModeRule>(), Err(error), "{text}");
        }
        let with_equals: ModeRule = "/a=b*=off".parse().unwrap();
        assert_eq!(with_equals.pattern, "/a=b*");
    }

    proptest! {
        #[test]
        fn a_pattern_fits_as_its_regular_expression_says(
            pattern in "[ab*]{0,8}", text in "[ab]{0,10}",
        ) {
            /// By trying everything.
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), _) => {
                        slow(rest, text) || text.split_first().is_some_and(|(_, t)| slow(pattern, t))
                    }
                    (Some((p, ps)), Some((t, ts))) => p == t && slow(ps, ts),
                    _ => false,
                }
            }
            prop_assert_eq!(matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
