//! A connection that says nothing for too long is read to its end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Fails to read after a silence; HTTP/2 has no such limit of its own.
#[derive(Debug)]
pub(super) struct Idle<T> {
    io: T,
    silence: Pin<Box<Sleep>>,
    limit: Duration,
}

impl<T> Idle<T> {
    pub(super) fn new(io: T, limit: Duration) -> Self {
        Self {
            io,
            silence: Box::pin(sleep(limit)),
            limit,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Idle<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buf) {
            let next = Instant::now() + self.limit;
            self.silence.as_mut().reset(next);
            return Poll::Ready(read);
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Idle<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_silence_ends_a_connection() {
        let limit = Duration::from_secs(120);
        let (mut far, near) = tokio::io::duplex(64);
        let mut idle = Idle::new(near, limit);
        for _ in 0..5 {
            let write = async {
                sleep(limit - Duration::from_secs(1)).await;
                far.write_all(b"x").await
            };
            let (wrote, read) = tokio::join!(write, idle.read_u8());
            wrote.unwrap();
            assert_eq!(read.unwrap(), b'x');
        }
        let error = idle.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
