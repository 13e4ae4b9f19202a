//! Why a rule matches an alert or does not, for `remora rules test`.

use std::fmt;

use remora_capture::{
    alert::Alert,
    session::Snaplen,
    text::{escape, shown},
};

use crate::{Match, Mode, NoCapture, Plan, Rule, Rules, Wanted, decide::walk};

/// What becomes of an alert, rule by rule.
#[derive(Debug, PartialEq)]
pub struct Explanation<'r> {
    rules: Vec<(&'r Rule, Verdict<'r>)>,
    /// How many rules come after one that stopped.
    unread: usize,
}

#[derive(Debug, PartialEq)]
enum Verdict<'r> {
    /// Why it does not match.
    NoMatch(String),
    DryRun,
    Captures(Vec<(Plan<'r>, Result<Wanted, NoCapture>)>),
}

/// Goes through the rules as [`crate::decide()`] does, and says what each does.
#[must_use]
pub fn explain<'r>(rules: &'r Rules, alert: &Alert) -> Explanation<'r> {
    let verdicts: Vec<_> = walk(rules, alert)
        .map(|(rule, mismatch)| {
            let verdict = match (mismatch, rule.mode) {
                (Some(mismatch), _) => Verdict::NoMatch(rule.matches.why(mismatch, alert)),
                (None, Mode::DryRun) => Verdict::DryRun,
                (None, Mode::Live) => Verdict::Captures(
                    rule.plans()
                        .map(|plan| (plan, plan.capture(alert)))
                        .collect(),
                ),
            };
            (rule, verdict)
        })
        .collect();
    Explanation {
        unread: rules.len() - verdicts.len(),
        rules: verdicts,
    }
}

impl Explanation<'_> {
    /// The captures that the controller would ask the agent for.
    pub fn captures(&self) -> impl Iterator<Item = &Wanted> {
        self.rules
            .iter()
            .filter_map(|(_, verdict)| match verdict {
                Verdict::Captures(captures) => Some(captures),
                Verdict::NoMatch(_) | Verdict::DryRun => None,
            })
            .flatten()
            .filter_map(|(_, wanted)| wanted.as_ref().ok())
    }
}

/// Lines for a terminal; what others wrote is escaped.
impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rule, verdict) in &self.rules {
            write!(f, "rule `{}` ", shown(&rule.name))?;
            match verdict {
                Verdict::NoMatch(why) => writeln!(f, "does not match: {}", escape(why))?,
                Verdict::DryRun => writeln!(f, "matches; it is a dry run")?,
                Verdict::Captures(captures) => {
                    writeln!(f, "matches")?;
                    for (plan, wanted) in captures {
                        action(f, plan, wanted)?;
                    }
                }
            }
        }
        match self.unread {
            0 => Ok(()),
            1 => writeln!(f, "the rule after it is not looked at"),
            unread => writeln!(f, "the {unread} rules after it are not looked at"),
        }
    }
}

fn action(
    f: &mut fmt::Formatter<'_>,
    plan: &Plan<'_>,
    wanted: &Result<Wanted, NoCapture>,
) -> fmt::Result {
    let name = shown(&plan.action.name);
    let Wanted { spec, notes } = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return writeln!(f, "  `{name}` is refused: {}", escape(&error.to_string())),
    };
    writeln!(f, "  `{name}` captures")?;
    writeln!(f, "    target     {}", escape(&spec.target.to_string()))?;
    match spec.filter.text() {
        "" => writeln!(f, "    filter     none: all of its packets")?,
        text => writeln!(f, "    filter     {text}")?,
    }
    for note in notes {
        writeln!(f, "               {}", escape(note))?;
    }
    if let Some(duration) = spec.limits.duration {
        writeln!(f, "    duration   {duration:?}")?;
    }
    if !spec.look_back.is_zero() {
        writeln!(
            f,
            "    look-back  {:?} before the alert's time",
            spec.look_back
        )?;
    }
    if let Some(packets) = spec.limits.packets {
        writeln!(f, "    at most    {packets} packets")?;
    }
    if let Some(bytes) = spec.limits.file_bytes {
        writeln!(f, "    at most    {bytes} bytes of file")?;
    }
    if spec.snaplen != Snaplen::MAX {
        writeln!(f, "    snaplen    {}", spec.snaplen)?;
    }
    for (key, value) in &spec.labels {
        writeln!(f, "    label      {}={}", escape(key), escape(value))?;
    }
    Ok(())
}

/// The first part of a `match:` block that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    Rules,
    Tags,
    OutputFields,
    Priority,
    Source,
}

impl Match {
    fn why(&self, mismatch: Mismatch, alert: &Alert) -> String {
        match mismatch {
            Mismatch::Rules => {
                let known: Vec<_> = self.rules.iter().map(String::as_str).collect();
                let near = crate::document::nearest(&alert.rule, &known)
                    .map_or_else(String::new, |near| format!("; the nearest is `{near}`"));
                format!("its `rules` do not name `{}`{near}", shown(&alert.rule))
            }
            Mismatch::Tags => match alert.tags.join(", ") {
                tags if tags.is_empty() => "the alert has no tags".to_owned(),
                tags => format!(
                    "no item of its `tags` holds; the alert's are {}",
                    shown(&tags)
                ),
            },
            Mismatch::OutputFields => {
                let failed: Vec<_> = self
                    .output_fields
                    .iter()
                    .filter_map(|fields| fields.why_not(alert))
                    .collect();
                format!("of its `output_fields` {}", failed.join("; "))
            }
            Mismatch::Priority => {
                let wanted = self.priority.map(|p| p.to_string()).unwrap_or_default();
                match alert.priority {
                    Some(priority) => format!("priority {priority} is not {wanted}"),
                    None => format!("the alert has no priority, so none that is {wanted}"),
                }
            }
            Mismatch::Source => format!(
                "source `{}` is not `{}`",
                shown(&alert.source),
                shown(self.source.as_deref().unwrap_or_default())
            ),
        }
    }
}

impl Rules {
    /// Actions that wait for the cluster part, as `rule, action: what`.
    pub fn waiting_for_cluster(&self) -> impl Iterator<Item = String> {
        self.rules.iter().flat_map(|rule| {
            rule.actions.iter().filter_map(|action| {
                let what = action.capture.needs_cluster()?;
                Some(format!(
                    "rule `{}`, action `{}`: {what}",
                    shown(&rule.name),
                    shown(&action.name)
                ))
            })
        })
    }
}
