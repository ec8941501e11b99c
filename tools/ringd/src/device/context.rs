//! What devices get of the zone that they belong to: [`Environment`], [`TakeOver`], [`Wake`].

use std::sync::Arc;

use super::console::opener::{ConsoleOpener, NoConsoles};
use super::net::opener::{NoPorts, PortOpener};

/// What devices and other files of a zone are opened with.
#[derive(Clone)]
pub struct Environment {
    /// Opens files and connects to servers.
    pub disk: ringblk::OpenContext,
    /// Opens the ports of network devices.
    pub ports: Arc<dyn PortOpener>,
    /// Makes ptys and sockets of consoles.
    pub consoles: Arc<dyn ConsoleOpener>,
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            disk: ringblk::OpenContext::default(),
            ports: Arc::new(NoPorts),
            consoles: Arc::new(NoConsoles),
        }
    }
}

impl Environment {
    /// Returns what opens files.
    pub fn opener(&self) -> &dyn ringblk::Opener {
        &*self.disk.opener
    }
}

/// Makes the zone's thread look at its state in EL2 and call [`super::devices::Devices::poll`].
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What is known of devices that an earlier daemon served.
pub struct TakeOver<'a> {
    /// Shows users what is waited for.
    pub report_progress: &'a dyn Fn(&str),
    /// Returns the configuration space that the guest was shown of the device in a slot.
    pub guest_config: &'a dyn Fn(u8) -> Option<[u8; 256]>,
}
