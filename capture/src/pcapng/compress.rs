//! `.pcapng.zst`: blocks in zstd frames (RFC 8878), which Wireshark opens.
//!
//! ```text
//! frame: │ magic, header │ blocks, a flush after each batch … │ 01 00 00 │ next frame …
//! ```
//! After every batch the stream is flushed, so all that was handed over can be read back whatever
//! happens next. A flush ends on a zstd block, so a frame can be ended at any such place by an
//! empty raw last block ([`FRAME_END`]); that is how every frame ends, in order or after an error.
//! A frame begins anew every [`FRAME_BYTES`], so that after a crash only the last one is open.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
};

use zstd::stream::raw::{Decoder, Encoder, InBuffer, Operation as _, OutBuffer};

use super::repair::{Scan, scan};

/// Bytes of blocks after which a new frame begins.
pub const FRAME_BYTES: usize = 1 << 20;
/// An empty raw block that is the frame's last (RFC 8878, section 3.1.1.2).
pub const FRAME_END: [u8; 3] = [1, 0, 0];
/// zstd's fastest level of its usual range: a capture must keep up first.
const LEVEL: i32 = 1;
/// Room that is made for the encoder's output at a time.
const OUT_BYTES: usize = 128 << 10;

/// Bytes of a zstd block's header.
const BLOCK_HEADER: usize = 3;

/// Blocks to frames.
pub struct Compressor {
    encoder: Encoder<'static>,
    out: Vec<u8>,
    /// Bytes in the running frame; 0 when the next batch begins one.
    frame_bytes: usize,
    /// What was kept ends in a frame without its end.
    open: bool,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor")
            .field("frame_bytes", &self.frame_bytes)
            .finish_non_exhaustive()
    }
}

impl Compressor {
    /// # Errors
    /// zstd has no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            encoder: Encoder::new(LEVEL)?,
            out: Vec::new(),
            frame_bytes: 0,
            open: false,
        })
    }

    /// The bytes to append for `blocks`; none for none. Then tell whether they were kept: by
    /// [`Compressor::kept`] or [`Compressor::lost`].
    ///
    /// # Errors
    /// zstd's; as if the bytes were lost.
    pub fn compress(&mut self, blocks: &[u8]) -> io::Result<&[u8]> {
        self.out.clear();
        // A frame begins with its first byte.
        if blocks.is_empty() {
            return Ok(&self.out);
        }
        if self.frame_bytes == 0 || self.frame_bytes >= FRAME_BYTES {
            if self.open {
                self.out.extend_from_slice(&FRAME_END);
            }
            self.encoder.reinit()?;
            self.frame_bytes = 0;
        }
        let mut input = InBuffer::around(blocks);
        while input.pos < blocks.len() {
            let mut out = room(&mut self.out);
            self.encoder.run(&mut input, &mut out)?;
        }
        while self.encoder.flush(&mut room(&mut self.out))? > 0 {}
        self.frame_bytes += blocks.len();
        Ok(&self.out)
    }

    /// The last bytes are in the file.
    pub fn kept(&mut self) {
        self.open |= self.frame_bytes > 0;
    }

    /// The last bytes are not in the file, which ends where it did before them.
    pub fn lost(&mut self) {
        self.frame_bytes = 0;
    }

    /// What ends the running frame; then tell by [`Compressor::ended`] that it is in the file.
    #[must_use]
    pub fn end(&self) -> &'static [u8] {
        if self.open { &FRAME_END } else { &[] }
    }

    /// The frame's end is in the file.
    pub fn ended(&mut self) {
        self.open = false;
        self.frame_bytes = 0;
    }
}

fn room(out: &mut Vec<u8>) -> OutBuffer<'_, Vec<u8>> {
    let at = out.len();
    out.reserve(OUT_BYTES);
    OutBuffer::around_pos(out, at)
}

/// One whole frame of `blocks`.
///
/// # Errors
/// zstd has no memory.
pub fn frame(blocks: &[u8]) -> io::Result<Vec<u8>> {
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    let mut compressor = Compressor::new()?;
    let mut frame = compressor.compress(blocks)?.to_vec();
    frame.extend_from_slice(&FRAME_END);
    Ok(frame)
}

