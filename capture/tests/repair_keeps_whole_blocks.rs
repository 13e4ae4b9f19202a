//! A torn file is cut to its whole blocks, wherever and however it is torn, and Wireshark's tools
//! and tcpdump then read it without complaint.

mod support;

use std::{
    fs::OpenOptions,
    io::{Read as _, Seek as _, Write as _},
    path::Path,
    process::Command,
};

use proptest::{collection::vec, prelude::*};
use remora_capture::pcapng::{Blocks, Tear, read_packets, repair, scan};
use support::{installed, pcapng::blocks};

const PACKETS: u64 = 9;
/// Blocks before the first packet.
const COLD: usize = 4;

/// Bytes and packets of the whole blocks that end at or before `cut`.
fn whole(blocks: &[Vec<u8>], cut: usize) -> (usize, usize) {
    let mut end = 0;
    let whole = blocks.iter().take_while(|block| {
        let fits = end + block.len() <= cut;
        end += if fits { block.len() } else { 0 };
        fits
    });
    let count = whole.count();
    (end, count.saturating_sub(COLD).min(PACKETS as usize))
}

#[derive(Clone, Debug)]
enum Tail {
    Nothing,
    Zeroes(usize),
    Garbage(Vec<u8>),
}

impl Tail {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Zeroes(len) => vec![0; *len],
            Self::Garbage(bytes) => bytes.clone(),
        }
    }
}

#[test]
fn every_cut_leaves_the_whole_blocks() {
    let blocks = blocks(PACKETS);
    let file = blocks.concat();
    for cut in 0..=file.len() {
        let scan = scan(&file[..cut]).expect("memory");
        let (bytes, packets) = whole(&blocks, cut);
        assert_eq!(
            (scan.whole_bytes, scan.packets),
            (bytes as u64, packets as u64),
            "cut {cut}"
        );
        assert_eq!(scan.tear, (bytes < cut).then_some(Tear::Short), "cut {cut}");
    }
}

#[test]
fn scan_tells_what_the_file_holds() {
    let file = blocks(PACKETS).concat();
    let scan = scan(&file[..]).expect("memory");
    let packets = read_packets(&file[..]).expect("file");
    assert_eq!(
        (scan.packets, scan.statistics, scan.tear),
        (PACKETS, 2, None)
    );
    assert_eq!(scan.interface_packets, [5, 4]);
    assert_eq!(scan.first_packet_ns, packets.first().map(|p| p.time_ns));
    assert_eq!(scan.last_packet_ns, packets.last().map(|p| p.time_ns));
    assert_eq!(scan.last_packet_id, Some(PACKETS - 1));
    assert_eq!(
        scan.dropped,
        packets.iter().map(|p| p.drop_count).sum::<u64>()
    );
    assert_eq!(packets[0].interface, "shop/web/eth0");
    assert_eq!(packets[1].comments, ["odd one"]);
}

#[test]
fn whole_file_is_left_as_it_is() {
    let path = tempfile::NamedTempFile::new().expect("file");
    let bytes = blocks(PACKETS).concat();
    std::fs::write(path.path(), &bytes).expect("write");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path.path())
        .expect("open");
    assert_eq!(repair(&mut file).expect("repair").tear, None);
    assert_eq!(
        file.stream_position().expect("position"),
        bytes.len() as u64
    );
    assert_eq!(std::fs::read(path.path()).expect("read"), bytes);
}

#[test]
fn what_never_was_pcapng_becomes_empty() {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(b"not a capture, and long enough for a block")
        .expect("write");
    assert_eq!(
        repair(&mut file).expect("repair").tear,
        Some(Tear::NotABlock)
    );
    assert_eq!(file.metadata().expect("metadata").len(), 0);
}

