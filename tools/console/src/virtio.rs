//! The numbers of the virtio specification that a console device uses, under the specification's names (5.3),
//! with the values of `linux/virtio_console.h`, which `virtio-bindings` does not have.

/// The configuration space has the console's size (5.3.3).
pub const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// There are several ports, and control queues.
pub const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// The driver may write single characters to `emerg_wr`.
pub const VIRTIO_CONSOLE_F_EMERG_WRITE: u32 = 2;

/// Driver: the control queues are set up (5.3.6.2).
pub const VIRTIO_CONSOLE_DEVICE_READY: u16 = 0;
/// Device: there is a port.
pub const VIRTIO_CONSOLE_DEVICE_ADD: u16 = 1;
/// Driver: the port can be used.
pub const VIRTIO_CONSOLE_PORT_READY: u16 = 3;
/// Device: the port is a console.
pub const VIRTIO_CONSOLE_CONSOLE_PORT: u16 = 4;
/// Device: the size of the console, behind the message.
pub const VIRTIO_CONSOLE_RESIZE: u16 = 5;
/// Either side has opened or closed the port.
pub const VIRTIO_CONSOLE_PORT_OPEN: u16 = 6;
