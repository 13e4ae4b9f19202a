//! The kernel's view of eBPF objects, and programs on interfaces that are somebody else's.

use std::{collections::BTreeSet, fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, SchedClassifierLinkId, TcAttachOptions, qdisc_add_clsact},
    },
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use crate::{netns::Netns, run, wait};

/// How long bpftool may fail to list what is coming and going.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// How long the kernel may take to let go of the next of what nobody holds.
const GONE_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at maps: the kernel empties program arrays in the background.
const EMPTYING: Duration = Duration::from_millis(500);

/// eBPF programs, links and maps by their kernel ids, which are not used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub programs: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
}

impl Objects {
    /// Those that a process holds by a file descriptor.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of_process(pid: u32) -> Result<Self> {
        let mut objects = Self::default();
        let directory = PathBuf::from(format!("/proc/{pid}/fdinfo"));
        for entry in fs::read_dir(&directory)
            .with_context(|| format!("no {}", directory.display()))?
            .flatten()
        {
            // It may be closed by now.
            let Ok(text) = fs::read_to_string(entry.path()) else {
                continue;
            };
            let value = |key: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok())
            };
            // A link's file names its program, too.
            if let Some(id) = value("link_id:") {
                objects.links.insert(id);
            } else if let Some(id) = value("map_id:") {
                objects.maps.insert(id);
            }
            objects.programs.extend(value("prog_id:"));
        }
        Ok(objects)
    }

    /// Those that the kernel still knows, asked of bpftool. Not to be asked of maps that nobody holds: see
    /// [`Self::gone`].
    ///
    /// # Errors
    /// bpftool fails.
    pub fn still_there(&self) -> Result<Self> {
        let mut left = self.still_running()?;
        left.maps = both(&self.maps, &ids(&listed("map")?));
        Ok(left)
    }

    /// Programs and links that the kernel still knows, and maps that a program uses.
    fn still_running(&self) -> Result<Self> {
        let programs = listed("prog")?;
        let used = programs.iter().flat_map(|item| {
            let maps = item["map_ids"].as_array().into_iter().flatten();
            maps.filter_map(|id| id.as_u64()?.try_into().ok())
        });
        Ok(Self {
            maps: both(&self.maps, &used.collect()),
            programs: both(&self.programs, &ids(&programs)),
            links: both(&self.links, &ids(&listed("link")?)),
        })
    }

    /// Waits until the kernel knows none of them any more. It lets go of one after the other (a link, its
    /// program, what that calls, their maps), each after a grace period, which takes long on a busy
    /// machine: so as long as they become fewer.
    ///
    /// Maps come last, when no program uses them: bpftool opens each map that it lists, and to close a
    /// program array that nobody else holds makes the kernel empty it. If it is about to do so already, it
    /// counts itself twice among the array's users, and the array stays for ever
    /// (kernel/bpf/arraymap.c, `prog_array_map_clear`, v6.18). Anybody's bpftool can do that, so of
    /// program arrays it is asked only that no program uses them.
    ///
    /// # Errors
    /// Some are still there; names them.
    pub fn gone(&self) -> Result<()> {
        let mut left = self.still_running()?;
        while !left.is_empty() {
            let before = left.clone();
            wait::until(GONE_LIMIT, "the kernel to let go of more", || {
                left = before.still_running()?;
                Ok(left != before)
            })
            .with_context(|| format!("still there: {}", before.shown()))?;
        }
        let mut left = Self::default();
        wait::until(GONE_LIMIT, "the kernel to let go of all maps", || {
            thread::sleep(EMPTYING);
            let mut maps = listed("map")?;
            maps.retain(|map| map["type"] != "prog_array");
            left.maps = both(&self.maps, &ids(&maps));
            Ok(left.maps.is_empty())
        })
        .with_context(|| format!("still there: {}", left.shown()))
    }

    /// With their names and owners, as bpftool has them.
    fn shown(&self) -> String {
        let mut text = String::new();
        for (kind, ids) in [
            ("prog", &self.programs),
            ("link", &self.links),
            ("map", &self.maps),
        ] {
            for id in ids {
                let id = id.to_string();
                let told = run::output(run::command("bpftool").args([kind, "show", "id", &id]));
                text += &format!("\n{}", told.unwrap_or(id));
            }
        }
        text
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.links.is_empty() && self.maps.is_empty()
    }

    /// Takes in those of `other`.
    pub fn extend(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.links.extend(other.links);
        self.maps.extend(other.maps);
    }
}