proptest! {
    #[test]
    fn any_tear_is_cut_to_the_whole_blocks(
        cut in any::<prop::sample::Index>(),
        tail in prop_oneof![
            Just(Tail::Nothing),
            (0usize..9000).prop_map(Tail::Zeroes),
            // A first byte that begins no known block, so that chance makes no whole one.
            vec(any::<u8>(), 0..300).prop_map(|mut bytes| {
                bytes.insert(0, 0xff);
                Tail::Garbage(bytes)
            }),
        ],
    ) {
        let blocks = blocks(PACKETS);
        let bytes = blocks.concat();
        let cut = cut.index(bytes.len() + 1);
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(&bytes[..cut]).expect("write");
        file.write_all(&tail.bytes()).expect("write");
        let scan = repair(&mut file).expect("repair");
        let mut repaired = Vec::new();
        file.rewind().expect("seek");
        file.read_to_end(&mut repaired).expect("read");
        let (whole_bytes, packets) = whole(&blocks, cut);
        // A tail may happen to go on as the file did.
        prop_assert!(repaired.len() >= whole_bytes && scan.packets as usize >= packets);
        prop_assert_eq!(repaired.len() as u64, scan.whole_bytes);
        if let Tail::Nothing | Tail::Garbage(_) = tail {
            prop_assert_eq!(&repaired[..], &bytes[..whole_bytes]);
        }
        if whole_bytes > 0 {
            prop_assert_eq!(read_packets(&repaired[..]).expect("file").len() as u64, scan.packets);
        }
    }

    #[test]
    fn walker_answers_whatever_the_bytes(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        noise in vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = blocks(3).concat();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for bytes in [&bytes, &noise] {
            let mut walk = Blocks::new(&bytes[..]);
            let mut end = 0;
            while let Some(block) = walk.next_block().expect("memory") {
                prop_assert_eq!(block.offset, end);
                end += u64::from(block.len);
                let _ = (block.time(), block.interface_id(), block.options().count());
            }
            prop_assert_eq!(walk.offset(), end);
            prop_assert_eq!(walk.tear().is_none(), end == bytes.len() as u64);
            prop_assert!(walk.next_block().expect("memory").is_none());
        }
    }
}

/// The tool's exit code and standard output.
fn run(tool: &str, args: &[&str], file: &Path) -> (i32, String) {
    let output = Command::new(tool)
        .args(args)
        .arg(file)
        .output()
        .expect("tool runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn independent_readers_take_repaired_files() {
    if !["tshark", "capinfos", "tcpdump"].into_iter().all(installed) {
        return;
    }
    let blocks = blocks(PACKETS);
    let bytes = blocks.concat();
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("torn.pcapng");
    // From the first packet on, at uneven steps, each with a tail of another kind.
    let first_packet = blocks[..COLD].concat().len();
    let tails = [
        Tail::Nothing,
        Tail::Zeroes(4096),
        Tail::Garbage(vec![0xff; 99]),
    ];
    for (i, cut) in (first_packet..=bytes.len()).step_by(97).enumerate() {
        let torn = [&bytes[..cut], &tails[i % 3].bytes()].concat();
        std::fs::write(&path, torn).expect("write");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open");
        let scan = repair(&mut file).expect("repair");
        let (code, text) = run(
            "tshark",
            &["-T", "fields", "-e", "frame.packet_id", "-r"],
            &path,
        );
        assert_eq!(
            (code, text.lines().count() as u64),
            (0, scan.packets),
            "tshark, cut {cut}"
        );
        let (code, text) = run("capinfos", &["-cMrT"], &path);
        assert_eq!(code, 0, "capinfos, cut {cut}");
        assert!(
            text.trim_end().ends_with(&format!("\t{}", scan.packets)),
            "{text}"
        );
        let (code, text) = run("tcpdump", &["-nt", "-r"], &path);
        assert_eq!(
            (code, text.lines().count() as u64),
            (0, scan.packets),
            "tcpdump, cut {cut}"
        );
    }
}

#[test]
fn wireshark_shows_what_was_written() {
    if !["tshark", "capinfos"].into_iter().all(installed) {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("whole.pcapng");
    std::fs::write(&path, blocks(PACKETS).concat()).expect("write");
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.packet_id",
        "frame.drop_count",
        "frame.comment",
        "ip.src_host",
        "frame.time_epoch",
    ];
    let mut args = vec!["-N", "n", "-T", "fields"];
    args.extend(fields.iter().flat_map(|field| ["-e", field]));
    args.push("-r");
    let (code, text) = run("tshark", &args, &path);
    assert_eq!(code, 0);
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(lines.len() as u64, PACKETS);
    assert_eq!(
        lines[1],
        [
            "shop/web/lo",
            "0x00000002",
            "1",
            "1",
            "odd one",
            "web.shop",
            "1795489205.479445998"
        ]
    );
    assert_eq!(lines[0][..3], ["shop/web/eth0", "0x00000001", "0"]);
    let (code, text) = run("capinfos", &[], &path);
    assert_eq!(code, 0);
    for shown in [
        "Linux 6.18, node worker-1",
        "remora 0.1.0",
        "Outbound Connection to C2 Servers",
        "Filter string = host 198.51.100.23 and udp port 53",
        "Number of stat entries = 1",
        "Time precision = nanoseconds (9)",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
}
