//! Links come and go, and the watcher tells it in order.

use std::{collections::BTreeMap, fmt::Write as _, os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use remora_agent::target::{InterfaceKind, LinkEvent, LinkWatcher};

use crate::support::{PATIENCE, Sleeper, enter_own_node, ip, ip_batch};

/// All events that have come by now.
fn drain(watcher: &mut LinkWatcher) -> Result<Vec<LinkEvent>> {
    let mut events = Vec::new();
    while let Some(event) = watcher.next(Duration::ZERO)? {
        events.push(event);
    }
    Ok(events)
}

fn next(watcher: &mut LinkWatcher) -> Result<LinkEvent> {
    watcher.next(PATIENCE)?.context("no event")
}

/// The links as they are, by a dump.
fn links_now() -> Result<BTreeMap<u32, String>> {
    let mut links = BTreeMap::new();
    for event in drain(&mut LinkWatcher::new()?)? {
        match event {
            LinkEvent::Up(interface) => links.insert(interface.ifindex, interface.name),
            other => anyhow::bail!("{other:?} in a first dump"),
        };
    }
    Ok(links)
}

#[test]
fn the_first_events_are_the_links_that_exist() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    let mut watcher = LinkWatcher::new()?;
    let kinds: BTreeMap<_, _> = drain(&mut watcher)?
        .into_iter()
        .filter_map(|event| match event {
            LinkEvent::Up(interface) => Some((interface.name, interface.kind)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds.get("lo"), Some(&InterfaceKind::Loopback));
    assert_eq!(kinds.get("vpod"), Some(&InterfaceKind::Veth));
    assert_eq!(watcher.next(Duration::from_millis(20))?, None);
    Ok(())
}

#[test]
fn two_hundred_veths_with_one_index_come_and_go_in_order() -> Result<()> {
    const ROUNDS: u32 = 200;
    const INDEX: u32 = 4242;
    if !enter_own_node()? {
        return Ok(());
    }
    let mut watcher = LinkWatcher::new()?;
    drain(&mut watcher)?;
    let mut commands = String::new();
    for round in 0..ROUNDS {
        writeln!(
            commands,
            "link add v{round} index {INDEX} type veth peer name p{round}"
        )?;
        writeln!(commands, "link del v{round}")?;
    }
    ip_batch(&commands)?;
    let mut told = Vec::new();
    for event in drain(&mut watcher)? {
        match event {
            LinkEvent::Up(interface) if interface.ifindex == INDEX => told.push(interface.name),
            LinkEvent::Gone { ifindex: INDEX } => told.push("gone".to_owned()),
            LinkEvent::Resync => anyhow::bail!("events were lost"),
            _ => {}
        }
    }
    let expected: Vec<_> = (0..ROUNDS)
        .flat_map(|round| [format!("v{round}"), "gone".to_owned()])
        .collect();
    assert_eq!(told, expected);
    Ok(())
}

#[test]
fn after_lost_events_a_follower_has_the_links_that_are_there() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    ip(&[
        "link", "add", "early", "type", "veth", "peer", "name", "early-p",
    ])?;
    let mut watcher = LinkWatcher::with_receive_buffer(16 * 1024)?;
    let mut followed = BTreeMap::new();
    let mut events = drain(&mut watcher)?;
    let mut commands = "link del early\n".to_owned();
    for n in 0..200 {
        writeln!(commands, "link add v{n} type veth peer name p{n}")?;
        if n % 3 == 0 {
            writeln!(commands, "link del v{n}")?;
        }
    }
    ip_batch(&commands)?;
    events.extend(drain(&mut watcher)?);
    ensure!(events.contains(&LinkEvent::Resync), "nothing was lost");
    for event in events {
        match event {
            LinkEvent::Up(interface) | LinkEvent::Changed(interface) => {
                followed.insert(interface.ifindex, interface.name);
            }
            LinkEvent::Gone { ifindex } => {
                ensure!(
                    followed.remove(&ifindex).is_some(),
                    "{ifindex} is gone twice"
                );
            }
            LinkEvent::Resync => {}
        }
    }
    assert_eq!(followed, links_now()?);
    // It goes on as before.
    ip(&[
        "link", "add", "late", "type", "veth", "peer", "name", "late-p",
    ])?;
    let late = drain(&mut watcher)?;
    ensure!(
        late.iter()
            .any(|e| matches!(e, LinkEvent::Up(i) if i.name == "late")),
        "{late:?}"
    );
    Ok(())
}

#[test]
fn a_rename_and_a_peer_that_moves_into_a_pod_are_changes() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let pod = Sleeper::in_own_netns()?;
    ip(&[
        "link", "add", "host", "type", "veth", "peer", "name", "eth0",
    ])?;
    let mut watcher = LinkWatcher::new()?;
    drain(&mut watcher)?;

    ip(&["link", "set", "host", "name", "host2"])?;
    match next(&mut watcher)? {
        LinkEvent::Changed(interface) => {
            assert_eq!(
                (&*interface.name, interface.kind),
                ("host2", InterfaceKind::Other)
            );
        }
        other => anyhow::bail!("{other:?}"),
    }
    drain(&mut watcher)?;

    let pid = pod.pid().to_string();
    ip(&["link", "set", "eth0", "netns", &pid])?;
    ip(&["link", "set", "host2", "up"])?;
    let kind = loop {
        if let LinkEvent::Changed(interface) = next(&mut watcher)? {
            break (interface.name, interface.kind);
        }
    };
    assert_eq!(kind, ("host2".to_owned(), InterfaceKind::Veth));

    // Into another pod: the same name and kind, but other packets.
    pod.run(&["ip", "link", "set", "eth0", "up"])?;
    drain(&mut watcher)?;
    let other = Sleeper::in_own_netns()?;
    pod.run(&[
        "ip",
        "link",
        "set",
        "eth0",
        "netns",
        &other.pid().to_string(),
    ])?;
    other.run(&["ip", "link", "set", "eth0", "up"])?;
    loop {
        if let LinkEvent::Changed(interface) = next(&mut watcher)? {
            assert_eq!(
                (&*interface.name, interface.kind),
                ("host2", InterfaceKind::Veth)
            );
            break;
        }
    }

    drop(other);
    loop {
        if let LinkEvent::Gone { .. } = next(&mut watcher)? {
            break;
        }
    }
    ensure!(!links_now()?.values().any(|name| name == "host2"));
    Ok(())
}

#[test]
fn a_port_that_leaves_its_bridge_stays() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    if let Err(error) = ip(&["link", "add", "br", "type", "bridge"]) {
        println!("skipped: this kernel makes no bridge: {error:#}");
        return Ok(());
    }
    ip(&[
        "link", "add", "port", "type", "veth", "peer", "name", "peer",
    ])?;
    let mut watcher = LinkWatcher::new()?;
    drain(&mut watcher)?;
    ip(&["link", "set", "port", "master", "br"])?;
    ip(&["link", "set", "port", "nomaster"])?;
    // Wakes whoever polls.
    let readable = poll(
        &mut [PollFd::new(watcher.as_fd(), PollFlags::POLLIN)],
        PollTimeout::ZERO,
    )?;
    assert_eq!(readable, 1);
    let events = drain(&mut watcher)?;
    assert!(
        !events.iter().any(|e| matches!(e, LinkEvent::Gone { .. })),
        "{events:?}"
    );
    Ok(())
}
