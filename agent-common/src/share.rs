//! How sessions share the ring when it is nearly full, so that one's flood does not take the room of
//! another.
//!
//! ```text
//! waiting in the ring: 0 ───────────────────── 5/8 ────────────────────── 1
//!                        whoever comes first    each session its share
//! ```
//! From [`tight_from`] on a session may put in as much as its share of [`tight_room`], in a window that
//! begins where it first does. Another window begins when the reader has passed the beginning of the
//! one before. So what lies in the ring is of two windows at the most; and all sessions' windows, with what
//! CPUs may put in until they notice (a sixteenth of the ring, see `REMORA_ASK_BYTES`), find room:
//! 5/8 + 1/16 + 2 × 1/8 < 1. A record that several sessions take is charged to each in part. A record that is
//! larger than the share finds no room there at all.
//!
//! It starts above the half of the ring that a slow writer may hold back (`--pin`).

/// Bytes waiting from which on sessions are held to their shares.
#[must_use]
pub const fn tight_from(ring_bytes: u64) -> u64 {
    ring_bytes / 8 * 5
}

/// Bytes that all sessions share from there on, each in a window of its own.
#[must_use]
pub const fn tight_room(ring_bytes: u64) -> u64 {
    ring_bytes / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_windows_of_all_sessions_find_room_beyond_the_part_for_all() {
        let mut bytes = 256 << 10;
        while bytes <= 1 << 30 {
            let unnoticed = bytes / 16;
            assert!(tight_from(bytes) + unnoticed + 2 * tight_room(bytes) < bytes);
            assert!(tight_from(bytes) > bytes / 2);
            bytes *= 2;
        }
    }
}
