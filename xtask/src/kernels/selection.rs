//! Which tests are run on a kernel: what depends on its verifier and its hooks, and is quick enough
//! emulated.

/// A test program, and the tests that run of it; none: all.
pub(super) type Selected = (&'static str, &'static [&'static str]);

/// First kernel that has all that the agent cannot do without (`bpf_loop`).
const OLDEST: Version = (5, 17);
/// First kernel with TCX links, which can be pinned.
const WITH_TCX: Version = (6, 6);

type Version = (u64, u64);

const EVERYWHERE: [Selected; 7] = [
    ("kernel_hooks", &[]),
    (
        "privileges",
        &["it_captures_with_two_capabilities_and_no_way_to_more"],
    ),
    (
        "which_packets",
        &[
            "a_pods_capture_equals_tcpdumps_packet_for_packet",
            "a_pods_loopback_equals_tcpdumps_in_all_that_carries_data",
            "of_the_neighbour_pod_there_is_no_packet",
        ],
    ),
    (
        "conservation",
        &["the_counts_of_a_running_capture_reach_the_number_sent"],
    ),
    (
        "filters",
        &["a_filter_says_of_loopback_what_it_says_of_the_file"],
    ),
    (
        "kernel_translate",
        &[
            "every_instruction_does_what_the_reference_says_also_in_programs_that_no_compiler_makes",
            "a_test_of_the_bitmap_does_not_make_the_verifier_follow_every_combination",
        ],
    ),
    (
        "look_back",
        &[
            "the_past_is_filtered_directed_and_bounded_as_the_session_is",
            "two_sessions_that_look_back_at_once_and_later_have_all_of_it",
        ],
    ),
];
/// What needs TCX links besides; the second has no other kernel with netkit here.
const WITH_LINKS: [Selected; 2] = [
    (
        "pin",
        &[
            "an_upgrade_is_no_gap_and_streams_end_in_order",
            "cleanup_refuses_beside_an_agent_and_leaves_nothing_behind_a_dead_one",
        ],
    ),
    ("bypass", &[]),
];
/// For a kernel on which the agent cannot run.
const TOO_OLD: Selected = (
    "kernel_hooks",
    &["doctor_tells_an_old_kernel_what_it_lacks"],
);

/// What is run on the kernel of this name, like "6.1.0-56-cloud-amd64".
pub(super) fn selected(name: &str) -> Vec<Selected> {
    match version(name) {
        version if version < OLDEST => vec![TOO_OLD],
        version if version < WITH_TCX => EVERYWHERE.to_vec(),
        _ => EVERYWHERE.into_iter().chain(WITH_LINKS).collect(),
    }
}

fn version(name: &str) -> Version {
    let mut numbers = name
        .split(['.', '-'])
        .map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_given_what_it_can_do() {
        let programs = |name: &str| -> Vec<&str> {
            let selected = selected(name).into_iter();
            selected.map(|(program, _)| program).collect()
        };
        assert_eq!(programs("5.10.0-32-cloud-amd64"), ["kernel_hooks"]);
        assert_eq!(programs("5.17.0-1-cloud-amd64").len(), EVERYWHERE.len());
        assert!(!programs("6.1.0-56-cloud-amd64").contains(&"pin"));
        assert!(programs("6.12.117+deb13-cloud-amd64").contains(&"pin"));
    }
}
