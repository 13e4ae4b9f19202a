//! Pods beside the one that is captured.

use std::{fs, time::Duration};

use anyhow::Result;
use remora_tests::{
    name,
    netns::Netns,
    node::{Node, Pod},
    run, wait,
};

/// How long the kernel may take to remove the cables.
const LIMIT: Duration = Duration::from_secs(30);

/// So many veths on a node that the agent takes for pods: it is attached to each and records it. All
/// their other ends are in one namespace, without addresses and processes.
#[derive(Debug)]
pub(crate) struct Crowd<'a> {
    node: &'a Node,
    far: Netns,
}

impl<'a> Crowd<'a> {
    /// # Errors
    /// The kernel refuses one.
    pub(crate) fn gather(node: &'a Node, count: usize) -> Result<Self> {
        let crowd = Self {
            node,
            far: Netns::new("crowd")?,
        };
        let far = crowd.far.name();
        let mut lines = String::new();
        for number in 0..count {
            lines += &format!(
                "link add crowd{number} type veth peer name far{number} netns {far}\n\
                 link set crowd{number} up\n"
            );
        }
        let directory = name::directory()?;
        let file = directory.path().join("links");
        fs::write(&file, lines)?;
        let near = node.netns().name();
        run::output(run::command("ip").args(["-n", near, "-batch"]).arg(&file))?;
        Ok(crowd)
    }

    /// Removes them all, and waits until they are gone.
    ///
    /// # Errors
    /// They do not go.
    pub(crate) fn disperse(self) -> Result<()> {
        let Self { node, far } = self;
        drop(far);
        gone(node, "crowd")
    }
}

/// Waits until no veth of that beginning is there. (The kernel removes a namespace and its cables some
/// time after it was told to.)
fn gone(node: &Node, beginning: &str) -> Result<()> {
    let beginning = format!(": {beginning}");
    wait::until(LIMIT, "the end of the crowd's cables", || {
        let links = node.netns().ip("-o link show type veth")?;
        Ok(!links.contains(&beginning))
    })
}

/// Pods with a cgroup, a namespace and a process each, without traffic.
#[derive(Debug)]
pub(crate) struct Pods<'a> {
    node: &'a Node,
    pub(crate) pods: Vec<Pod>,
}

impl<'a> Pods<'a> {
    /// # Errors
    /// One cannot be made.
    pub(crate) fn gather(node: &'a Node, count: usize) -> Result<Self> {
        let pods = (0..count).map(|number| node.pod(&format!("of{number}")));
        let pods = pods.collect::<Result<_>>()?;
        Ok(Self { node, pods })
    }

    /// Removes them all, and waits until they are gone.
    ///
    /// # Errors
    /// They do not go.
    pub(crate) fn disperse(self) -> Result<()> {
        let Self { node, pods } = self;
        drop(pods);
        gone(node, "veth-of")
    }
}
