//! What the document says around the figures.

pub(crate) const INTRODUCTION: &str = "\
# Performance

Written by `cargo xtask bench --markdown`; do not edit (its words are in
`tests/src/bin/bench/document.rs` and beside each goal's code). `cargo xtask bench P1 P5` measures some
goals and prints the same tables, `--quick` with fewer and shorter runs; each run leaves all its figures
in `target/bench/`. Nothing passes or fails by them.

## Method

One generator sends UDP packets on two paths in turn, 5 ms each: socket, bridge, veth, and a socket of
a pod that drops them (*into the pod*), or from that pod to its nodes (*out of the pod*). Both paths are
alike, between the pod and two node namespaces with the same set-up, and only the first one's veth is
captured. Every `sendmmsg(2)` of 64 packets is timed; a packet's whole way to the socket runs inside that
call, on the generator's CPU 0. The capturer has CPU 1 and writes to tmpfs. Medians of both paths within
one run are compared, so what else the machine does cancels out; a row has the median of several runs, one
of each round, in which all rows take turns.

- **ns added**: median time of a packet on the captured path less that on its twin. **(p25)**: the same
  of lower quartiles, less moved by other work.
- **speed**: the twin's time divided by the captured path's; 1 is no cost. The *control* has nothing on
  either path; where it is not within 0.98 and 1.02 the row does not hold, and says so.
- **twin ns**: time of a packet on the twin path in the same runs.
- **sent** on the captured path in all runs, **captured** in the files, **lost** as the capturer says
  itself (*untold*: in no file and no count). The captures also have a few packets of the path's neighbour
  discovery.
- **CPU s/Mpkt**: user and system time of the capturer's process for a million packets sent and not lost.
  What its kernel side takes of the generator's CPU is in *ns added*.
- **RSS**: resident memory after the run; the agent's ring is mapped twice and counts twice.
- **met**: by the medians (in how many of the runs). *recording*: look-back with its defaults.

What the figures do not tell:

- The agent also has programs on captured cgroups, which run for a captured pod's sockets; no socket of the
  twin path meets them.
- A packet that leaves an interface is cloned for tcpdump before its filter runs, one that comes in is
  not: tcpdump costs more *into the pod*, which leaves the node by the captured veth.
- One packet passes one captured veth here. Between two pods of a node it passes two, and the agent is on
  both.
- One machine with two CPUs and no network card; no disk.
";

/// The profile; its figures are another measurement's (`cargo xtask bench` has no cycle counter on a
/// machine without a PMU), filled in by hand here.
pub(crate) const WHERE_TIME_GOES: &str = "
## Where our time goes

A captured packet pays, in this order:

1. **The hooks.** TCX on the veth; the cgroup programs for the sender's and the receiver's socket. An
   empty TCX program in the tables is the price of the hook itself.
2. **Entry**: interface index to tap (an array lookup that the JIT makes inline), the tap's sessions. A
   bystander's packet ends here, or, where it is recorded, after its flow was looked up (a hash of our
   own) and found cut.
3. **decide**, or the tap's machine code: the filter. What a miss costs less what a bystander costs.
4. **capture**: budgets (atomic additions), the reservation in the ring (a spin lock of the ring, held
   shortly), the copy of the packet's bytes by the helper, the commit. The copy is the part that grows
   with the packet: whole less `-s 96` at 1400 bytes.
5. **In user space**: one look at the ring each 4 ms or each eighth of it; one copy from the ring into the
   batch of 256 KiB with the block around it; one `write(2)` a batch, which on tmpfs is mostly the kernel's
   own copy and the new pages. What `write(2)` of 1 MiB gives in P9 is the floor.

Stages are tail calls, and without CAP_PERFMON the verifier puts a barrier behind each first write of a
stack slot, so what is worked on lies in a per-CPU map.
";
