//! How many captures alerts may begin in a time: on the node, of one namespace, by one rule.
//!
//! Each is a token bucket: `burst` at once, and as many again in each `period`, evenly. One is kept as
//! the moment at which it will be full (the generic cell rate algorithm, ITU-T I.371). Pure.

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

use remora_capture::text::shown;

/// Names that have buckets of their own; those that come when all are in use share one.
const BUCKETS_MAX: usize = 1024;
/// Longest period.
const PERIOD_MAX: Duration = Duration::from_secs(86_400);

/// `burst` captures at once, and so many again in each `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    burst: u32,
    period: Duration,
}

/// A text is not a rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("use a number of captures and seconds, like 24/60s, or off")]
pub struct RateError;

impl Rate {
    /// Between two captures when the burst is used up.
    fn interval_ns(self) -> u64 {
        self.period_ns() / u64::from(self.burst)
    }

    fn period_ns(self) -> u64 {
        u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}s", self.burst, self.period.as_secs())
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (burst, period) = text.split_once('/').ok_or(RateError)?;
        let seconds = period.strip_suffix('s').unwrap_or(period);
        let burst = burst.parse().map_err(|_no_number| RateError)?;
        let seconds = seconds.parse().map_err(|_no_number| RateError)?;
        let period = Duration::from_secs(seconds);
        if burst == 0 || period.is_zero() || period > PERIOD_MAX {
            return Err(RateError);
        }
        Ok(Self { burst, period })
    }
}

/// The rates of a node; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub node: Option<Rate>,
    pub namespace: Option<Rate>,
    pub rule: Option<Rate>,
}

/// What a rate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Node,
    Namespace,
    Rule,
}

/// A rate is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    pub of: Of,
    /// Of the namespace or rule.
    name: String,
    rate: Rate,
    /// Until there is room again.
    wait: Duration,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            of,
            name,
            rate: Rate { burst, period },
            wait,
        } = self;
        let (whose, flag) = match of {
            Of::Node => ("on this node".to_owned(), "--rate-node"),
            Of::Namespace => (
                format!("of namespace `{}`", shown(name)),
                "--rate-namespace",
            ),
            Of::Rule => (format!("by rule `{}`", shown(name)), "--rate-rule"),
        };
        let (period, wait) = (period.as_secs(), wait.as_secs_f64().ceil());
        write!(
            f,
            "alerts begin at most {burst} captures {whose} in {period} s; there is room again in \
             {wait} s, or raise the agent's {flag}"
        )
    }
}

/// When the bucket will be full, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_ns: u64,
}

impl Bucket {
    /// How long there is no room; zero: there is.
    fn wait_ns(self, rate: Rate, now_ns: u64) -> u64 {
        let filled = self.full_ns.max(now_ns).saturating_add(rate.interval_ns());
        filled
            .saturating_sub(now_ns)
            .saturating_sub(rate.period_ns())
    }

    fn take(&mut self, rate: Rate, now_ns: u64) {
        self.full_ns = self.full_ns.max(now_ns).saturating_add(rate.interval_ns());
    }
}

/// The buckets of a kind of name.
#[derive(Debug, Default)]
struct Named(HashMap<String, Bucket>);

impl Named {
    /// The name whose bucket serves for `name`.
    fn key<'a>(&mut self, name: &'a str, now_ns: u64) -> &'a str {
        if self.0.len() >= BUCKETS_MAX && !self.0.contains_key(name) {
            // A full one is as one that is not there.
            self.0.retain(|_, bucket| bucket.full_ns > now_ns);
        }
        if self.0.len() >= BUCKETS_MAX && !self.0.contains_key(name) {
            return "";
        }
        name
    }

    fn get(&mut self, name: &str, now_ns: u64) -> Bucket {
        let key = self.key(name, now_ns);
        self.0.get(key).copied().unwrap_or_default()
    }

    fn take(&mut self, name: &str, rate: Rate, now_ns: u64) {
        let key = self.key(name, now_ns).to_owned();
        self.0.entry(key).or_default().take(rate, now_ns);
    }
}

/// Who begins a capture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beginner<'a> {
    /// Empty: none, and no bucket.
    pub namespace: &'a str,
    /// Likewise.
    pub rule: &'a str,
}

/// The buckets of a node.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    rates: Rates,
    node: Bucket,
    namespaces: Named,
    rules: Named,
}

impl Buckets {
    #[must_use]
    pub(super) fn new(rates: Rates) -> Self {
        Self {
            rates,
            ..Self::default()
        }
    }

