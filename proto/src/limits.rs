//! Sizes of messages, for servers and clients alike: both set them on what they decode.

/// Largest request, in bytes: a start with an alert of 64 KiB, 32 labels of 2 KiB, 256 names and two
/// filter programs of 32 KiB.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// Largest answer of a unary call, in bytes: a list of captures, each with its spec.
pub const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most bytes of pcapng blocks in one message of a stream. The largest packet (256 KiB) fits
/// with its block's frame, options and comment.
pub const STREAM_BLOCKS_BYTES_MAX: usize = 1024 * 1024;

/// Largest message of a stream: the blocks and protobuf's framing; the final state is smaller.
pub const STREAM_MESSAGE_BYTES_MAX: usize = STREAM_BLOCKS_BYTES_MAX + 1024;

/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// Longest coalescing key, in bytes.
pub const COALESCING_KEY_BYTES_MAX: usize = 128;
