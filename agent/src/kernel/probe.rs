//! What this kernel has of that which the programs use, tried one by one: a program that calls one
//! helper, a map of one type. The load of the real programs has the last word.

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};

use super::KernelError;

/// What of the agent needs a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Capturing at all.
    Capture,
    /// Packets from before the trigger.
    LookBack,
}

/// One feature of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    pub tier: Tier,
    pub name: &'static str,
    probe: Probe,
}

#[derive(Clone, Copy, Debug)]
enum Probe {
    Map(MapType),
    Helper(ProgramType, BpfHelper),
}

/// First Linux that has all of them.
pub const SINCE: &str = "5.17";

/// All that are asked for, the oldest of each tier first.
const FEATURES: [Feature; 8] = [
    Feature {
        tier: Tier::Capture,
        name: "tail calls",
        probe: Probe::Map(MapType::ProgramArray),
    },
    Feature {
        tier: Tier::Capture,
        name: "cgroup storage map",
        probe: Probe::Map(MapType::CgroupStorage),
    },
    Feature {
        tier: Tier::Capture,
        name: "bpf_sk_lookup_tcp in cgroup_skb",
        probe: Probe::Helper(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_sk_lookup_tcp),
    },
    Feature {
        tier: Tier::Capture,
        name: "bpf_sk_ancestor_cgroup_id in cgroup_skb",
        probe: Probe::Helper(
            ProgramType::CgroupSkb,
            BpfHelper::BPF_FUNC_sk_ancestor_cgroup_id,
        ),
    },
    Feature {
        tier: Tier::Capture,
        name: "ring buffer map",
        probe: Probe::Map(MapType::RingBuf),
    },
    Feature {
        tier: Tier::Capture,
        name: "bpf_loop",
        probe: Probe::Helper(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop),
    },
    Feature {
        tier: Tier::LookBack,
        name: "LRU hash map",
        probe: Probe::Map(MapType::LruHash),
    },
    Feature {
        tier: Tier::LookBack,
        name: "hash of maps",
        probe: Probe::Map(MapType::HashOfMaps),
    },
];

/// Asks the kernel for each feature. Needs CAP_BPF and CAP_NET_ADMIN.
///
/// # Errors
/// An entry's error: the kernel gives no answer to that one; mostly a right is missing.
pub fn features() -> Vec<(Feature, Result<bool, KernelError>)> {
    FEATURES
        .into_iter()
        .map(|feature| {
            let answer = match feature.probe {
                Probe::Map(map) => is_map_supported(map).map_err(|error| error.io_error),
                Probe::Helper(program, helper) => {
                    is_helper_supported(program, helper).map_err(std::io::Error::other)
                }
            };
            let answer =
                answer.map_err(|error| KernelError::Io("ask the kernel for a feature", error));
            (feature, answer)
        })
        .collect()
}
