//! What a redacted file proves.

use std::io::{self, BufReader, Read};

use super::{
    Redaction,
    cut::{frame, whole},
    make::{Digesting, READ_BYTES, chunks_of},
};
use crate::{
    evidence::{CHUNK_BYTES, FileDigest, Manifest, PublicKey, Report},
    pcapng::{BlockKind, Blocks},
    text::{escape, excerpt},
};

/// Characters of a name that are told.
const NAME_MAX: usize = 120;

/// Who may have signed what. Apart, so that who redacts cannot sign as the node.
#[derive(Clone, Copy, Debug)]
pub struct RedactionKeys<'a> {
    pub node: &'a [PublicKey],
    pub redactor: &'a [PublicKey],
}

type Walk<R> = Blocks<BufReader<Digesting<R>>>;

/// Looks at a redaction's document and its file, and, if it is at hand, at the original.
///
/// # Errors
/// A reader's.
pub fn verify_redaction(
    document: &[u8],
    redacted: impl Read,
    original: Option<impl Read>,
    keys: RedactionKeys<'_>,
) -> io::Result<Report> {
    let mut report = Report::default();
    let redaction = match Redaction::open(document, keys.redactor) {
        Ok(redaction) => redaction,
        Err(error) => {
            report.broken.push(format!("the redaction: {error}"));
            return Ok(report);
        }
    };
    report.captures = 1;
    let origin = origin(&redaction, keys.node);
    let parts = [origin, places(&redaction)];
    for part in parts {
        match part {
            Ok(proved) => report.proved.push(proved),
            Err(fault) => report.broken.push(fault),
        }
    }
    let has_original = original.is_some();
    match walk(&redaction, redacted, original)? {
        Err(fault) => report.broken.push(fault),
        Ok(()) => tell(&redaction, has_original, &mut report),
    }
    Ok(report)
}

fn tell(redaction: &Redaction, has_original: bool, report: &mut Report) {
    let Redaction {
        redacted, original, ..
    } = redaction;
    let why = match redaction.why.as_str() {
        "" => String::new(),
        why => format!(": {}", escape(why)),
    };
    report.proved.push(format!(
        "{}: {} of {} packets, {}, {}, as key {} signed it on {}{why}",
        shown(&redacted.name),
        redacted.packets,
        original.packets,
        escape(&redaction.chosen),
        redaction.cut,
        redaction.key_id,
        redaction.made,
    ));
    if has_original {
        report.proved.push(format!(
            "each of its {} packets is the original's, byte for byte as far as it was kept",
            redacted.packets
        ));
    } else {
        report.unproved.push(format!(
            "that its packets are those of the original: by the word of who redacted; --original {} proves it",
            shown(&original.name)
        ));
    }
}

/// The original is a file that the node signed.
fn origin(redaction: &Redaction, keys: &[PublicKey]) -> Result<String, String> {
    let original = &redaction.original;
    let manifest = Manifest::open(original.manifest.as_bytes(), keys)
        .map_err(|error| format!("the original's manifest: {error}"))?;
    let id = redaction.capture_id;
    if manifest.capture_id != id {
        return Err(format!(
            "the manifest in it is of {}, not of {id}",
            manifest.capture_id
        ));
    }
    let is_signed = manifest
        .files
        .iter()
        .any(|file| file.readable() == (original.name.as_str(), Some(original.digest)));
    if !is_signed {
        return Err(format!(
            "{}: no file that the manifest of {id} was signed for",
            shown(&original.name)
        ));
    }
    let link = &manifest.chain;
    Ok(format!(
        "made from {}, {} bytes, SHA-256 {}, as it was signed on {} (number {} of chain {})",
        shown(&original.name),
        original.digest.bytes,
        original.digest.sha256,
        shown(&manifest.node),
        link.sequence,
        link.chain
    ))
}

/// The chunks are the original's, each named once and in order.
fn places(redaction: &Redaction) -> Result<String, String> {
    let tree = &redaction.original.digest.chunks;
    let mut before = None;
    for chunk in &redaction.chunks {
        let index = chunk.index;
        if before.is_some_and(|before| index <= before) {
            return Err(format!("chunk {index} of the original is out of order"));
        }
        before = Some(index);
        if tree.size != CHUNK_BYTES as u64 || !tree.proves(index, chunk.leaf, &chunk.path) {
            return Err(format!("chunk {index} is none of the original's"));
        }
        let within = chunk.packets.iter().all(|at| u64::from(*at) < tree.size);
        if !within || !chunk.packets.is_sorted_by(|a, b| a < b) {
            return Err(format!("the packets of chunk {index} are out of order"));
        }
    }
    Ok(format!(
        "its packets' places are in {} of the original's {} chunks, by their audit paths",
        redaction.chunks.len(),
        tree.count
    ))
}

