//! [`PortOpener`]: what opens and keeps the ports of network devices.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::config::Source;

/// A port that a device asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// The zone.
    pub zone: String,
    /// Number of the device among the zone's network devices.
    pub index: usize,
    /// Where packets go.
    pub source: Source,
    /// Largest packet.
    pub mtu: u16,
    /// Pairs of queues.
    pub pairs: u16,
}

/// Opens ports and keeps them. The same request gives the same port again until it is closed.
pub trait PortOpener: Send + Sync {
    /// Returns the descriptor of a pair of queues of a port.
    ///
    /// # Errors
    /// The port cannot be opened; why, for people.
    fn open(&self, request: &PortRequest, pair: u16) -> io::Result<OwnedFd>;

    /// Closes the ports of a zone.
    ///
    /// # Errors
    /// Nobody can be asked.
    fn close(&self, zone: &str) -> io::Result<()>;
}

/// Opens nothing: where there is no broker.
pub struct NoPorts;

impl PortOpener for NoPorts {
    fn open(&self, _request: &PortRequest, _pair: u16) -> io::Result<OwnedFd> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this daemon has nobody who opens network ports",
        ))
    }

    fn close(&self, _zone: &str) -> io::Result<()> {
        Ok(())
    }
}
