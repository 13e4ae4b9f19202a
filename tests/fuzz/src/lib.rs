//! Fuzz targets: one for each reader of bytes that come from elsewhere.
//!
//! | target | bytes | come from |
//! |---|---|---|
//! | [`alert`] | a Falco alert, and what it maps to | whoever reaches the webhook |
//! | [`envelope`] | CloudEvents, Falco Talon's calls, and the alerts in them | whoever reaches the webhook |
//! | [`sigv4`] | a request that says to be signed | the same |
//! | [`rules`] | a rule file | an operator |
//! | [`filter_text`] | filter text, to terms or programs | users, rules |
//! | [`filter_program`] | a classic BPF program and a frame | API clients |
//! | [`record`] | a ring record, to pcapng blocks | the kernel; its packet from anyone |
//! | [`look_back`] | a copy of a look-back ring | the same, torn where it was written over |
//! | [`repair`] | a capture file after a crash | the disk |
//! | [`compressed`] | the same, of zstd frames | the disk |
//! | [`manifest`] | a manifest, to what it proves | whoever hands in evidence |
//! | [`archive`] | an archive of evidence, likewise | the same |
//! | [`redaction`] | a redacted file, its document, what it was made from | the same |
//!
//! Each is a function `check` that panics where a promise is broken: the reader is total, bounded,
//! and what it answers is so. [`target`] makes it a program; `cargo xtask fuzz` builds it with
//! libFuzzer. Without that (`cargo build -p remora-fuzz`) the program checks the files that it is
//! given, which shows what a crash was. The corpora of `sigv4` and `envelope` began with the recorded requests
//! of the real programs. `corpus/` is what libFuzzer has found worth keeping; the
//! tests here run all of it.
#![forbid(unsafe_code)]

pub mod alert;
pub mod archive;
pub mod compressed;
pub mod envelope;
mod evidence;
pub mod filter_program;
pub mod filter_text;
pub mod look_back;
pub mod manifest;
pub mod record;
pub mod redaction;
pub mod repair;
pub mod rules;
pub mod sigv4;

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// The program of a target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$name::check(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for file in std::env::args_os().skip(1) {
                $crate::$name::check(&std::fs::read(file)?);
            }
            Ok(())
        }
    };
}

/// Takes numbers and pieces off the front of fuzzed bytes; zeroes where there are none left.
struct Pieces<'a>(&'a [u8]);

impl<'a> Pieces<'a> {
    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.u8()))
    }

    /// At most `len` bytes.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        piece
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Runs every kept input of a target.
    fn replay(target: &str, check: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        let mut files = 0;
        for file in fs::read_dir(directory).expect("a corpus").flatten() {
            check(&fs::read(file.path()).expect("a file"));
            files += 1;
        }
        println!("{target}: {files} inputs");
        assert!(files > 10, "{target}: {files} inputs");
    }

    macro_rules! kept_inputs_pass {
        ($($target:ident),*) => {
            $(#[test]
            fn $target() {
                replay(stringify!($target), super::$target::check);
            })*
        };
    }

    kept_inputs_pass!(
        alert,
        archive,
        compressed,
        filter_program,
        filter_text,
        look_back,
        manifest,
        record,
        repair,
        rules
    );
}