/// The file is as it was signed, and the original's, if that is there.
fn walk(
    redaction: &Redaction,
    redacted: impl Read,
    original: Option<impl Read>,
) -> io::Result<Result<(), String>> {
    let mut file = blocks(redacted);
    let mut source = original.map(|original| Source(blocks(original)));
    let mut offsets = redaction.offsets();
    let mut packets = 0;
    while let Some(block) = file.next_block()? {
        let expected = match block.kind {
            BlockKind::SectionHeader => match &mut source {
                Some(source) => source.section()?,
                None => Ok(()),
            },
            BlockKind::InterfaceDescription => match &mut source {
                Some(source) => source.interface(block.body)?,
                None => Ok(()),
            },
            BlockKind::EnhancedPacket => {
                packets += 1;
                let bytes = frame(&block);
                let is_cut = redaction.cut.kept(bytes) == bytes.len();
                match (offsets.next(), &mut source) {
                    (None, _) => Err("it has more packets than its document tells".to_owned()),
                    _ if !is_cut => Err(format!("packet {packets} is longer than it may be")),
                    (Some(_), None) => Ok(()),
                    (Some(offset), Some(source)) => {
                        let found = whole(6, block.body);
                        source.packet(offset, redaction, &found)?
                    }
                }
            }
            BlockKind::NameResolution | BlockKind::InterfaceStatistics | BlockKind::Other(_) => {
                Err("it has a block that no redaction has".to_owned())
            }
        };
        if let Err(fault) = expected {
            let name = shown(&redaction.redacted.name);
            return Ok(Err(format!("{name}, packet {packets}: {fault}")));
        }
    }
    let name = shown(&redaction.redacted.name);
    if digest(&mut file)? != redaction.redacted.digest {
        return Ok(Err(format!("{name}: its bytes were changed")));
    }
    if file.tear().is_some() || offsets.next().is_some() || packets != redaction.redacted.packets {
        return Ok(Err(format!(
            "{name}: its packets are not those of its document"
        )));
    }
    if let Some(Source(mut blocks)) = source
        && digest(&mut blocks)? != redaction.original.digest
    {
        let other = "the file given as the original is another one, or was changed";
        return Ok(Err(other.to_owned()));
    }
    Ok(Ok(()))
}

fn blocks<R: Read>(reader: R) -> Walk<R> {
    Blocks::new(BufReader::with_capacity(READ_BYTES, Digesting::new(reader)))
}

/// Of all the file.
fn digest(blocks: &mut Walk<impl Read>) -> io::Result<FileDigest> {
    io::copy(blocks.reader_mut(), &mut io::sink())?;
    Ok(std::mem::take(&mut blocks.reader_mut().get_mut().digester).finish())
}

/// The original, read along.
struct Source<R>(Walk<R>);

impl<R: Read> Source<R> {
    fn section(&mut self) -> io::Result<Result<(), String>> {
        self.until(|kind| kind == BlockKind::SectionHeader, &[])
    }

    fn interface(&mut self, body: &[u8]) -> io::Result<Result<(), String>> {
        self.until(|kind| kind == BlockKind::InterfaceDescription, body)
    }

    /// Goes to the next section or interface, which has this body; of a section any will do.
    fn until(
        &mut self,
        is_it: impl Fn(BlockKind) -> bool,
        body: &[u8],
    ) -> io::Result<Result<(), String>> {
        let missing = "the original has no such section or interface there";
        while let Some(block) = self.0.next_block()? {
            let same = match block.kind {
                BlockKind::SectionHeader => true,
                BlockKind::InterfaceDescription => block.body == body,
                _ => continue,
            };
            let is_fit = is_it(block.kind) && same;
            return Ok(is_fit.then_some(()).ok_or_else(|| missing.to_owned()));
        }
        Ok(Err(missing.to_owned()))
    }

    /// Goes to the packet whose block begins there; `found` is what is kept of it.
    fn packet(
        &mut self,
        offset: u64,
        redaction: &Redaction,
        found: &[u8],
    ) -> io::Result<Result<(), String>> {
        while let Some(block) = self.0.next_block()? {
            match block.kind {
                BlockKind::SectionHeader | BlockKind::InterfaceDescription => {
                    return Ok(Err("an interface of the original is missing".to_owned()));
                }
                BlockKind::EnhancedPacket if block.offset == offset => {
                    let (first, last) = chunks_of(block.offset, block.len);
                    let are_named = (first..=last).all(|index| {
                        redaction
                            .chunks
                            .binary_search_by_key(&index, |chunk| chunk.index)
                            .is_ok()
                    });
                    return Ok(if redaction.cut.apply(&block) != found {
                        Err("it is not what the original has there".to_owned())
                    } else if !are_named {
                        Err("a chunk that it is in is not named".to_owned())
                    } else {
                        Ok(())
                    });
                }
                _ if block.offset > offset => break,
                _ => {}
            }
        }
        Ok(Err(format!(
            "the original has no packet at byte {offset}, where it is said to be from"
        )))
    }
}

fn shown(name: &str) -> String {
    excerpt(name, NAME_MAX).to_string()
}
