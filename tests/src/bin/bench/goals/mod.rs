//! The goals of the data path, one module each.

pub(crate) mod crowd;
mod p1_bystander;
mod p2_capture;
mod p3_cpu;
mod p4_loss;
mod p5_time;
mod p6_memory;
mod p7_rings;
mod p7_scale;
mod p8_filters;
mod p9_writer;

use crate::{Bench, outcome::Outcome, table::Table};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum Goal {
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
    P8,
    P9,
}

/// What was measured for one.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) tables: Vec<Table>,
    /// Why it is not whole.
    pub(crate) problem: Option<String>,
}

impl Goal {
    pub(crate) const ALL: [Self; 9] = [
        Self::P1,
        Self::P2,
        Self::P3,
        Self::P4,
        Self::P5,
        Self::P6,
        Self::P7,
        Self::P8,
        Self::P9,
    ];

    /// What it is about.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::P1 => "P1: a bystander's packet",
            Self::P2 => "P2: a captured packet",
            Self::P3 => "P3: CPU of the capturer",
            Self::P4 => "P4: the highest rate without loss",
            Self::P5 => "P5: time",
            Self::P6 => "P6: memory",
            Self::P7 => "P7: many sessions, two CPUs",
            Self::P8 => "P8: filters",
            Self::P9 => "P9: the writer alone",
        }
    }

    /// How it is measured, for the document.
    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::P1 => p1_bystander::METHOD,
            Self::P2 => p2_capture::METHOD,
            Self::P3 => p3_cpu::METHOD,
            Self::P4 => p4_loss::METHOD,
            Self::P5 => p5_time::METHOD,
            Self::P6 => p6_memory::METHOD,
            Self::P7 => p7_scale::METHOD,
            Self::P8 => p8_filters::METHOD,
            Self::P9 => p9_writer::METHOD,
        }
    }

    /// Measures it. What fails is told in the part, and costs no other goal its figures.
    pub(crate) fn measure(self, bench: &Bench) -> Part {
        let measured = match self {
            Self::P1 => p1_bystander::measure(bench),
            Self::P2 => p2_capture::measure(bench),
            Self::P3 => p3_cpu::measure(bench),
            Self::P4 => p4_loss::measure(bench),
            Self::P5 => p5_time::measure(bench),
            Self::P6 => p6_memory::measure(bench),
            Self::P7 => p7_scale::measure(bench),
            Self::P8 => p8_filters::measure(bench),
            Self::P9 => p9_writer::measure(bench),
        };
        measured.unwrap_or_else(|error| Part {
            problem: Some(format!("could not be measured: {error:#}")),
            ..Part::default()
        })
    }
}
