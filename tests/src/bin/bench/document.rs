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
5. **In user space**: one look at the ring each 6 ms or each eighth of it; one copy from the ring into the
   batch of 256 KiB with the block around it; one `write(2)` a batch, which on tmpfs is mostly the kernel's
   own copy and the new pages. What `write(2)` of 1 MiB gives in P9 is the floor.

Stages are tail calls. Without CAP_PERFMON, which the agent has not, the verifier puts a barrier (`lfence`)
behind each first write of a stack slot, and before a helper that takes a pointer which was copied after an
addition: some 13 ns each, for it waits for what is being read. So what is worked on lies in a per-CPU map,
and the programs of the common way keep no more across a call than the four registers that outlive it.

Where a recorded bystander's packet spends its time, of 64 bytes, into the pod (`perf record -e cpu-clock -C 0
-g` beside udpgen, uid 65532 with two capabilities, 2026-11-28, samples in each program and what it calls,
times the time of a packet):

| | with 3 to 7 barriers a program | without |
|---|--:|--:|
| tcx_egress | 89 ns | 25 ns |
| tc_look_back itself | 166 ns | 64 ns |
| its clock (`bpf_ktime_get_ns`; now the coarse one) | 32 ns | 4 ns |
| its two look-ups and the packet's 24 bytes (helpers) | 35 ns | 13 ns |
| **all** | **322 ns** | **106 ns** |

With all capabilities, so without barriers, the programs before took 120 ns.
";

/// What a reader of the goals' column asks next. Figures are those of the tables, or of the commands named.
pub(crate) const MISSED: &str = "
## Goals that are missed

What was tried, and what stands in the way. The measures stay as they are. Figures are of 2026-11-29; those that
are not in the tables have their command beside them.

- **P1, recorded** (187 ns; 0.70 of tcpdump, goal 0.25; an empty program is 57). Look-back looks at each packet of
  each pod: its first 24 bytes, a keyed hash, its flow's place, a clock and two counters are 106 ns of programs
  behind a hook. Tried: the kernel's hash of a flow (half of the samples), the exact clock (32 ns instead of 4), three
  to seven barriers less a program (322 to 106 ns). That its flow is cut can be known of no packet without looking
  at it. Not recorded it costs 22 ns more than an empty
  program.
- **P1, no session** (0.980 where nothing is recorded, goal 0.99). An empty program alone costs 1.8 %. To meet it
  the agent would have to leave the veths, and to come back on a trigger: then there is no look-back, and each
  trigger waits for the kernel's lock over all links.
- **P1, of a core** (1.04 % while recording, goal 0.2): it was 0.12 before rings that are too large were
  made smaller for who comes later, and a hundred pods had come seconds before. Seven seconds after its start and later
  an agent took 0.03 % (1 of 3500 ticks in 35 s, 100 veths in its namespace).
- **P2** (0.59 to 0.69 of tcpdump, recorded 0.81 to 0.90; goals 0.25 to 0.35, which is 130 to 225 ns). The hook
  (57 ns) and the record (65 ns at 64 bytes, 138 to 182 at 1400: *Sizes of records*) are nearly as much already;
  the rest is the stages' calls, the exact budgets (atomic) and the clock. Tried: dynptr and scratch for the
  record, and programs without barriers.
- **P2, bulk** (0.85 and 0.78 of the speed beside tcpdump, in a run before 1.05 and 1.15: it moves with how the
  sender, the receiver and the capturer share two CPUs). No super-packet of 33 000 was lost; 352 and 856
  were before the ring's reader waited for a writer that is behind.
- **P3** (2.2 times tcpdump at 64 bytes, 1.2 at 1400; goal 0.5; of dumpcap 0.24 and 0.57, goal 0.2). tcpdump
  copies a packet from its ring to a buffer, 0.12 s a million. Here a thread takes it from the ring, finds its
  sessions, puts a block with direction, number and padding together, and another writes it. What grows with
  the packet, 0.85 of tcpdump's 0.97 at 1400 bytes, both pay for the same bytes in the same file.
- **P4, stalled** (0.99 and 1.01, goal 3). Both rings hold about as many packets of 1400 bytes, and the generator is
  at its end with 64. It was 0.5 before the ring's reader waited for a writer that is behind.
- **P5, armed** (1.6 ms as the client sees it, goal 0.2). That is a request over HTTP/2 and back, a file made with
  its first blocks, and the arming, of which the agent's own log tells (`--log debug`): finding the pod 0.15 ms,
  its cgroup's programs 0.15, the output 0.10, the bit 0.05. The first packet comes earlier than the answer. The
  p99 of 40 is the first trigger of all; of 200 it is 2.1 to 2.3 ms (`cargo test --release -p remora-tests --test
  latency`).
- **P5, whole flows** (0.56, goal 0.4): each packet is copied into its pod's ring, which is most of what a capture
  costs. With the flow cutoff, the default, it is met.
- **P6, idle** (5.1 times tcpdump, goal 2). The agent is one program with gRPC, TLS, HTTP, a client of Kubernetes
  and a runtime; tcpdump has none of these. Its maps are 2.6 MiB without look-back.
- **P7, bystander beside 16 tcpdumps** (0.13, goal 0.05): it is look-back's price again, whatever the sessions are.
- **P7, 64 sessions of one packet** (6.4 times one, goal 2). Each has its own limits, which hold to the packet on
  all CPUs: two atomic additions and a call by `bpf_loop`, 37 ns. One record serves all.
- **P8** (misses 0.64 to 0.80, goal 0.3; hits 0.68 to 0.78, goal 0.4): by test run the filter itself is 35 to
  86 ns, 33 of which are an empty program's (CHANGELOG.md); the rest is P1's and P2's.
";

/// Why records have size classes. Another measurement's figures, too.
pub(crate) const SIZES: &str = "
## Sizes of records

A record takes the smallest of six sizes (192 to 66 048 bytes) that holds the packet. What other ways cost, by
test run (`cargo test -p remora-tests --test kernel_records -- --ignored --nocapture`; 2026-11-29, 2 × AMD EPYC,
kernel 6.18, other work on the machine, the least and the most of five runs that each told the least of 25
rounds; ns of a packet, reservation, header, copy and commit; 64 KiB are eight copies of 8 KiB, more than 16 a
test run does not take):

| | 64 B | 1400 B | 64 KiB |
|---|--:|--:|--:|
| a size class: `bpf_ringbuf_reserve`, `bpf_skb_load_bytes` into it | 65 to 67 | 138 to 182 | 1907 to 3043 |
| `bpf_ringbuf_reserve_dynptr`, `bpf_skb_load_bytes` into slices of at most 1 KiB | 105 to 108 | 245 to 257 | 2753 to 2938 |
| the same reservation, a scratch, `bpf_dynptr_write` | 126 to 127 | 158 to 164 | 3458 to 4281 |
| a scratch, `bpf_ringbuf_output` | 86 to 88 | 117 to 127 | 3247 to 4475 |
| ring, bytes: class / exact | 200 / 136 | 1608 / 1472 | 66 056 / 65 608 |

A dynptr takes no room that it does not need, and is dearer for short and for long packets: a slice of it has a
constant length, so a packet is put together of many. A scratch must hold 64 KiB for each program that may run at
a time; that of a cgroup program is written over by the programs that interrupt it, unless each takes one of its own.
At 1400 bytes it is cheaper than a class all the same, by 20 to 55 ns of the 480 that the packet costs in all.
";

/// Why there is one ring. Another measurement's figures, too.
pub(crate) const ONE_RING: &str = "
## One ring

All CPUs write into one ring. By test run (`cargo xtask bench P7`; 2026-11-25, 2 × AMD EPYC, kernel
6.18, packets of 1400 bytes, medians of 4 to 8 loads of the object, other work on the machine, so to be
read as ratios), a packet costs each of the two CPUs, in ns:

| | one CPU | two, one ring | two, a ring each |
|---|--:|--:|--:|
| `-s 96`, back to back | 330 | 414 | 306 |
| `-s 96`, a system call between two packets | 500 | 594 | 485 |
| whole, back to back | 354 | 1012 (in some loads 610 to 650) | 397 |
| whole, a system call between two packets | 578 | 811 | 658 |

So a ring for each CPU would save a packet 110 to 150 ns while another CPU captures at full rate, too: a
fifth of what the programs cost, a twenty-fifth of the packet's way of about 4 us. Records that begin at
whole cache lines do not change it (1015 instead of 1012 ns).

What one ring gives for that: the records' order needs no merging; one CPU's flood may use all the room
(with a ring for each of n CPUs it has an n-th, so on two CPUs half the time that a stalled reader may
take, P4); `--pin` has one position to keep. Where it ends: two CPUs put 4.8 million records a second into
it (`-s 96`; whole 2 million), the one consumer takes 2.6 and 0.7 million (0.38 and 1.43 s a million packets
of 64 and 1400 bytes, writer included): on this machine the consumer ends first. Others' figures for more
CPUs (kernel-patches/bpf PR 10028, EPYC 9654, no reading of packets beside it): 6.3 million a second by 4
producers, 2.8 by 8, 1.1 by 44. With more than about 8 CPUs that capture at full rate the ring would end
first; a ring for each 8 CPUs is the way then.

**Waking the reader** was dearer than the ring. The programs asked after each record how much is waiting,
and above an eighth of the ring each record woke the reader, which is an interrupt each: with a reader
that is behind, a packet cost 1890 ns (whole: 2171). Now a CPU asks once for many bytes: 299 and 362.

**Giving room back** a 64th of the ring at a time instead of record by record made no difference by itself that
could be measured. With a look every 6 ms instead of 4 and a packet's block put together in four pieces the agent's
CPU went from 2.5 to between 2.2 and 2.3 times tcpdump's at 64 bytes, and from 1.25 to between 1.08 and 1.21 at 1400.
";
