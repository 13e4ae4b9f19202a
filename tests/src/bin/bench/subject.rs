//! What can be on the captured path.

use remora_proto::v1;
use remora_tests::agent;

use crate::{bed::Bed, peer::Peer};

/// The agent's ring, and its peers' buffers, MiB.
pub(crate) const RING_MIB: u32 = 16;
/// Headers.
pub(crate) const SNAPLEN: u32 = 96;
/// Nothing of the generator's, which sends UDP.
pub(crate) const NO_MATCH: &str = "tcp and host 10.77.0.1";

/// Something on the captured path, with the name of its row.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) on_path: OnPath,
    pub(crate) takes: Takes,
}

/// Which of the path's packets it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    All,
}

#[derive(Clone, Debug)]
pub(crate) enum OnPath {
    Nothing,
    /// A TCX program that passes every packet on and does nothing else, both ways.
    EmptyTcx,
    Agent(Capture),
    Peer(Peer),
}

/// An agent and its sessions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capture {
    pub(crate) agent: AgentSetup,
    pub(crate) sessions: Vec<v1::CaptureSpec>,
    pub(crate) tier: Tier,
}

/// When a filter's tier is high enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tier {
    #[default]
    Any,
    /// The agent says that it loaded machine code.
    MachineCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AgentSetup {
    pub(crate) recording: Recording,
    pub(crate) ring_mib: u32,
}

impl Default for AgentSetup {
    fn default() -> Self {
        Self {
            recording: Recording::default(),
            ring_mib: RING_MIB,
        }
    }
}

/// The agent's look-back rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Recording {
    /// As the agent has it by itself: the first 16 KiB of each flow.
    #[default]
    Default,
    /// All of each flow.
    WholeFlows,
    Off,
}

impl Recording {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "recording",
            Self::WholeFlows => "recording whole flows",
            Self::Off => "not recording",
        }
    }

    /// The agent's command line for it.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::WholeFlows => &["--flow-cutoff", "0"],
            Self::Off => &["--look-back-memory", "0"],
        }
    }
}

impl AgentSetup {
    pub(crate) fn recording(recording: Recording) -> Self {
        Self {
            recording,
            ..Self::default()
        }
    }
}

impl Subject {
    pub(crate) const CONTROL: &str = "control";
    pub(crate) const EMPTY_TCX: &str = "empty TCX program";

    pub(crate) fn control() -> Self {
        Self {
            name: Self::CONTROL.into(),
            on_path: OnPath::Nothing,
            takes: Takes::Nothing,
        }
    }

    pub(crate) fn empty_tcx() -> Self {
        Self {
            name: Self::EMPTY_TCX.into(),
            on_path: OnPath::EmptyTcx,
            takes: Takes::Nothing,
        }
    }

    /// An agent whose sessions take nothing of the captured path.
    pub(crate) fn bystander(name: String, capture: Capture) -> Self {
        Self {
            name,
            on_path: OnPath::Agent(capture),
            takes: Takes::Nothing,
        }
    }

    /// An agent whose sessions take all of it.
    pub(crate) fn capturing(name: String, capture: Capture) -> Self {
        Self {
            takes: Takes::All,
            ..Self::bystander(name, capture)
        }
    }

    /// A peer whose filter takes nothing.
    pub(crate) fn missing(name: String, peer: Peer) -> Self {
        Self {
            name,
            on_path: OnPath::Peer(peer),
            takes: Takes::Nothing,
        }
    }

    /// A peer that takes all.
    pub(crate) fn peer(name: String, peer: Peer) -> Self {
        Self {
            takes: Takes::All,
            ..Self::missing(name, peer)
        }
    }
}

/// All of the captured interface.
pub(crate) fn whole(bed: &Bed) -> v1::CaptureSpec {
    agent::spec(v1::target::Target::Interface(bed.interface().into()))
}

/// All of it, cut to the headers.
pub(crate) fn headers(bed: &Bed) -> v1::CaptureSpec {
    v1::CaptureSpec {
        snaplen: SNAPLEN,
        ..whole(bed)
    }
}

/// What a filter takes of it.
pub(crate) fn filtered(bed: &Bed, filter: &str) -> v1::CaptureSpec {
    v1::CaptureSpec {
        filter: filter.into(),
        ..whole(bed)
    }
}
