//! An API server for one controller: lists by the page, and watches in which pods change.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::world::World;

/// Longest request head.
const HEAD_MAX: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) events: AtomicU64,
}

#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) world: World,
    /// Pods that change each second.
    pub(crate) changes: u64,
    pub(crate) load: Arc<Load>,
}

impl Api {
    pub(crate) async fn serve(self, listener: TcpListener) -> Result<()> {
        loop {
            let (connection, _) = listener.accept().await?;
            let api = self.clone();
            tokio::spawn(async move {
                // Ends when the other side does.
                let _ended = api.connection(connection).await;
            });
        }
    }

    async fn connection(&self, mut connection: TcpStream) -> Result<()> {
        connection.set_nodelay(true)?;
        let mut head = Vec::new();
        loop {
            head.clear();
            while !head.ends_with(b"\r\n\r\n") {
                anyhow::ensure!(head.len() < HEAD_MAX, "a long head");
                head.push(connection.read_u8().await?);
            }
            self.load.requests.fetch_add(1, Ordering::Relaxed);
            let head = String::from_utf8_lossy(&head).into_owned();
            let target = head.split(' ').nth(1).unwrap_or_default();
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let plural = path.rsplit('/').next().unwrap_or_default();
            let value = |name: &str| {
                query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            };
            if value("watch") == Some("true") {
                let seconds = value("timeoutSeconds")
                    .and_then(|s| s.parse().ok())
                    .unwrap_or(290);
                self.watch(&mut connection, plural, seconds).await?;
            } else {
                let limit = value("limit")
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(usize::MAX);
                let from = value("continue").and_then(|n| n.parse().ok()).unwrap_or(0);
                self.list(&mut connection, plural, from, limit).await?;
            }
        }
    }

    async fn list(
        &self,
        connection: &mut TcpStream,
        plural: &str,
        from: usize,
        limit: usize,
    ) -> Result<()> {
        let all = self.count(plural);
        let until = all.min(from.saturating_add(limit));
        let items: Vec<_> = (from..until).map(|n| self.object(plural, n, 1)).collect();
        let next = if until < all {
            until.to_string()
        } else {
            String::new()
        };
        let list = json!({
            "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": "1", "continue": next},
        });
        let body = serde_json::to_vec(&list)?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.load
            .bytes
            .fetch_add(body.len() as u64, Ordering::Relaxed);
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(&body).await?;
        Ok(())
    }

    async fn watch(&self, connection: &mut TcpStream, plural: &str, seconds: u64) -> Result<()> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.write_all(head.as_bytes()).await?;
        let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let mut version = 1;
        while tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if plural != "pods" {
                continue;
            }
            let mut lines = Vec::new();
            for _ in 0..self.changes / 10 {
                version += 1;
                let pod = (version as usize).wrapping_mul(7919) % self.world.pods;
                let event =
                    json!({"type": "MODIFIED", "object": self.object("pods", pod, version)});
                serde_json::to_writer(&mut lines, &event)?;
                lines.push(b'\n');
                self.load.events.fetch_add(1, Ordering::Relaxed);
            }
            if lines.is_empty() {
                continue;
            }
            self.load
                .bytes
                .fetch_add(lines.len() as u64, Ordering::Relaxed);
            connection
                .write_all(format!("{:x}\r\n", lines.len()).as_bytes())
                .await?;
            connection.write_all(&lines).await?;
            connection.write_all(b"\r\n").await?;
        }
        connection.write_all(b"0\r\n\r\n").await?;
        Ok(())
    }

    fn count(&self, plural: &str) -> usize {
        match plural {
            "pods" => self.world.pods,
            "replicasets" | "endpointslices" => self.world.sets(),
            "nodes" => self.world.nodes,
            _ => 0,
        }
    }

    fn object(&self, plural: &str, number: usize, version: u64) -> Value {
        match plural {
            "pods" => self.world.pod(number, version),
            "replicasets" => World::replica_set(number),
            "endpointslices" => World::slice(number),
            _ => json!({"metadata": {"name": World::node_name(number)}}),
        }
    }
}
