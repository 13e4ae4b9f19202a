//! A goal and what was measured for it.

use serde_json::{Value, json};

use crate::figures::median;

/// The control's speed ratio of a machine that can be measured on.
const CONTROL: std::ops::RangeInclusive<f64> = 0.98..=1.02;

/// What a goal asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// Ours divided by the reference.
    RatioAtMost(f64),
    RatioAtLeast(f64),
    /// Ours less the reference.
    MoreByAtMost(f64),
    /// Ours alone.
    AtMost(f64),
    AtLeast(f64),
}

/// What figures are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds that something takes longer.
    NsAdded,
    /// Speed; of what it is compared with it is 1.
    Speed,
    CpuPerMillion,
    Milliseconds,
    Kpps,
    MiB,
    MiBPerSecond,
    Percent,
    /// A number of times.
    Times,
    Packets,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::NsAdded => format!("{value:+.0} ns"),
            Self::Speed => format!("{value:.3}"),
            Self::CpuPerMillion => format!("{value:.2} s/Mpkt"),
            Self::Milliseconds => format!("{value:.3} ms"),
            Self::Kpps => format!("{value:.0} kpps"),
            Self::MiB => format!("{value:.1} MiB"),
            Self::MiBPerSecond => format!("{value:.0} MiB/s"),
            Self::Percent => format!("{value:.2} %"),
            Self::Times => format!("{value:.2}"),
            Self::Packets => format!("{value:.0}"),
        }
    }
}

/// Figures with a name, one of each run.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
}

/// One row of the goals' table.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) bound: Bound,
    pub(crate) ours: Vec<f64>,
    pub(crate) reference: Option<Figures>,
    /// Speed ratio of the path without anything on it.
    pub(crate) control: Option<f64>,
    /// Packets that the goal does not allow to be lost, but were.
    pub(crate) lost: u64,
    pub(crate) note: String,
}

impl Outcome {
    pub(crate) fn new(what: impl Into<String>, unit: Unit, bound: Bound, ours: Vec<f64>) -> Self {
        Self {
            what: what.into(),
            unit,
            bound,
            ours,
            reference: None,
            control: None,
            lost: 0,
            note: String::new(),
        }
    }

    pub(crate) fn against(self, name: impl Into<String>, values: Vec<f64>) -> Self {
        let name = name.into();
        let reference = Some(Figures { name, values });
        Self { reference, ..self }
    }

    pub(crate) fn control(self, control: f64) -> Self {
        let control = Some(control);
        Self { control, ..self }
    }