/// How many barriers (`nospec`: `lfence` on x86) the verifier has put into a program, by the program's name.
///
/// # Errors
/// bpftool fails, or prints no program.
pub fn barriers(program: u32) -> Result<(String, usize)> {
    let id = program.to_string();
    let text = run::output(run::command("bpftool").args(["prog", "dump", "xlated", "id", &id]))?;
    // "i32 tcx_egress(struct __sk_buff * ctx):", then "  19: (c2) nospec".
    let name = text.lines().find_map(|line| {
        let (head, _) = line.split_once('(')?;
        head.rsplit(' ').next()
    });
    let name = name.with_context(|| format!("no program in {text}"))?;
    let is_barrier = |line: &&str| {
        line.split_once(": ")
            .is_some_and(|(_, rest)| rest.starts_with("(c2)"))
    };
    Ok((name.to_owned(), text.lines().filter(is_barrier).count()))
}

/// What bpftool lists of a kind.
fn listed(kind: &str) -> Result<Vec<serde_json::Value>> {
    let ask = || run::output(run::command("bpftool").args(["-j", kind, "list"]));
    // A link that somebody else is just making cannot be looked at yet (EAGAIN).
    let text = wait::settled(LIST_LIMIT, || ask().ok()).map_or_else(ask, Ok)?;
    serde_json::from_str(text.trim()).with_context(|| format!("bpftool printed {text}"))
}

fn ids(items: &[serde_json::Value]) -> BTreeSet<u32> {
    let ids = items.iter();
    ids.filter_map(|item| item["id"].as_u64()?.try_into().ok())
        .collect()
}

fn both(mine: &BTreeSet<u32>, theirs: &BTreeSet<u32>) -> BTreeSet<u32> {
    mine.intersection(theirs).copied().collect()
}

/// A program on a TCX hook that is not Remora's.
#[derive(Debug)]
pub struct ForeignTcx {
    ebpf: Ebpf,
    links: Vec<SchedClassifierLinkId>,
}

const FOREIGN_NAME: &str = "foreign";

/// Opcode, registers (source, then destination in the low half), offset, immediate value.
type Instruction = (u8, u8, i16, i32);

impl ForeignTcx {
    /// Attaches one that drops IPv4 UDP or TCP packets to one port and passes the others on, where
    /// packets enter the host through `interface`, after whatever is there. That it runs shows in
    /// what no longer arrives.
    ///
    /// # Errors
    /// The kernel has no TCX (before 6.6), or there is no such interface.
    pub fn attach(netns: &Netns, interface: &str, dropped_port: u16) -> Result<Self> {
        Self::attach_program(
            netns,
            interface,
            &dropping(dropped_port),
            &[TcAttachType::Ingress],
        )
    }

    /// Attaches one to both directions that passes every packet on and does nothing else: what a hook
    /// costs by itself.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_empty(netns: &Netns, interface: &str) -> Result<Self> {
        let both = [TcAttachType::Ingress, TcAttachType::Egress];
        Self::attach_program(netns, interface, &EMPTY, &both)
    }

    /// Attaches one where packets enter the host through `interface` that hands IPv4 UDP packets to one port to
    /// the other end of `veth` in its network namespace, past the end here, as Cilium's routing does.
    ///
    /// # Errors
    /// As [`Self::attach`]; there is no such veth.
    pub fn attach_redirect(netns: &Netns, interface: &str, port: u16, veth: &str) -> Result<Self> {
        let ifindex = netns.enter(|| {
            nix::net::if_::if_nametoindex(veth).with_context(|| format!("no interface {veth}"))
        })?;
        let program = redirecting(port, ifindex.cast_signed());
        Self::attach_program(netns, interface, &program, &[TcAttachType::Ingress])
    }

    fn attach_program(
        netns: &Netns,
        interface: &str,
        program: &[Instruction],
        directions: &[TcAttachType],
    ) -> Result<Self> {
        let mut ebpf =
            Ebpf::load(&object(program)?).context("failed to load the foreign program")?;
        let program: &mut SchedClassifier = ebpf
            .program_mut(FOREIGN_NAME)
            .context("no foreign program")?
            .try_into()?;
        program.load()?;
        let links = netns.enter(|| {
            directions
                .iter()
                .map(|&direction| {
                    let last = TcAttachOptions::TcxOrder(LinkOrder::last());
                    program
                        .attach_with_options(interface, direction, last)
                        .context("failed to attach the foreign program")
                })
                .collect()
        })?;
        Ok(Self { ebpf, links })
    }

    /// The kernel's id of the program.
    ///
    /// # Errors
    /// It is not loaded.
    pub fn program_id(&mut self) -> Result<u32> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(FOREIGN_NAME)
            .context("no foreign program")?
            .try_into()?;
        Ok(program.info()?.id())
    }

    /// Takes it off again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn detach(mut self) -> Result<()> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(FOREIGN_NAME)
            .context("no foreign program")?
            .try_into()?;
        for link in self.links {
            program.detach(link)?;
        }
        Ok(())
    }
}

