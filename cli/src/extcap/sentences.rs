//! What Wireshark is told: sentences of `{key=value}`, a line each (extcap(4)).

use std::fmt::Write as _;

/// Version of our side of the protocol's words, and of the program.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What can be captured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// Pods of a cluster.
    Cluster,
    /// This node, by its agent.
    Node,
}

impl Interface {
    pub(super) const ALL: [Self; 2] = [Self::Cluster, Self::Node];

    /// Letters only: it is a part of the names of Wireshark's preferences.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cluster => "remora",
            Self::Node => "remoranode",
        }
    }

    fn display(self) -> &'static str {
        match self {
            Self::Cluster => "Remora: pods of a Kubernetes cluster",
            Self::Node => "Remora: this node",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|interface| interface.name() == name)
    }
}

pub(super) fn interfaces(all: &[Interface]) -> String {
    let mut text = format!("extcap {{version={VERSION}}}\n");
    for interface in all {
        let _infallible = writeln!(
            text,
            "interface {{value={}}}{{display={}}}",
            interface.name(),
            interface.display()
        );
    }
    text
}

/// Every file of ours has Ethernet frames.
pub(super) fn dlts() -> &'static str {
    "dlt {number=1}{name=EN10MB}{display=Ethernet}\n"
}

/// An argument of an interface.
struct Arg {
    call: &'static str,
    display: &'static str,
    kind: &'static str,
    tooltip: &'static str,
    more: &'static str,
}

const CLUSTER: [Arg; 8] = [
    Arg {
        call: "--target",
        display: "Target",
        kind: "string",
        tooltip: "pod/NAME, deploy/NAME, sts/NAME, ds/NAME, job/NAME, svc/NAME, node/NAME or -l LABELS",
        more: "{required=true}{placeholder=pod/cart-7d9}{group=Target}",
    },
    Arg {
        call: "--namespace",
        display: "Namespace",
        kind: "string",
        tooltip: "Namespace of the target; if empty, that of the context",
        more: "{group=Target}",
    },
    Arg {
        call: "--container",
        display: "Container",
        kind: "string",
        tooltip: "One container of the pod; if empty, the whole pod",
        more: "{group=Target}",
    },
    Arg {
        call: "--fixed",
        display: "Only the pods that are there now",
        kind: "boolflag",
        tooltip: "Pods that come while the capture runs do not join it",
        more: "{group=Target}",
    },
    LOOK_BACK,
    SNAPLEN,
    Arg {
        call: "--context",
        display: "Context",
        kind: "string",
        tooltip: "Context of the kubeconfig; if empty, the current one",
        more: "{group=Cluster}",
    },
    Arg {
        call: "--kubeconfig",
        display: "Kubeconfig",
        kind: "fileselect",
        tooltip: "If empty, the files of KUBECONFIG or the one in .kube",
        more: "{mustexist=true}{group=Cluster}",
    },
];

const NODE: [Arg; 4] = [
    Arg {
        call: "--target",
        display: "Target",
        kind: "string",
        tooltip: "unit:NAME, container:ID, pod:NAMESPACE/NAME, cgroup:PATH, pid:N or interface:NAME",
        more: "{required=true}{placeholder=unit:nginx.service}{group=Target}",
    },
    LOOK_BACK,
    SNAPLEN,
    Arg {
        call: "--agent",
        display: "Agent",
        kind: "string",
        tooltip: "Where the agent listens, unix:PATH; if empty, where agents do",
        more: "{group=Node}",
    },
];

const LOOK_BACK: Arg = Arg {
    call: "--look-back",
    display: "Look back",
    kind: "string",
    tooltip: "Begin so long before now (30s, 2m); if empty, now",
    more: "{group=Packets}",
};

const SNAPLEN: Arg = Arg {
    call: "--snaplen",
    display: "Bytes of each packet",
    kind: "unsigned",
    tooltip: "0 is all of it",
    more: "{default=0}{range=0,262144}{group=Packets}",
};

const SEGMENT: Arg = Arg {
    call: "--segment",
    display: "Cut super-packets into segments",
    kind: "boolflag",
    tooltip: "Packets larger than the wire carries are written as the segments it would have carried",
    more: "{group=Packets}",
};

pub(super) fn config(interface: Interface) -> String {
    let args: &[Arg] = match interface {
        Interface::Cluster => &CLUSTER,
        Interface::Node => &NODE,
    };
    let mut text = String::new();
    for (number, arg) in args.iter().chain([&SEGMENT]).enumerate() {
        let Arg {
            call,
            display,
            kind,
            tooltip,
            more,
        } = arg;
        let _infallible = writeln!(
            text,
            "arg {{number={number}}}{{call={call}}}{{display={display}}}{{type={kind}}}\
             {{tooltip={tooltip}}}{more}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::extcap::ExtcapArgs;

    #[test]
    fn every_argument_that_is_offered_is_taken() {
        let command = ExtcapArgs::command();
        for interface in Interface::ALL {
            for line in config(interface).lines() {
                let call = line.split("{call=--").nth(1).unwrap();
                let (call, _) = call.split_once('}').unwrap();
                let arg = command
                    .get_arguments()
                    .find(|arg| arg.get_long() == Some(call))
                    .unwrap_or_else(|| panic!("--{call}"));
                let is_flag = line.contains("{type=boolflag}");
                assert_eq!(arg.get_action().takes_values(), !is_flag, "--{call}");
            }
        }
    }

    #[test]
    fn sentences_have_no_braces_within() {
        let all = Interface::ALL.map(config).concat() + &interfaces(&Interface::ALL) + dlts();
        for line in all.lines() {
            let (_, values) = line.split_once(' ').unwrap();
            let inner = values.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
            for value in inner.split("}{") {
                assert!(!value.contains(['{', '}']), "{line}");
                assert!(value.contains('='), "{line}");
            }
        }
    }

    #[test]
    fn numbers_are_dense_and_names_are_letters() {
        for interface in Interface::ALL {
            assert_eq!(Interface::named(interface.name()), Some(interface));
            assert!(interface.name().bytes().all(|b| b.is_ascii_lowercase()));
            for (number, line) in config(interface).lines().enumerate() {
                assert!(
                    line.starts_with(&format!("arg {{number={number}}}")),
                    "{line}"
                );
            }
        }
    }
}
