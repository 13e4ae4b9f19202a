//! Test beds made of real kernel objects, and readers that know nothing of Remora.
//!
//! ```text
//!                 node namespace (the agent runs here)          other namespaces
//!   pod "web" ── veth-web ─┐
//!   pod "api" ── veth-api ─┴─ br0 10.77.0.1/24 ── forwarding ── up-c2 ── "c2" 198.51.100.23
//! ```
//! - [`name`]: unique names, and what a killed run left behind is swept by the next.
//! - [`run`], [`wait`], [`signals`]: commands and processes with deadlines; conditions instead of
//!   sleeps; an orderly end on Ctrl-C.
//! - [`netns`], [`veth`], [`cgroup`], [`node`]: namespaces, cables, cgroups; nodes and pods of them.
//!   [`host`]: a node of any kind, as an agent sees it.
//! - [`fleet`]: many small pods that come and go.
//! - [`cluster`]: a real Kubernetes.
//! - [`agent`], [`controller`]: the built programs, started as a user would.
//! - [`objects`], [`fault_proxy`]: a store of objects that checks signatures, and what goes wrong before it.
//! - [`kubelet`], [`apiserver`]: pods laid out as Kubernetes does, and a server that tells of them.
//! - [`packets`], [`numbered`], [`wire`]: what a file holds, by `pcap-file`, by number, and by
//!   Wireshark's and tcpdump's own tools.
//! - [`beside`]: captures with filters beside one of all, of the same traffic.
//! - [`latency`]: how long a trigger takes, and tcpdump for the same.
//! - [`proof`]: the conservation law over the file, the sidecar, the API and the metrics. [`manifests`]: each file
//!   that an agent has signed, when a test is over.
//! - [`screen`]: what the demos show.
//! - [`random`]: the same numbers in each run. [`twin`]: for generators on two paths.
//! - [`bpf`]: kernel objects of a process, and foreign programs on interfaces.
//!
//! Invariants: nothing but the test driver runs in the root network namespace; every object goes
//! with its owner's `Drop`; a name is never used twice.
#![forbid(unsafe_code)]

pub mod agent;
pub mod apiserver;
pub mod beside;
pub mod bpf;
pub mod certificates;
pub mod cgroup;
pub mod cluster;
pub mod controller;
pub mod fault_proxy;
pub mod fleet;
pub mod host;
pub mod http;
pub mod kubelet;
pub mod latency;
pub mod manifests;
pub mod name;
pub mod netns;
pub mod node;
pub mod numbered;
pub mod objects;
pub mod packets;
pub mod proof;
#[path = "../../capture/tests/support/random.rs"]
pub mod random;
pub mod run;
pub mod screen;
pub mod signals;
pub mod sigv4;
pub mod traffic;
pub mod twin;
pub mod veth;
pub mod wait;
pub mod wire;