    /// Is there room for one more?
    ///
    /// # Errors
    /// [`Limited`]: the first rate that is used up.
    pub(super) fn check(&mut self, who: Beginner<'_>, now_ns: u64) -> Result<(), Limited> {
        let Beginner { namespace, rule } = who;
        let Rates {
            node,
            namespace: of_namespace,
            rule: of_rule,
        } = self.rates;
        for (of, rate, name) in [
            (Of::Node, node, "node"),
            (Of::Namespace, of_namespace, namespace),
            (Of::Rule, of_rule, rule),
        ] {
            let Some(rate) = rate.filter(|_| !name.is_empty()) else {
                continue;
            };
            let bucket = match of {
                Of::Node => self.node,
                Of::Namespace => self.namespaces.get(name, now_ns),
                Of::Rule => self.rules.get(name, now_ns),
            };
            let wait_ns = bucket.wait_ns(rate, now_ns);
            if wait_ns > 0 {
                return Err(Limited {
                    of,
                    name: name.to_owned(),
                    rate,
                    wait: Duration::from_nanos(wait_ns),
                });
            }
        }
        Ok(())
    }

    /// One more has begun.
    pub(super) fn take(&mut self, who: Beginner<'_>, now_ns: u64) {
        if let Some(rate) = self.rates.node {
            self.node.take(rate, now_ns);
        }
        if let Some(rate) = self.rates.namespace.filter(|_| !who.namespace.is_empty()) {
            self.namespaces.take(who.namespace, rate, now_ns);
        }
        if let Some(rate) = self.rates.rule.filter(|_| !who.rule.is_empty()) {
            self.rules.take(who.rule, rate, now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(text: &str) -> Option<Rate> {
        Some(text.parse().unwrap())
    }

    fn who<'a>(namespace: &'a str, rule: &'a str) -> Beginner<'a> {
        Beginner { namespace, rule }
    }

    #[test]
    fn a_rate_is_a_number_and_seconds() {
        for text in ["24/60s", "1/1s", "4294967295/86400s"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!("24/60".parse::<Rate>(), "24/60s".parse());
        for bad in [
            "",
            "24",
            "0/60s",
            "24/0s",
            "-1/2s",
            "24/60m",
            "1/86401s",
            "4294967296/1s",
        ] {
            assert_eq!(bad.parse::<Rate>(), Err(RateError), "{bad}");
        }
    }

    #[test]
    fn each_rate_holds_by_itself_and_says_whose_it_is() {
        let mut buckets = Buckets::new(Rates {
            node: rate("5/10s"),
            namespace: rate("3/10s"),
            rule: rate("2/10s"),
        });
        let mut begin = |namespace, rule| {
            let who = who(namespace, rule);
            buckets.check(who, SECOND).map_err(|limited| limited.of)?;
            buckets.take(who, SECOND);
            Ok(())
        };
        assert_eq!(begin("shop", "r1"), Ok(()));
        assert_eq!(begin("shop", "r1"), Ok(()));
        assert_eq!(begin("shop", "r1"), Err(Of::Rule));
        assert_eq!(begin("shop", "r2"), Ok(()));
        assert_eq!(begin("shop", "r2"), Err(Of::Namespace));
        assert_eq!(begin("", ""), Ok(()));
        assert_eq!(begin("", ""), Ok(()));
        assert_eq!(begin("", ""), Err(Of::Node));
        let limited = buckets.check(who("", ""), SECOND).unwrap_err();
        assert_eq!(limited.wait, Duration::from_secs(2));
        assert!(buckets.check(who("", ""), 3 * SECOND).is_ok());
    }

    #[test]
    fn names_without_end_share_one_bucket_and_take_bounded_memory() {
        let mut buckets = Buckets::new(Rates {
            rule: rate("1/10s"),
            ..Rates::default()
        });
        for n in 0..BUCKETS_MAX {
            let rule = n.to_string();
            buckets.check(who("", &rule), SECOND).unwrap();
            buckets.take(who("", &rule), SECOND);
        }
        buckets.check(who("", "one more"), SECOND).unwrap();
        buckets.take(who("", "one more"), SECOND);
        assert!(buckets.check(who("", "and another"), SECOND).is_err());
        assert!(buckets.rules.0.len() <= BUCKETS_MAX + 1);
        // When the others are full again, it has one of its own.
        buckets.check(who("", "and another"), 12 * SECOND).unwrap();
        assert!(buckets.rules.0.len() <= 1);
    }

    proptest! {
        /// In any window no more than the burst, and what was filled up meanwhile.
        #[test]
        fn no_window_holds_more_than_its_tokens(
            burst in 1u32..20, period in 1u64..30, gaps in prop::collection::vec(0u64..SECOND, 1..300),
        ) {
            let rate = Rate { burst, period: Duration::from_secs(period) };
            let mut buckets = Buckets::new(Rates { node: Some(rate), ..Rates::default() });
            let mut now_ns = SECOND;
            let mut begun = Vec::new();
            for gap in gaps {
                now_ns += gap;
                if buckets.check(who("", ""), now_ns).is_ok() {
                    buckets.take(who("", ""), now_ns);
                    begun.push(now_ns);
                }
            }
            for (at, from) in begun.iter().enumerate() {
                for (n, until) in begun[at..].iter().enumerate() {
                    let tokens = u64::from(burst) + (until - from) / rate.interval_ns() + 1;
                    prop_assert!((n as u64) < tokens, "{n} in {} ns", until - from);
                }
            }
        }
    }
}
