//! A classic BPF program from outside: checked, run, listed, translated.
//!
//! ```text
//! instructions (u16, little endian) | 8 bytes each | the frame
//! ```

use remora_agent::kernel::translate::{Link, translate};
use remora_capture::filter::program::{Frame, INSTRUCTION_BYTES, PROGRAM_MAX, Program};

use crate::Pieces;

/// # Panics
/// A program that was let in does harm, or is not the same on the wire.
pub fn check(data: &[u8]) {
    let mut pieces = Pieces(data);
    let instructions = usize::from(pieces.u16());
    let bytes = pieces.take(instructions * INSTRUCTION_BYTES);
    let frame = pieces.rest();
    let program = match Program::from_bytes(bytes) {
        Ok(program) => program,
        Err(error) => {
            assert!(error.to_string().len() < 4096, "a message is bounded");
            return;
        }
    };
    assert!((1..=PROGRAM_MAX).contains(&program.instructions().len()));
    assert_eq!(program.to_bytes(), bytes);
    // Ends, for jumps go forward; a pass more would be a hang.
    let _verdict = program.run(Frame::whole(frame));
    let _verdict = program.run(Frame::network(frame));
    assert_eq!(
        program.to_string().lines().count(),
        program.instructions().len()
    );
    for link in [Link::Ethernet, Link::Ip] {
        // What no way leads to is left out, so it may be shorter than the program.
        let _translated = translate(&[(0, &program), (63, &program)], link, &[]);
    }
}
