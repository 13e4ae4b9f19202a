//! P8: what filters cost, those that take all and those that take nothing.

use anyhow::Result;

use super::Part;
use crate::{
    Bench, agents,
    agents::Agents,
    bed::{Load, PORT},
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    row::Run,
    subject::{AgentSetup, Capture, RING_MIB, Subject, Tier, filtered},
    twin,
};

pub(super) const METHOD: &str = "\
The same expression for the agent and for tcpdump, once so that it takes all packets of the captured path
(*hit*) and once so that it takes none (*miss*). What is timed is the tier that a session comes to: of an
expression that the agent makes machine code of, a run begins when `remora_filter_programs_loaded_total`
says that it is in; what stays with the interpreter or with typed terms is named so.
";

const LOAD: Load = Load::udp(64);
/// Nobody sends there.
const NO_PORT: u16 = 9001;

/// An expression by the port that it must have.
struct Expression {
    name: &'static str,
    of: fn(u16) -> String,
}

const EXPRESSIONS: [Expression; 5] = [
    Expression {
        name: "one port",
        of: |port| format!("udp port {port}"),
    },
    Expression {
        name: "host and port",
        of: |port| format!("udp and host 10.77.0.10 and dst port {port}"),
    },
    Expression {
        name: "network, range, not",
        of: |port| format!("ip net 10.77.0.0/24 and not icmp and udp portrange {port}-{port}"),
    },
    Expression {
        name: "ten ports",
        of: |port| {
            let ports: Vec<_> = (8001..8010).map(|p| format!("port {p}")).collect();
            format!("udp and ({} or port {port})", ports.join(" or "))
        },
    },
    Expression {
        name: "fifty endpoints",
        of: |port| {
            let ends: Vec<_> = (1..50)
                .map(|n| format!("(host 10.99.0.{n} and port {})", 8000 + n))
                .collect();
            format!("{} or (host 10.77.0.10 and port {port})", ends.join(" or "))
        },
    },
];

/// Does a packet match?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Hit,
    Miss,
}

impl Case {
    fn name(self, who: &str, expression: &Expression) -> String {
        let case = match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
        };
        format!("{who}, {}, {case}", expression.name)
    }

    fn text(self, expression: &Expression) -> String {
        (expression.of)(match self {
            Self::Hit => PORT,
            Self::Miss => NO_PORT,
        })
    }

    fn at_most(self) -> f64 {
        match self {
            Self::Hit => 0.4,
            Self::Miss => 0.3,
        }
    }

    fn subject(self, expression: &Expression, capture: Capture) -> Subject {
        let name = self.name("agent", expression);
        match self {
            Self::Hit => Subject::capturing(name, capture),
            Self::Miss => Subject::bystander(name, capture),
        }
    }

    fn peer(self, expression: &Expression) -> Subject {
        let name = self.name("tcpdump", expression);
        let peer = Peer::whole(Tool::Tcpdump, RING_MIB).filtered(&self.text(expression));
        match self {
            Self::Hit => Subject::peer(name, peer),
            Self::Miss => Subject::missing(name, peer),
        }
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let mut cases = Vec::new();
    for expression in &EXPRESSIONS {
        for case in [Case::Miss, Case::Hit] {
            let sessions = vec![filtered(&bench.bed, &case.text(expression))];
            cases.push((expression, case, sessions));
        }
    }
    // Which of them becomes machine code, so that each run waits for that, or for nothing.
    let mut agents = Agents::new(&bench.bed);
    let agent = agents.get(AgentSetup::default())?;
    let mut captures = Vec::new();
    for (.., sessions) in &cases {
        let mut capture = Capture {
            sessions: sessions.clone(),
            tier: Tier::MachineCode,
            ..Capture::default()
        };
        if !agents::reaches_tier(agent, &capture)? {
            capture.tier = Tier::Any;
        }
        captures.push(capture);
    }
    agents.end()?;

    let peers = cases
        .iter()
        .map(|(expression, case, _)| case.peer(expression));
    let ours = cases
        .iter()
        .zip(&captures)
        .map(|((expression, case, _), capture)| case.subject(expression, capture.clone()));
    let subjects: Vec<Subject> = peers.chain(ours).collect();
    let rows = twin::measure(bench, &[LOAD], &subjects)?;

    let mut part = Part {
        tables: rows.tables("Filters", &[LOAD]),
        ..Part::default()
    };
    for ((expression, case, _), capture) in cases.iter().zip(&captures) {
        let ours = rows.get(LOAD, &case.name("agent", expression))?;
        let tcpdump = rows.get(LOAD, &case.name("tcpdump", expression))?;
        let bound = Bound::RatioAtMost(case.at_most());
        part.outcomes.push(
            Outcome::new(
                format!("{}; {LOAD}", ours.subject),
                Unit::NsAdded,
                bound,
                ours.each(Run::ns_added),
            )
            .against("tcpdump", tcpdump.each(Run::ns_added))
            .control(rows.control(LOAD)?)
            .lost(ours.caught().map_or(0, |caught| caught.lost))
            .note(match capture.tier {
                Tier::MachineCode => "machine code",
                Tier::Any => "interpreter or typed terms",
            }),
        );
    }
    Ok(part)
}
