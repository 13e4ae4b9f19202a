//! Peers that say nothing, nonsense, or too much.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    super::{CONNECTIONS_MAX, HANDSHAKES_MAX, Refused},
    *,
};

#[tokio::test]
async fn nonsense_is_refused_and_counted() {
    let bed = Bed::new().await;
    for (n, nonsense) in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 64],
        &[0xff; 4096],
        // A handshake record that holds no hello.
        &[0x16, 3, 1, 0, 4, 2, 0, 0, 0],
    ]
    .into_iter()
    .enumerate()
    {
        let mut tcp = TcpStream::connect(bed.address).await.unwrap();
        tcp.write_all(nonsense).await.unwrap();
        // The end, or a reset: it is not kept open.
        let mut rest = Vec::new();
        let _reset = timeout(LIMIT, tcp.read_to_end(&mut rest)).await.unwrap();
        until("the count", async || {
            bed.counts.refused(Refused::NotTls) == n as u64 + 1
        })
        .await;
    }
    assert_eq!(bed.counts.accepted(), 0);
    works(&bed.connect(&bed.good()).await.unwrap()).await;
}

/// Three times as many silent peers as there are places: others come in at once, and each silent one goes.
#[tokio::test]
async fn silent_peers_hinder_nobody_and_are_sent_away() {
    let bed = Bed::new().await;
    let identity = bed.good();
    let kept = bed.connect(&identity).await.unwrap();
    let mut silent = Vec::new();
    for n in 0..3 * HANDSHAKES_MAX {
        let mut tcp = TcpStream::connect(bed.address).await.unwrap();
        if n % 2 == 0 {
            // The start of a record, whose rest does not come.
            tcp.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        }
        silent.push(tcp);
        if n % 32 == 31 {
            works(&bed.connect(&identity).await.unwrap()).await;
            works(&kept).await;
        }
    }
    for mut tcp in silent {
        let mut rest = Vec::new();
        let _reset = timeout(LIMIT, tcp.read_to_end(&mut rest)).await.unwrap();
    }
    let refused = |why| bed.counts.refused(why);
    until("all counts", async || {
        refused(Refused::CrowdedOut) + refused(Refused::Slow) == 3 * HANDSHAKES_MAX as u64
    })
    .await;
    assert!(refused(Refused::CrowdedOut) >= HANDSHAKES_MAX as u64);
    works(&kept).await;
}

#[tokio::test]
async fn connections_are_bounded_and_a_place_is_free_again_when_one_ends() {
    let bed = Bed::new().await;
    let identity = bed.good();
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        channels.push(bed.connect(&identity).await.unwrap());
    }
    let error = bed.connect(&identity).await.unwrap_err();
    assert!(matches!(error, ConnectError::Other { .. }), "{error:?}");
    assert_eq!(bed.counts.refused(Refused::TooMany), 1);
    works(&channels[0]).await;
    channels.pop();
    until("a free place", async || {
        bed.connect(&identity).await.is_ok()
    })
    .await;
}