/// Where a frame begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FrameStart {
    /// In the file.
    packed: u64,
    /// In the blocks.
    plain: u64,
}

/// Reads the blocks back. What is broken or torn ends them ([`Unpacked::is_torn`]).
pub struct Unpacked<R> {
    reader: R,
    decoder: Decoder<'static>,
    input: Vec<u8>,
    used: usize,
    frames: Vec<FrameStart>,
    end: FrameStart,
    in_frame: bool,
    /// Bytes that the decoder would like next.
    wanted: usize,
    /// The decoder may hold decoded bytes.
    pending: bool,
    broken: bool,
}

impl<R: Read> Unpacked<R> {
    /// # Errors
    /// zstd has no memory.
    pub fn new(reader: R) -> io::Result<Self> {
        Ok(Self {
            reader,
            decoder: Decoder::new()?,
            input: Vec::with_capacity(OUT_BYTES),
            used: 0,
            frames: Vec::new(),
            end: FrameStart::default(),
            in_frame: false,
            wanted: 0,
            pending: false,
            broken: false,
        })
    }

    /// The bytes did not end with a whole frame.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.in_frame || self.broken
    }

    /// What was read is no zstd.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// What is read from. After its end there may be more of it.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !buf.is_empty() && !self.broken {
            if self.used == self.input.len() && !self.pending {
                self.input.clear();
                self.used = 0;
                let reader = &mut self.reader;
                if reader.take(OUT_BYTES as u64).read_to_end(&mut self.input)? == 0 {
                    break;
                }
            }
            if !self.in_frame {
                self.frames.push(self.end);
                self.in_frame = true;
            }
            // One zstd block at a time, without the next one's header: what a call has decoded is
            // gone if it fails.
            let step = self
                .wanted
                .checked_sub(BLOCK_HEADER)
                .unwrap_or(self.wanted)
                .max(1);
            let end = self.input.len().min(self.used + step);
            let mut input = InBuffer::around(&self.input[self.used..end]);
            let room = buf.len();
            let mut out = OutBuffer::around(&mut *buf);
            let Ok(missing) = self.decoder.run(&mut input, &mut out) else {
                self.broken = true;
                break;
            };
            let (read, made) = (input.pos, out.pos());
            self.used += read;
            self.wanted = missing;
            self.end.packed += read as u64;
            self.end.plain += made as u64;
            self.in_frame = missing > 0;
            // A small buffer leaves decoded bytes behind, for which no input is needed.
            self.pending = self.in_frame && made == room;
            if made > 0 {
                return Ok(made);
            }
        }
        Ok(0)
    }
}

/// Cuts a compressed file (open for reading and writing) to its whole blocks and says what they
/// hold; [`Scan::whole_bytes`] are the file's, compressed. The file's position is its end.
///
/// The frame that the tear is in is written anew with the whole blocks that it held.
///
/// # Errors
/// The file's.
pub fn repair_compressed(file: &mut File) -> io::Result<Scan> {
    file.seek(SeekFrom::Start(0))?;
    let mut unpacked = Unpacked::new(&mut *file)?;
    let mut scan = scan(&mut unpacked)?;
    let (torn, frames) = (unpacked.is_torn(), unpacked.frames);
    if torn || scan.tear.is_some() {
        let start = frames
            .into_iter()
            .rfind(|frame| frame.plain <= scan.whole_bytes)
            .unwrap_or_default();
        let mut blocks = Vec::new();
        file.seek(SeekFrom::Start(start.packed))?;
        Unpacked::new(&mut *file)?
            .take(scan.whole_bytes - start.plain)
            .read_to_end(&mut blocks)?;
        file.set_len(start.packed)?;
        file.seek(SeekFrom::Start(start.packed))?;
        if !blocks.is_empty() {
            file.write_all(&frame(&blocks)?)?;
        }
    }
    scan.whole_bytes = file.seek(SeekFrom::End(0))?;
    Ok(scan)
}
