//! What a driver sees of a device: features, the configuration space (5.3.3, 5.3.4) and the roles of its
//! virtqueues (5.3.2).

use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature,
};

use crate::port::Size;
use crate::virtio::{VIRTIO_CONSOLE_F_EMERG_WRITE, VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_CONSOLE_F_SIZE};

/// The device ID (virtio 1.2, 5).
pub const DEVICE_ID: u32 = 3;
/// Largest queue size offered.
pub const QUEUE_SIZE_MAX: u16 = 128;
/// Most ports: with the control queues they fit into the 16 queues of a device.
pub const PORTS_MAX: usize = 7;
/// Bytes at the beginning of the configuration space that change: `cols` and `rows`.
pub const CHANGING: usize = 4;
/// Length of the configuration space.
pub const CONFIG_LEN: usize = 12;

/// Returns the features of a device with this many ports; it works with any subset of them.
#[must_use]
pub fn features(ports: usize) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_RESET,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_CONSOLE_F_SIZE,
        VIRTIO_CONSOLE_F_EMERG_WRITE,
    ];
    let several = if ports > 1 {
        feature(VIRTIO_CONSOLE_F_MULTIPORT)
    } else {
        0
    };
    always.iter().fold(several, |all, &number| all | feature(number))
}

/// Returns the configuration space: `cols`, `rows`, `max_nr_ports`, `emerg_wr`.
#[must_use]
pub fn space(size: Size, ports: usize) -> [u8; CONFIG_LEN] {
    let [a, b] = size.columns.to_le_bytes();
    let [c, d] = size.rows.to_le_bytes();
    let ports = if ports > 1 { ports as u8 } else { 0 };
    [a, b, c, d, ports, 0, 0, 0, 0, 0, 0, 0]
}

/// Returns how many virtqueues a device has.
#[must_use]
pub const fn queues(ports: usize) -> usize {
    if ports > 1 { 2 * (ports + 1) } else { 2 }
}

/// What a virtqueue is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Input of the port with this number.
    Receive(usize),
    /// Its output.
    Transmit(usize),
    /// Messages to the driver.
    ControlReceive,
    /// Messages from the driver.
    ControlTransmit,
}

/// Returns the role of virtqueue `number`: the control queues are between those of port 0 and of port 1.
#[must_use]
pub const fn role(number: u16) -> Role {
    match number {
        0 => Role::Receive(0),
        1 => Role::Transmit(0),
        2 => Role::ControlReceive,
        3 => Role::ControlTransmit,
        _ if number & 1 == 0 => Role::Receive(number as usize / 2 - 1),
        _ => Role::Transmit(number as usize / 2 - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::{PORTS_MAX, Role, features, queues, role, space};
    use crate::port::Size;

    // Virtio 1.2, 5.3.2.
    #[test]
    fn roles_of_queues() {
        use Role::{ControlReceive, ControlTransmit, Receive, Transmit};
        let roles: Vec<Role> = (0..8).map(role).collect();
        let expected = [
            Receive(0),
            Transmit(0),
            ControlReceive,
            ControlTransmit,
            Receive(1),
            Transmit(1),
            Receive(2),
            Transmit(2),
        ];
        assert_eq!(roles, expected);
        assert_eq!((queues(1), queues(2), queues(PORTS_MAX)), (2, 6, 16));
    }

    // Virtio 1.2, 5.3.3 and 5.3.4.
    #[test]
    fn features_and_space() {
        assert_eq!(features(2) & !features(1), 1 << 1);
        assert_eq!(features(1) & 0b111, 0b101);
        let size = Size {
            columns: 0x102,
            rows: 25,
        };
        assert_eq!(space(size, 1), [2, 1, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(space(size, 3)[4..8], [3, 0, 0, 0]);
    }
}
