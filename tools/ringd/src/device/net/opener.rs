//! [`PortOpener`]: what opens and keeps the ports of network devices.

use std::io;
use std::os::fd::OwnedFd;

use ringnet::MacAddress;
use serde::{Deserialize, Serialize};

use super::config::PortConfig;

/// A port that a device asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// The zone.
    pub zone: String,
    /// Number of the device among the zone's network devices.
    pub index: usize,
    /// What is behind the device.
    pub port: PortConfig,
    /// The device's address.
    pub mac: MacAddress,
    /// Largest packet.
    pub mtu: u16,
    /// Pairs of queues.
    pub pairs: u16,
}

/// Why a port cannot be opened: the key of a zone file that asks for what cannot be, its value, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct PortError {
    /// Key and value.
    pub key: Option<(String, String)>,
    why: String,
}

impl PortError {
    /// Returns an error about a key's value.
    pub fn new(key: &str, value: String, why: String) -> Self {
        Self {
            key: Some((key.into(), value)),
            why,
        }
    }

    /// Returns an error about a port as a whole.
    pub fn other(why: impl Into<String>) -> Self {
        Self {
            key: None,
            why: why.into(),
        }
    }

    /// Returns the error in one of the system's type, if there is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// The connection to a vhost-user server, among a port's descriptors: another one once it has ended.
pub const SOCKET: u16 = 0;

/// Returns the number of the event descriptor that notifies a vhost-user server of a queue.
pub const fn kick(queue: u16) -> u16 {
    1 + 2 * queue
}

/// Returns the number of the event descriptor by which a vhost-user server notifies of a queue.
pub const fn call(queue: u16) -> u16 {
    2 + 2 * queue
}

/// Opens ports and keeps them. The same request gives the same port again until it is closed.
pub trait PortOpener: Send + Sync {
    /// Returns one of a port's descriptors: that of a pair of queues, or with a vhost-user server the one
    /// that [`SOCKET`], [`kick`] or [`call`] says.
    ///
    /// # Errors
    /// The port cannot be opened; why, for people.
    fn open(&self, request: &PortRequest, number: u16) -> io::Result<OwnedFd>;

    /// Closes the ports of a zone, or the one of the device with this number.
    ///
    /// # Errors
    /// There is no one to ask.
    fn close(&self, zone: &str, index: Option<usize>) -> io::Result<()>;
}

/// Opens nothing: where there is no broker.
pub struct NoPorts;

impl PortOpener for NoPorts {
    fn open(&self, _request: &PortRequest, _pair: u16) -> io::Result<OwnedFd> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this daemon has no one who opens network ports",
        ))
    }

    fn close(&self, _zone: &str, _index: Option<usize>) -> io::Result<()> {
        Ok(())
    }
}