/// Adds the qdisc clsact and, where packets enter the host through `interface`, a filter at priority 1
/// that drops IPv4 UDP or TCP packets to one port and leaves the others to the next. It stays as long
/// as the interface.
///
/// # Errors
/// The kernel has no clsact, or there is no such interface.
pub fn add_foreign_filter(netns: &Netns, interface: &str, dropped_port: u16) -> Result<()> {
    let mut ebpf =
        Ebpf::load(&object(&dropping(dropped_port))?).context("failed to load the filter")?;
    let program: &mut SchedClassifier = ebpf
        .program_mut(FOREIGN_NAME)
        .context("no foreign program")?
        .try_into()?;
    program.load()?;
    netns.enter(|| {
        qdisc_add_clsact(interface).context("failed to add clsact")?;
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: 1,
            ..NlOptions::default()
        });
        let id = program
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .context("failed to add the foreign filter")?;
        // Dropped, it would look for the filter in this thread's own namespace.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    })
}

/// ```text
/// r6 = r1                      LD_ABS takes the packet from r6
/// r0 = be16 at byte 36         destination port after Ethernet and IPv4 without options
/// if r0 != port goto pass
/// r0 = 2; exit                 TC_ACT_SHOT
/// pass: r0 = -1; exit          TCX_NEXT
/// ```
fn dropping(port: u16) -> [Instruction; 7] {
    [
        (0xbf, 0x16, 0, 0),
        (0x28, 0x00, 0, 36),
        (0x55, 0x00, 2, port.into()),
        (0xb7, 0x00, 0, 2),
        (0x95, 0x00, 0, 0),
        (0xb7, 0x00, 0, -1),
        (0x95, 0x00, 0, 0),
    ]
}

/// ```text
/// r6 = r1
/// r0 = be16 at byte 36
/// if r0 != port goto pass
/// r1 = ifindex; r2 = 0
/// r0 = bpf_redirect_peer(r1, r2); exit
/// pass: r0 = -1; exit          TCX_NEXT
/// ```
fn redirecting(port: u16, ifindex: i32) -> [Instruction; 9] {
    const REDIRECT_PEER: i32 = 155;
    [
        (0xbf, 0x16, 0, 0),
        (0x28, 0x00, 0, 36),
        (0x55, 0x00, 4, port.into()),
        (0xb7, 0x01, 0, ifindex),
        (0xb7, 0x02, 0, 0),
        (0x85, 0x00, 0, REDIRECT_PEER),
        (0x95, 0x00, 0, 0),
        (0xb7, 0x00, 0, -1),
        (0x95, 0x00, 0, 0),
    ]
}

/// ```text
/// r0 = -1; exit                TCX_NEXT
/// ```
const EMPTY: [Instruction; 2] = [(0xb7, 0x00, 0, -1), (0x95, 0x00, 0, 0)];

/// An object file with one classifier, assembled here so that nobody needs a compiler.
fn object(instructions: &[Instruction]) -> Result<Vec<u8>> {
    let mut code = Vec::new();
    for &(opcode, registers, offset, immediate) in instructions {
        code.extend_from_slice(&[opcode, registers]);
        code.extend_from_slice(&offset.to_le_bytes());
        code.extend_from_slice(&immediate.to_le_bytes());
    }
    ensure!(
        cfg!(target_endian = "little"),
        "the foreign program is assembled little-endian"
    );

    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    object.append_section_data(section, &code, 8);
    object.add_symbol(Symbol {
        name: FOREIGN_NAME.into(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"Apache-2.0\0", 1);
    Ok(object.write()?)
}
