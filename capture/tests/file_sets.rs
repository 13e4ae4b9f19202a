//! Sets of files, plain and compressed, on media that fail.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write},
    num::{NonZeroU32, NonZeroU64},
    rc::Rc,
    time::Duration,
};

use proptest::prelude::*;
use remora_capture::{
    pcapng::{
        self, FileSet, Interface, Medium, PacketDirection, PacketMeta, Part, Scan, Section, Shelf,
        Statistics, Unpacked,
    },
    session::{Compression, Counts, Removed, Rotation, Snaplen},
    sidecar::CaptureFile,
};

/// Files in memory that together take so many bytes and then fail.
#[derive(Clone, Default)]
struct Memory {
    files: Rc<RefCell<BTreeMap<String, Vec<u8>>>>,
    room: Rc<RefCell<Option<usize>>>,
}

struct MemoryFile(Memory, String);

impl Write for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.0.room.borrow_mut();
        let len = room.unwrap_or(usize::MAX).min(bytes.len());
        if len == 0 && !bytes.is_empty() {
            return Err(io::Error::from_raw_os_error(5));
        }
        if let Some(room) = room.as_mut() {
            *room -= len;
        }
        let mut files = self.0.files.borrow_mut();
        files
            .entry(self.1.clone())
            .or_default()
            .extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Medium for MemoryFile {
    fn cut(&mut self, len: u64) -> io::Result<()> {
        if let Some(file) = self.0.files.borrow_mut().get_mut(&self.1) {
            file.truncate(len as usize);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shelf for Memory {
    type File = MemoryFile;

    fn create(&mut self, part: Part) -> io::Result<(String, MemoryFile)> {
        let name = part.name("web", ".pcapng");
        let old = self.files.borrow_mut().insert(name.clone(), Vec::new());
        assert!(old.is_none(), "{name} is there already");
        Ok((name.clone(), MemoryFile(self.clone(), name)))
    }

    fn close(&mut self, _: &str, _: MemoryFile) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, file: &CaptureFile) -> io::Result<()> {
        self.files
            .borrow_mut()
            .remove(&file.name)
            .map(drop)
            .ok_or_else(|| io::Error::other("gone"))
    }
}

const START: u64 = 1_795_000_000_000_000_000;

fn head() -> Vec<u8> {
    let mut head = pcapng::section_header(&Section {
        application: "Remora",
        comments: &["capture: x".to_owned()],
        ..Section::default()
    });
    head.extend(pcapng::interface_description(&Interface {
        name: "eth0",
        description: "",
        filter: &"".parse().expect("filter"),
        snaplen: Snaplen::MAX,
    }));
    head
}

/// Packet `id` at so many milliseconds, of `segments` blocks.
fn packet(id: u64, millis: u64, len: usize, segments: u32) -> Vec<u8> {
    let mut blocks = Vec::new();
    for _ in 0..segments {
        let meta = PacketMeta {
            interface_id: 0,
            time_ns: START + millis * 1_000_000,
            direction: PacketDirection::Egress,
            packet_id: Some(id),
            drop_count: 0,
            original_len: len as u32,
            comment: None,
        };
        pcapng::encode_packet(&mut blocks, &meta, &[], &vec![id as u8; len]);
    }
    blocks
}

fn closing(written: u64) -> Vec<u8> {
    let counts = Counts {
        seen: written,
        matched: written,
        written,
        ..Counts::default()
    };
    pcapng::interface_statistics(&Statistics::new(0, &counts, START, START + 1))
}

fn scan(file: &[u8], compression: Compression) -> Scan {
    let scan = match compression {
        Compression::None => pcapng::scan(file),
        Compression::Zstd => {
            let mut unpacked = Unpacked::new(file).expect("memory");
            let scan = pcapng::scan(&mut unpacked);
            assert!(!unpacked.is_torn());
            scan
        }
    };
    scan.expect("memory")
}

fn rotation(bytes: u64, seconds: u64, files: u32) -> Rotation {
    Rotation {
        file_bytes: NonZeroU64::new(bytes),
        interval: (seconds > 0).then(|| Duration::from_secs(seconds)),
        files: NonZeroU32::new(files),
    }
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Zstd)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_packet_is_in_one_file_and_every_file_is_whole(
        packets in prop::collection::vec((0usize..3000, 0u64..2500, 1u32..4), 1..60),
        batch in 1usize..9,
        bytes in prop_oneof![Just(0u64), 4096u64..40_000],
        seconds in 0u64..4,
        ring in prop_oneof![Just(0u32), 1u32..5],
        compression in compression(),
    ) {
        let rotation = rotation(bytes, seconds, if bytes > 0 { ring } else { 0 });
        let memory = Memory::default();
        let mut set = FileSet::new(memory.clone(), rotation, compression, START).expect("file");
        set.append(&head()).expect("head");
        let (mut millis, mut id) = (0, 0);
        for batch in packets.chunks(batch) {
            let mut blocks = Vec::new();
            for (len, gap, segments) in batch {
                millis += gap;
                blocks.extend(packet(id, millis, *len, *segments));
                id += 1;
            }
            set.append(&blocks).expect("memory");
        }
        set.append(&closing(id)).expect("memory");
        let (finished, closed) = set.finish();
        closed.expect("memory");
        let totals = set.totals();
        let files = memory.files.borrow();
        prop_assert_eq!(files.len(), finished.files.len());
        let (mut kept, mut next) = (0, None);
        for (number, (file, (name, content))) in finished.files.iter().zip(files.iter()).enumerate() {
            prop_assert_eq!(&file.name, name);
            prop_assert_eq!(file.bytes, content.len() as u64);
            let scan = scan(content, compression);
            prop_assert_eq!(scan.tear, None);
            prop_assert_eq!((scan.packets, scan.packet_blocks), (file.packets, file.blocks));
            prop_assert_eq!(scan.statistics, 1);
            if let (0, true, Some(place)) = (number, rotation.is_on(), scan.place) {
                // The first file that is there tells what a ring removed before it.
                prop_assert_eq!(place.removed(), finished.removed);
            } else {
                prop_assert_eq!(scan.place.is_some(), rotation.is_on());
            }
            prop_assert!(scan.packets > 0 || number == 0);
            if bytes > 0 && compression == Compression::None {
                prop_assert!(content.len() as u64 <= bytes || scan.packets <= 1, "{}", content.len());
            }
            // Ids go on from file to file.
            prop_assert!(next.is_none() || next == scan.first_packet_id);
            next = scan.last_packet_id.map(|id| id + 1);
            kept += scan.packets;
        }
        prop_assert_eq!(kept + finished.removed.packets, id);
        prop_assert_eq!(totals.packets, id);
        let on_shelf: u64 = files.values().map(|file| file.len() as u64).sum();
        prop_assert_eq!(totals.bytes, on_shelf + finished.removed.bytes);
        if rotation.is_ring() {
            prop_assert!(finished.files.len() <= ring as usize);
        } else {
            prop_assert_eq!(finished.removed, Removed::default());
        }
    }

    #[test]
    fn a_medium_that_fails_leaves_whole_packets_and_counts_them(
        room in 300usize..30_000,
        len in 0usize..3000,
        segments in 1u32..4,
        bytes in prop_oneof![Just(0u64), 4096u64..40_000],
        compression in compression(),
    ) {
        let memory = Memory::default();
        let mut set =
            FileSet::new(memory.clone(), rotation(bytes, 0, 0), compression, START).expect("file");
        set.append(&head()).expect("head");
        *memory.room.borrow_mut() = Some(room);
        for id in 0..40 {
            if set.append(&packet(id, id, len, segments)).is_err() {
                break;
            }
        }
        // Room that was kept for the end.
        *memory.room.borrow_mut() = None;
        let packets = set.totals().packets;
        let _no_file = set.append(&closing(packets));
        let (finished, _closed) = set.finish();
        let mut found = 0;
        for file in &finished.files {
            let scan = scan(&memory.files.borrow()[&file.name], compression);
            prop_assert_eq!(scan.tear, None);
            prop_assert_eq!((scan.packets, scan.packet_blocks), (file.packets, file.blocks));
            prop_assert_eq!(scan.packet_blocks, scan.packets * u64::from(segments));
            found += scan.packets;
        }
        prop_assert_eq!(found, packets);
    }

    #[test]
    fn a_torn_compressed_file_is_repaired_to_what_was_flushed(
        lens in prop::collection::vec(0usize..4000, 1..40),
        cut in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut compressor = pcapng::Compressor::new().expect("memory");
        let mut content = Vec::new();
        // Packets that are there once so many bytes are.
        let mut flushed = Vec::new();
        let mut append = |blocks: &[u8], packets: u64| {
            let packed = compressor.compress(blocks).expect("memory").to_vec();
            compressor.kept();
            content.extend(packed);
            flushed.push((content.len(), packets));
        };
        append(&head(), 0);
        for (id, len) in lens.iter().enumerate() {
            append(&packet(id as u64, 0, *len, 1), id as u64 + 1);
        }
        let head_len = flushed[0].0;
        let cut = head_len + cut.index(content.len() - head_len + 1);
        let least = flushed.iter().filter(|(end, _)| *end <= cut).map(|(_, n)| *n).max();
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(&content[..cut]).expect("disk");
        file.write_all(&garbage).expect("disk");
        let found = pcapng::repair_compressed(&mut file).expect("disk");
        prop_assert!(found.packets >= least.unwrap_or(0), "{} of {least:?}", found.packets);
        let after = scan(&read(&mut file), Compression::Zstd);
        prop_assert_eq!(after.tear, None);
        prop_assert_eq!(after.packets, found.packets);
        // Whatever the reader's buffer.
        let (mut bytewise, mut byte) = (Vec::new(), [0]);
        let content = read(&mut file);
        let mut unpacked = Unpacked::new(&content[..]).expect("memory");
        while unpacked.read(&mut byte).expect("memory") == 1 {
            bytewise.push(byte[0]);
        }
        prop_assert_eq!(pcapng::scan(&bytewise[..]).expect("memory").packets, found.packets);
        // A whole file is left as it is.
        let before = read(&mut file);
        pcapng::repair_compressed(&mut file).expect("disk");
        prop_assert_eq!(read(&mut file), before);
    }
}

fn read(file: &mut File) -> Vec<u8> {
    use std::io::Seek as _;
    let mut content = Vec::new();
    file.rewind().expect("disk");
    file.read_to_end(&mut content).expect("disk");
    content
}

#[test]
fn a_file_of_a_set_says_which_and_the_last_has_the_account() {
    let memory = Memory::default();
    let mut set = FileSet::new(
        memory.clone(),
        rotation(4096, 0, 0),
        Compression::None,
        START,
    )
    .expect("file");
    set.append(&head()).expect("head");
    for id in 0..6 {
        set.append(&packet(id, id, 1400, 1)).expect("memory");
    }
    set.append(&closing(6)).expect("memory");
    let (finished, _) = set.finish();
    assert_eq!(finished.files.len(), 6, "{finished:?}");
    let names: Vec<_> = finished
        .files
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    assert_eq!(names[0], "web_000001_20261118110640.pcapng");
    let files = memory.files.borrow();
    for (number, content) in (1..).zip(files.values()) {
        let text = String::from_utf8_lossy(content);
        assert!(
            text.contains(&format!("file {number} of a set; before it: packets=")),
            "{number}"
        );
        assert_eq!(
            text.contains("matched=6"),
            number == files.len(),
            "{number}"
        );
    }
}