    pub(crate) fn lost(self, lost: u64) -> Self {
        Self { lost, ..self }
    }

    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        let note = note.into();
        Self { note, ..self }
    }

    /// Ours divided by the reference, by their medians.
    fn ratio(&self) -> Option<f64> {
        let reference = self.reference.as_ref()?;
        Some(median(&self.ours) / median(&reference.values))
    }

    fn holds(&self, ours: f64, reference: Option<f64>) -> bool {
        // A comparison with what is not a number is false: not met.
        let than = reference.unwrap_or(f64::NAN);
        match self.bound {
            Bound::RatioAtMost(ratio) => ours <= ratio * than,
            Bound::RatioAtLeast(ratio) => ours >= ratio * than,
            Bound::MoreByAtMost(more) => ours <= than + more,
            Bound::AtMost(most) => ours <= most,
            Bound::AtLeast(least) => ours >= least,
        }
    }

    fn is_met(&self) -> bool {
        let reference = self.reference.as_ref().map(|r| median(&r.values));
        !self.control_is_off() && self.lost == 0 && self.holds(median(&self.ours), reference)
    }

    /// In how many of the runs it held, and of how many.
    fn runs_met(&self) -> (usize, usize) {
        let reference = |at: usize| Some(*self.reference.as_ref()?.values.get(at)?);
        let met = (0..).zip(&self.ours);
        let met = met.filter(|&(at, &ours)| self.holds(ours, reference(at)));
        (met.count(), self.ours.len())
    }

    fn control_is_off(&self) -> bool {
        self.control.is_some_and(|c| !CONTROL.contains(&c))
    }

    fn verdict(&self) -> String {
        if let Some(control) = self.control
            && self.control_is_off()
        {
            return format!("**does not hold**: control {control:.3}");
        }
        let (met, of) = self.runs_met();
        let mut text = if self.is_met() { "yes" } else { "**no**" }.to_owned();
        if of > 1 {
            text += &format!(" ({met}/{of})");
        }
        if self.lost > 0 {
            text += &format!(", {} lost", self.lost);
        }
        text
    }

    fn goal(&self) -> String {
        match self.bound {
            Bound::RatioAtMost(ratio) => format!("≤ {ratio} ×"),
            Bound::RatioAtLeast(ratio) => format!("≥ {ratio} ×"),
            Bound::MoreByAtMost(more) => format!("≤ {}", self.unit.show(more)),
            Bound::AtMost(most) => format!("≤ {}", self.unit.show(most)),
            Bound::AtLeast(least) => format!("≥ {}", self.unit.show(least)),
        }
    }

    /// Columns of [`Self::cells`].
    pub(crate) const COLUMNS: [&str; 7] = [
        "what",
        "goal",
        "ours",
        "reference",
        "ratio",
        "control",
        "met",
    ];

    pub(crate) fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let reference = self.reference.as_ref();
        let what = match self.note.as_str() {
            "" => self.what.clone(),
            note => format!("{} ({note})", self.what),
        };
        vec![
            what,
            self.goal(),
            self.unit.show(median(&self.ours)),
            or_dash(
                reference.map(|r| format!("{}: {}", r.name, self.unit.show(median(&r.values)))),
            ),
            or_dash(self.ratio().map(|ratio| format!("{ratio:.2}"))),
            or_dash(self.control.map(|control| format!("{control:.3}"))),
            self.verdict(),
        ]
    }

    pub(crate) fn json(&self) -> Value {
        let (met, of) = self.runs_met();
        json!({
            "what": self.what,
            "note": self.note,
            "unit": format!("{:?}", self.unit),
            "goal": format!("{:?}", self.bound),
            "ours": { "median": median(&self.ours), "runs": self.ours },
            "reference": self.reference.as_ref().map(|reference| json!({
                "name": reference.name,
                "median": median(&reference.values),
                "runs": reference.values,
            })),
            "ratio": self.ratio(),
            "control": self.control,
            "control_is_off": self.control_is_off(),
            "lost": self.lost,
            "met": self.is_met(),
            "runs_met": [met, of],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(bound: Bound) -> Outcome {
        Outcome::new("x", Unit::NsAdded, bound, vec![70.0, 80.0, 300.0])
            .against("tcpdump", vec![310.0, 320.0, 330.0])
    }

    #[test]
    fn a_goal_is_met_by_the_medians_and_the_runs_are_counted() {
        let met = outcome(Bound::RatioAtMost(0.25));
        assert_eq!((met.is_met(), met.runs_met()), (true, (2, 3)));
        assert_eq!(met.cells()[2..5], ["+80 ns", "tcpdump: +320 ns", "0.25"]);
        assert!(!outcome(Bound::RatioAtMost(0.24)).is_met());
        assert!(!outcome(Bound::RatioAtLeast(0.26)).is_met());
        assert!(outcome(Bound::MoreByAtMost(-240.0)).is_met());
        assert!(!outcome(Bound::AtMost(79.0)).is_met());
        assert!(outcome(Bound::AtLeast(80.0)).is_met());
    }

    #[test]
    fn what_was_lost_or_not_measured_meets_nothing() {
        assert!(!outcome(Bound::RatioAtMost(0.25)).lost(1).is_met());
        let without = Outcome::new("x", Unit::Times, Bound::RatioAtMost(9.0), vec![1.0]);
        assert!(!without.is_met());
        let empty = Outcome::new("x", Unit::Times, Bound::AtMost(9.0), vec![]);
        assert!(!empty.is_met());
    }

    #[test]
    fn with_a_control_that_is_off_nothing_holds() {
        let off = outcome(Bound::RatioAtMost(0.25)).control(0.95);
        assert!(!off.is_met());
        assert_eq!(off.verdict(), "**does not hold**: control 0.950");
        let near = outcome(Bound::RatioAtMost(0.25)).control(0.985);
        assert_eq!(near.verdict(), "yes (2/3)");
    }
}
