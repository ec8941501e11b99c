//! What a process keeps that outlives the daemon: ports of network devices, ptys and sockets of consoles, all
//! opened with root's rights, and pins of zones' memory ([`crate::host::pin`]).
//!
//! | process | does |
//! |---|---|
//! | worker | asks the broker for ports: [`crate::device::net::opener::PortOpener`] |
//! | broker | asks the keeper, which it starts if there is none: [`client`] |
//! | keeper, `ringd --keep-ports` | makes taps and bridges ([`interface`]), is the parent of passt ([`passt`]) and of dnsmasq ([`network`]), sets rules of nft ([`rules`]), makes ptys and sockets ([`terminal`]), keeps every descriptor until its zone ends, and pins of zones' memory: [`kept`], [`keeper`] |
//!
//! So tap devices keep their queues, passt its connection and terminals their lines when a daemon dies, and
//! none of them notices.

pub mod client;
mod interface;
pub mod keeper;
mod kept;
mod network;
mod passt;
mod program;
mod rules;
mod server;
pub mod terminal;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::console::opener::{ConsoleRequest, Part};
use crate::device::net::opener::{PortError, PortRequest};

/// A request to the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Returns the descriptor of a port with this number. The port is opened if it is not kept.
    Open(Box<PortRequest>, u16),
    /// Returns a descriptor of a console's pty or socket, which is made if it is not kept.
    OpenConsole(ConsoleRequest, Part),
    /// Closes the ports, ptys and sockets of a zone, or the port of the device with this number.
    Close(String, Option<usize>),
    /// Keeps what comes with it, a pin of a zone's memory.
    Pin(String),
    /// Returns [`Reply::Done`] if memory of a zone is pinned.
    Pinned(String),
    /// Closes the pins of a zone.
    Unpin(String),
    /// Nothing: a keeper that keeps nothing ends.
    End,
}

impl Request {
    /// Whether nothing is to be done where there is no keeper.
    const fn lets_go(&self) -> bool {
        matches!(self, Self::Close(..) | Self::Unpin(_) | Self::End)
    }
}

/// Its reply; a descriptor may come with it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// It failed.
    Failed(PortError),
}

/// Returns the path of the keeper's socket.
fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("ports.sock")
}
