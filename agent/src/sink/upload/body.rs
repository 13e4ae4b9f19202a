//! A file as a request's body: read piece by piece, as the connection takes them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use tokio::{fs::File, io::AsyncReadExt as _};

/// Bytes read at a time: what an upload takes of memory, some times over.
const PIECE: usize = 128 << 10;

/// The file's first `bytes`; `sent` counts what the connection has asked for.
pub(super) fn pieces(
    file: File,
    bytes: u64,
    sent: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, bytes), move |(mut file, left)| {
        let sent = Arc::clone(&sent);
        async move {
            if left == 0 {
                return Ok(None);
            }
            let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let mut piece = BytesMut::with_capacity(most);
            let mut part = (&mut file).take(most as u64);
            while piece.len() < most {
                if part.read_buf(&mut piece).await? == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the file is shorter than its manifest says",
                    ));
                }
            }
            sent.fetch_add(piece.len() as u64, Relaxed);
            Ok(Some((piece.freeze(), (file, left - most as u64))))
        }
    })
}
