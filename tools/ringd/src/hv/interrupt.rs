//! [`Interrupt`]: the interrupt of the control device, as root Linux passes it to a process.

use std::fs::File;
use std::os::fd::OwnedFd;

use ringvirtio::ReadWidth;

/// The interrupt of the control device: what becomes readable when EL2 has an event.
pub struct Interrupt {
    /// `/dev/uioN`, or an eventfd.
    pub fd: OwnedFd,
    /// Bytes to read of it.
    pub width: ReadWidth,
    /// The file that names the CPU that takes it, if there is one: `/proc/irq/N/effective_affinity_list`.
    pub cpu: Option<File>,
}
