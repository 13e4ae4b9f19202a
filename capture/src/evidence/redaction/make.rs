//! Makes a redacted file, and what is to be signed of it.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read, Write},
};

use jiff::Timestamp;

use super::{
    Cut, Original, Redacted, Redaction, SourceChunk,
    cut::{frame, whole},
};
use crate::{
    evidence::{
        CHUNK_BYTES, DOCUMENT_BYTES_MAX, Digester, EnvelopeError, Manifest, ManifestError, Paths,
        SecretKey,
    },
    pcapng::{BlockKind, Blocks, Section, Tear, section_header},
    sidecar::Tool,
    text::one_line,
};

/// Read at once, in bytes.
pub(super) const READ_BYTES: usize = 256 << 10;
/// Longest text of how packets were chosen, or why, in bytes.
const TEXT_MAX: usize = 4096;
const INTERFACE_DESCRIPTION: u32 = 1;

/// What is to be made, of which capture.
#[derive(Clone, Debug)]
pub struct Order {
    /// The file of the capture's manifest.
    pub manifest: Vec<u8>,
    /// Name of the file that is made.
    pub name: String,
    pub cut: Cut,
    /// How packets are chosen, for a person.
    pub chosen: String,
    pub why: String,
    pub tool: Tool,
}

/// A packet that may be kept.
#[derive(Clone, Copy, Debug)]
pub struct PacketSeen<'a> {
    /// From 1, as Wireshark numbers the file's packets.
    pub number: u64,
    /// Nanoseconds of UTC.
    pub time_ns: u64,
    pub frame: &'a [u8],
    /// Bytes on the wire.
    pub original_len: u32,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The file `OUT.redaction.json`.
    pub document: Vec<u8>,
    pub redaction: Redaction,
}

/// Nothing was made that may be used.
#[derive(Debug, thiserror::Error)]
pub enum RedactError {
    #[error("the capture's manifest: {0}")]
    Manifest(#[from] ManifestError),
    #[error(
        "the file is none of those that its manifest was signed for: it was changed, or is another capture's"
    )]
    NotSigned,
    #[error(
        "byte {at} of the file: {tear}; only a whole pcapng file, not compressed, can be redacted"
    )]
    Torn { at: u64, tear: Tear },
    #[error("no packet was chosen; nothing is made")]
    Empty,
    #[error(
        "the redaction's document would have {0} bytes, and {DOCUMENT_BYTES_MAX} are read: keep fewer packets"
    )]
    TooLarge(usize),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a capture's file to its end, and writes what is kept of it to `out`.
///
/// # Errors
/// [`RedactError`]; what is in `out` is not to be used.
pub fn redact(
    original: impl Read,
    out: impl Write,
    order: Order,
    key: &SecretKey,
    mut keeps: impl FnMut(PacketSeen<'_>) -> bool,
) -> Result<Made, RedactError> {
    let manifest = Manifest::unverified(&order.manifest)?;
    let reader = BufReader::with_capacity(READ_BYTES, Digesting::new(original));
    let mut blocks = Blocks::new(reader);
    let mut out = Out {
        writer: out,
        digester: Digester::default(),
    };
    let section = section(&manifest, &order);
    let (mut seen, mut kept) = (0, 0);
    let mut chunks: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    while let Some(block) = blocks.next_block()? {
        match block.kind {
            BlockKind::SectionHeader => out.put(&section)?,
            BlockKind::InterfaceDescription => {
                out.put(&whole(INTERFACE_DESCRIPTION, block.body))?;
            }
            BlockKind::EnhancedPacket => {
                seen += 1;
                let packet = PacketSeen {
                    number: seen,
                    time_ns: block.time().unwrap_or(0),
                    frame: frame(&block),
                    original_len: original_len(block.body),
                };
                if keeps(packet) {
                    kept += 1;
                    out.put(&order.cut.apply(&block))?;
                    let (first, last) = chunks_of(block.offset, block.len);
                    let within = (block.offset % CHUNK_BYTES as u64) as u32;
                    chunks.entry(first).or_default().push(within);
                    for more in first + 1..=last {
                        chunks.entry(more).or_default();
                    }
                }
            }
            // Names of addresses that are not kept, and accounts of packets that are not.
            BlockKind::NameResolution | BlockKind::InterfaceStatistics | BlockKind::Other(_) => {}
        }
    }
    let at = blocks.offset();
    if let Some(tear) = blocks.tear() {
        return Err(RedactError::Torn { at, tear });
    }
    out.writer.flush()?;
    let digester = std::mem::take(&mut blocks.reader_mut().get_mut().digester);
    let (digest, leaves) = digester.finish_with_leaves();
    let file = manifest
        .files
        .iter()
        .find(|file| file.readable().1 == Some(digest));
    let file = file.ok_or(RedactError::NotSigned)?;
    if kept == 0 {
        return Err(RedactError::Empty);
    }
    let paths = Paths::new(leaves);
    let chunks = chunks.into_iter().filter_map(|(index, packets)| {
        let (leaf, path) = paths.of(index)?;
        Some(SourceChunk {
            index,
            leaf,
            path,
            packets,
        })
    });
    let redaction = Redaction {
        capture_id: manifest.capture_id,
        key_id: key.public().id(),
        original: Original {
            name: file.readable().0.to_owned(),
            digest,
            packets: seen,
            manifest: String::from_utf8_lossy(&order.manifest).into_owned(),
        },
        redacted: Redacted {
            name: order.name,
            digest: out.digester.finish(),
            packets: kept,
        },
        chosen: one_line(&order.chosen, TEXT_MAX),
        cut: order.cut,
        chunks: chunks.collect(),
        made: Timestamp::now(),
        why: one_line(&order.why, TEXT_MAX),
        tool: order.tool,
    };
    let document = redaction.clone().sign(key)?;
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(RedactError::TooLarge(document.len()));
    }
    Ok(Made {
        document,
        redaction,
    })
}

/// The first and the last chunk that a block is in.
pub(super) fn chunks_of(offset: u64, len: u32) -> (u64, u64) {
    let size = CHUNK_BYTES as u64;
    let end = offset + u64::from(len).max(1) - 1;
    (offset / size, end / size)
}

fn original_len(body: &[u8]) -> u32 {
    let field = body.get(16..).and_then(<[u8]>::first_chunk);
    u32::from_le_bytes(field.copied().unwrap_or_default())
}

fn section(manifest: &Manifest, order: &Order) -> Vec<u8> {
    let (id, document) = (
        manifest.capture_id,
        format!("{}.redaction.json", order.name),
    );
    let comments = [
        format!(
            "REDACTED: chosen packets of capture {id}, {}; {}. Not the whole capture.",
            order.chosen, order.cut
        ),
        format!(
            "{document} proves what it was made from: remora verify {}",
            order.name
        ),
    ];
    let application = format!("{} {} redact", order.tool.name, order.tool.version);
    section_header(&Section {
        hardware: "",
        os: "",
        application: &application,
        comments: &comments,
    })
}

struct Out<W> {
    writer: W,
    digester: Digester,
}

impl<W: Write> Out<W> {
    fn put(&mut self, block: &[u8]) -> io::Result<()> {
        self.digester.update(block);
        self.writer.write_all(block)
    }
}

/// Digests what is read.
pub(super) struct Digesting<R> {
    reader: R,
    pub(super) digester: Digester,
}

impl<R> Digesting<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            digester: Digester::keeping_leaves(),
        }
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(bytes)?;
        self.digester.update(&bytes[..read]);
        Ok(read)
    }
}
