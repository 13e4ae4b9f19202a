//! Traffic between pods: numbered, bulk, and single packets of each kind.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket},
};

use crate::{
    netns::Netns,
    node::{Node, Pod},
    run::{self, Proc},
    wait,
};

/// How long a generator may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What `udpgen` shall send.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    pub to: SocketAddrV4,
    /// Bytes of the Ethernet frame.
    pub size: usize,
    /// Packets; 0: until it is told to stop.
    pub count: u64,
    /// Packets per second; 0: as fast as it goes.
    pub rate: u64,
    /// Stands in each payload.
    pub run: u16,
    /// Where it runs; anywhere if it is not said.
    pub cpu: Option<usize>,
}

impl Stream {
    /// 64-byte frames, as fast as it goes.
    #[must_use]
    pub fn new(to: Ipv4Addr, port: u16, count: u64) -> Self {
        Self {
            to: SocketAddrV4::new(to, port),
            size: 64,
            count,
            rate: 0,
            run: 1,
            cpu: None,
        }
    }

    /// `udpgen` and its arguments, after a command that leads to its place.
    ///
    /// # Errors
    /// The tool is not built.
    pub fn command(&self, place: impl FnOnce(&Path) -> Command) -> Result<Command> {
        let mut command = place(&run::tool("udpgen")?);
        command
            .arg(self.to.to_string())
            .args(["--size", &self.size.to_string()])
            .args(["--count", &self.count.to_string()])
            .args(["--rate", &self.rate.to_string()])
            .args(["--run", &self.run.to_string()]);
        if let Some(cpu) = self.cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        Ok(command)
    }

    /// Sends all; answers how many the kernel took.
    ///
    /// # Errors
    /// The generator fails.
    pub fn send(&self, place: impl FnOnce(&Path) -> Command) -> Result<u64> {
        Ok(sent(&run::output(&mut self.command(place)?)?)?.packets)
    }

    /// Sends until [`Sender::stop`].
    ///
    /// # Errors
    /// The generator cannot be started.
    pub fn send_until_stopped(
        mut self,
        directory: &Path,
        place: impl FnOnce(&Path) -> Command,
    ) -> Result<Sender> {
        self.count = 0;
        let mut command = self.command(place)?;
        // Standard input is its stop signal; `Proc` would leave it at the null device.
        let (reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::from(reader));
        let name = format!("udpgen-{}-{}", self.run, self.to.port());
        Ok(Sender {
            process: Proc::spawn(&mut command, directory, &name)?,
            stop: writer,
        })
    }
}

/// What a generator did.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Packets that the kernel took.
    pub packets: u64,
    pub seconds: f64,
}

fn sent(output: &str) -> Result<Sent> {
    let value: serde_json::Value =
        serde_json::from_str(output.trim()).with_context(|| format!("udpgen printed {output}"))?;
    let sent = || {
        Some(Sent {
            packets: value["sent"].as_u64()?,
            seconds: value["seconds"].as_f64()?,
        })
    };
    sent().context("udpgen did not say how many it sent, and how long")
}

/// A generator that runs until it is told to stop.
#[derive(Debug)]
pub struct Sender {
    process: Proc,
    stop: std::io::PipeWriter,
}

impl Sender {
    /// Stops it; answers how many packets the kernel took.
    ///
    /// # Errors
    /// It failed.
    pub fn stop(self) -> Result<u64> {
        Ok(self.stop_timed()?.packets)
    }

    /// Stops it; answers also how long it sent.
    ///
    /// # Errors
    /// It failed.
    pub fn stop_timed(mut self) -> Result<Sent> {
        self.stop.write_all(b"\n")?;
        drop(self.stop);
        sent(&self.process.wait_success(LIMIT)?)
    }
}

/// A `udpsink` that drops all packets to a port by a socket filter: whoever sends there gets no
/// ICMP error. It is there when this returns.
///
/// # Errors
/// It cannot bind.
pub fn sink(port: u16, directory: &Path, place: impl FnOnce(&Path) -> Command) -> Result<Sink> {
    let (reader, writer) = std::io::pipe()?;
    let mut command = place(&run::tool("udpsink")?);
    command.arg(port.to_string()).stdin(Stdio::from(reader));
    let mut process = Proc::spawn(&mut command, directory, &format!("udpsink-{port}"))?;
    process.wait_for("ready", LIMIT)?;
    Ok(Sink {
        _process: process,
        _stop: writer,
    })
}

/// A running `udpsink`; ends when dropped.
#[derive(Debug)]
pub struct Sink {
    _process: Proc,
    _stop: std::io::PipeWriter,
}

/// Sends one UDP datagram.
///
/// # Errors
/// The kernel does not take it.
pub fn datagram(netns: &Netns, to: SocketAddr, payload: &[u8]) -> Result<()> {
    netns.enter(|| {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket
            .send_to(payload, to)
            .with_context(|| format!("failed to send to {to}"))?;
        Ok(())
    })
}

