//! A response's body: whole, or as it comes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

/// Parts of an answer; an error breaks the connection.
pub(super) type Part = io::Result<Bytes>;

pub(super) enum Answer {
    Whole(Option<Bytes>),
    Live(mpsc::Receiver<Part>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let part = match &mut *self {
            Self::Whole(bytes) => bytes.take().map(Ok),
            Self::Live(parts) => ready!(parts.poll_recv(context)),
        };
        Poll::Ready(part.map(|part| part.map(Frame::data)))
    }
}
