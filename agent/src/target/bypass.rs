//! Packets that come into a pod past the node's end of its veth.
//!
//! A program of another's may hand them to the pod's end at once (`bpf_redirect_peer`, which Cilium's routing
//! uses): no hook of the node's end sees them. The kernel counts them as received by the pod's end alone; all
//! others it counts there as often as sent by the node's (drivers/net/veth.c, `veth_get_stats64`, v6.18). Kernels
//! before v6.7 that have not got its "veth: Use tstats per-CPU traffic counters" do not count them, and nothing
//! tells of them there.

use std::io;

use super::{
    links::Interface,
    procfs::{self, Traffic},
};

/// How many have come so into the network namespace whose interfaces are `inside`, by the veths that lead there.
/// 0 also where it cannot be told, for other interfaces of it receive packets, too. Reads a line for each
/// interface of the node.
pub(super) fn bypassed(inside: &[Traffic], veths: &[Interface]) -> io::Result<u64> {
    // After `inside`: what is on its way meanwhile is sent, and not yet received.
    Ok(difference(inside, veths, &procfs::own_interfaces()?))
}

fn difference(inside: &[Traffic], veths: &[Interface], node: &[Traffic]) -> u64 {
    let receive = inside.iter().filter(|interface| interface.received > 0);
    if receive.clone().count() > veths.len() {
        return 0;
    }
    let received: u64 = receive.map(|interface| interface.received).sum();
    let sent = veths.iter().map(|veth| {
        let end = node.iter().find(|interface| interface.name == veth.name);
        end.map(|end| end.sent)
    });
    let sent: Option<u64> = sent.sum();
    sent.map_or(0, |sent| received.saturating_sub(sent))
}

#[cfg(test)]
mod tests {
    use super::{super::links::InterfaceKind, *};

    fn traffic(name: &str, received: u64, sent: u64) -> Traffic {
        Traffic {
            name: name.to_owned(),
            received,
            sent,
        }
    }

    fn veth(name: &str) -> Interface {
        Interface {
            ifindex: 7,
            name: name.to_owned(),
            kind: InterfaceKind::Veth,
        }
    }

    #[test]
    fn what_the_pod_s_end_received_and_the_node_s_did_not_send_came_past_it() {
        let node = [traffic("veth1", 5, 100), traffic("veth2", 5, 7)];
        let inside = |received| [traffic("eth0", received, 5)];
        let one = [veth("veth1")];
        assert_eq!(difference(&inside(100), &one, &node), 0);
        assert_eq!(difference(&inside(90), &one, &node), 0, "on their way");
        assert_eq!(difference(&inside(130), &one, &node), 30);
        let two = [veth("veth1"), veth("veth2")];
        assert_eq!(difference(&inside(130), &two, &node), 23);
    }

    #[test]
    fn nothing_is_told_of_a_pod_with_interfaces_that_lead_elsewhere() {
        let node = [traffic("veth1", 5, 100)];
        let idle = [traffic("eth0", 130, 0), traffic("tunl0", 0, 0)];
        assert_eq!(difference(&idle, &[veth("veth1")], &node), 30);
        let busy = [traffic("eth0", 130, 0), traffic("net1", 1, 0)];
        assert_eq!(difference(&busy, &[veth("veth1")], &node), 0);
        assert_eq!(difference(&idle, &[veth("gone")], &node), 0);
    }
}