/// A datagram from a pod to a port of the node arrives. When it should have is told by one to `beside`
/// that is sent after it, and must arrive.
///
/// # Errors
/// Nothing arrives.
pub fn arrives(node: &Node, pod: &Pod, port: u16, beside: u16) -> Result<bool> {
    /// Between two CPUs a later one may come first.
    const LATE: Duration = Duration::from_millis(100);
    let bound = |port: u16| -> Result<(UdpSocket, SocketAddr)> {
        let at = SocketAddr::new(node.address(), port);
        let socket = node.netns().enter(|| Ok(UdpSocket::bind(at)?))?;
        socket.set_read_timeout(Some(wait::patient(LATE * 50)))?;
        Ok((socket, at))
    };
    let (asked, to) = bound(port)?;
    datagram(pod.netns(), to, b"asked")?;
    if beside != port {
        let (told, to) = bound(beside)?;
        datagram(pod.netns(), to, b"told")?;
        told.recv(&mut [0; 8]).context("nothing arrives")?;
        asked.set_read_timeout(Some(LATE))?;
    }
    Ok(asked.recv(&mut [0; 8]).is_ok())
}

/// Connects to a port where nobody listens.
///
/// # Errors
/// The answer is anything but a reset.
pub fn connect_refused(netns: &Netns, to: SocketAddr) -> Result<()> {
    netns.enter(|| match TcpStream::connect_timeout(&to, LIMIT) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{to} did not answer by a reset")),
        Ok(_) => anyhow::bail!("somebody listens at {to}"),
    })
}

/// One TCP connection from `client` to `server`, `bytes` each way.
///
/// # Errors
/// It does not come about.
pub fn tcp_exchange(client: &Netns, server: &Netns, at: SocketAddr, bytes: usize) -> Result<()> {
    use std::io::Read as _;
    let listener = server.enter(|| Ok(TcpListener::bind(at)?))?;
    let mut near = client.enter(|| {
        TcpStream::connect_timeout(&at, LIMIT).with_context(|| format!("failed to connect to {at}"))
    })?;
    let (mut far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(LIMIT))?;
    }
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let mut all = vec![0; bytes];
            far.read_exact(&mut all)?;
            far.write_all(&all)?;
            // The client closes first: its end stays in TIME_WAIT, not the listener's.
            far.read_to_end(&mut Vec::new())?;
            Ok(())
        });
        let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        // The echo goes on while this still sends: a socket buffer may be smaller than `bytes`.
        let mut back = near.try_clone()?;
        let returned = scope.spawn(move || -> Result<Vec<u8>> {
            let mut all = vec![0; bytes];
            back.read_exact(&mut all)?;
            Ok(all)
        });
        near.write_all(&sent)?;
        let all = joined(returned)?;
        anyhow::ensure!(all == sent, "the echo differs");
        near.shutdown(std::net::Shutdown::Both)?;
        joined(echo)
    })
}

/// Pings an address.
///
/// # Errors
/// An answer is missing.
pub fn ping(netns: &Netns, to: IpAddr, count: u32) -> Result<()> {
    run::output(
        netns
            .command("ping")
            .args(["-n", "-i", "0.01", "-W", "20", "-c"])
            .arg(count.to_string())
            .arg(to.to_string()),
    )?;
    Ok(())
}

/// Each kind of packet that the hooks see differently, in and out of `web`.
///
/// # Errors
/// Some traffic does not come about.
pub fn all_kinds(web: &Pod, api: &Pod) -> Result<()> {
    // Whoever is asked first must ask back: ARP and neighbour discovery.
    for pod in [web, api] {
        pod.netns().ip("neigh flush all")?;
    }
    ping(api.netns(), web.ipv4().into(), 3)?;
    ping(web.netns(), api.ipv4().into(), 3)?;
    ping(api.netns(), web.ipv6().into(), 3)?;
    ping(web.netns(), api.ipv6().into(), 3)?;
    // TCP both ways, more than a segment: 64 KiB GSO packets where the veth takes them.
    for (client, server) in [(web, api), (api, web)] {
        let at = SocketAddr::from((server.ipv4(), 8080));
        tcp_exchange(client.netns(), server.netns(), at, 2_000_000)?;
        let at = SocketAddr::from((server.ipv6(), 8080));
        tcp_exchange(client.netns(), server.netns(), at, 100_000)?;
        connect_refused(client.netns(), (server.ipv4(), 81).into())?;
        connect_refused(client.netns(), (server.ipv6(), 81).into())?;
        // To a port where nobody listens: an ICMP error comes back. Then in fragments.
        for to in [
            SocketAddr::from((server.ipv4(), 9999)),
            (server.ipv6(), 9999).into(),
        ] {
            datagram(client.netns(), to, b"nobody")?;
            datagram(client.netns(), to, &[7; 4000])?;
        }
        datagram(client.netns(), "224.0.0.251:5353".parse()?, b"multicast")?;
    }
    Ok(())
}

/// Sends frames as they are, Ethernet header and all, out of an interface.
///
/// # Errors
/// There is no such interface, or the kernel does not take them.
pub fn frames(netns: &Netns, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
    netns.enter(|| {
        let address = getifaddrs()?
            .filter(|found| found.interface_name == interface)
            .find_map(|found| found.address?.as_link_addr().copied())
            .with_context(|| format!("no interface {interface}"))?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        for frame in frames {
            sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty())
                .with_context(|| format!("a frame of {} bytes was not taken", frame.len()))?;
        }
        Ok(())
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
