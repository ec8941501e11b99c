//! [`NetConfig`] of a device, and what of it and of its port a driver sees: features and the configuration
//! space (5.1.3, 5.1.4).

use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature,
};

use crate::mac::MacAddress;
use crate::offloads::{self, Offloads};
use crate::port::HEADER;
use crate::virtio::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

/// The device ID (virtio 1.2, 5).
pub const DEVICE_ID: u32 = 1;
/// Largest queue size offered.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// Most pairs of queues: with the control queue they fit into the 16 queues of a device.
pub const PAIRS_MAX: u16 = 7;
/// Least MTU: that of IPv6 (RFC 8200).
pub const MTU_MIN: u16 = 1280;
/// Largest MTU: with it the largest frame is the largest segment.
pub const MTU_MAX: u16 = 65520;
/// Length of the configuration space: up to `mtu` (5.1.4).
pub const CONFIG_LEN: u16 = 12;
/// Bytes at its beginning that change while a driver uses it: `mac` and `status`.
pub const CHANGING: usize = 8;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of an 802.1Q tag.
const TAG: usize = 4;
/// Largest packet that is to be segmented, with its headers: a tap's limit, whatever the MTU.
const SEGMENTED_MAX: usize = HEADER + ETHERNET_HEADER + TAG + 0x1_0000;

/// What does not change of a device while it exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetConfig {
    /// What log lines call it.
    pub name: String,
    /// Its address.
    pub mac: MacAddress,
    /// Largest packet without its Ethernet header.
    pub mtu: u16,
    /// Pairs of queues, from 1 to [`PAIRS_MAX`].
    pub pairs: u16,
}

impl NetConfig {
    /// Returns the features of a device with these offloads; it works with any subset of them.
    #[must_use]
    pub fn features(&self, offloads: Offloads) -> u64 {
        let always = [
            VIRTIO_F_VERSION_1,
            VIRTIO_F_RING_RESET,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_RX_EXTRA,
            VIRTIO_NET_F_CTRL_VLAN,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        let mut features = always.iter().fold(0, |all, &number| all | feature(number));
        if offloads != Offloads::default() {
            features |= offloads.features() | feature(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
        }
        if self.pairs > 1 {
            features |= feature(VIRTIO_NET_F_MQ);
        }
        features
    }

    /// Returns the features of a device whose queues of packets another process serves, which has `server`'s.
    /// Filters are not among them: nothing but that process sees the packets.
    #[must_use]
    pub fn features_with(&self, server: u64) -> u64 {
        let own = [
            VIRTIO_F_VERSION_1,
            VIRTIO_F_RING_RESET,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        let mut features = own.iter().fold(0, |all, &number| all | feature(number));
        features |= offloads::consistent(server & offloads::PACKETS);
        features |= server & feature(VIRTIO_NET_F_MRG_RXBUF);
        features |= server & (feature(VIRTIO_RING_F_INDIRECT_DESC) | feature(VIRTIO_RING_F_EVENT_IDX));
        if self.pairs > 1 {
            features |= feature(VIRTIO_NET_F_MQ);
        }
        features
    }

    /// Returns the configuration space with this address and `status`.
    #[must_use]
    pub fn space(&self, mac: MacAddress, status: u16) -> [u8; CONFIG_LEN as usize] {
        let [a, b, c, d, e, f] = mac.0;
        let [s, t] = status.to_le_bytes();
        let [p, q] = self.pairs.to_le_bytes();
        let [m, n] = self.mtu.to_le_bytes();
        [a, b, c, d, e, f, s, t, p, q, m, n]
    }

    /// Returns how many virtqueues the device has.
    #[must_use]
    pub const fn queues(&self) -> u16 {
        2 * self.pairs + 1
    }

    /// Returns the role of virtqueue `number` (5.1.2): without MQ, the control queue is the third one.
    #[must_use]
    pub const fn role(&self, number: u16, features: u64) -> Role {
        let several = features & feature(VIRTIO_NET_F_MQ) != 0;
        let control = if several { 2 * self.pairs } else { 2 };
        match number {
            _ if number == control => Role::Control,
            _ if number & 1 == 0 => Role::Receive(number / 2),
            _ => Role::Transmit(number / 2),
        }
    }

    /// Returns the length of the largest packet with its headers. `large`: more than the MTU may come.
    #[must_use]
    pub fn packet_max(&self, large: bool) -> usize {
        if large {
            SEGMENTED_MAX
        } else {
            HEADER + ETHERNET_HEADER + TAG + usize::from(self.mtu)
        }
    }
}

/// What a virtqueue is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Packets to the driver, of the pair with this number.
    Receive(u16),
    /// Packets from the driver.
    Transmit(u16),
    /// Commands.
    Control,
}

/// Most bytes of a packet from the driver.
pub const TRANSMIT_MAX: usize = SEGMENTED_MAX;

#[cfg(test)]
mod tests {
    use super::{NetConfig, Role};
    use crate::mac::MacAddress;
    use crate::offloads::Offloads;

    fn config(pairs: u16) -> NetConfig {
        NetConfig {
            name: "net".into(),
            mac: MacAddress([0x52, 0x54, 0, 1, 2, 3]),
            mtu: 1500,
            pairs,
        }
    }

    // Virtio 1.2, 5.1.2.
    #[test]
    fn roles_of_queues() {
        let mq = 1 << 22;
        let roles = |features| {
            (0..5)
                .map(|number| config(2).role(number, features))
                .collect::<Vec<_>>()
        };
        let (receive, transmit) = (Role::Receive, Role::Transmit);
        assert_eq!(
            roles(mq),
            [receive(0), transmit(0), receive(1), transmit(1), Role::Control]
        );
        assert_eq!(roles(0)[..3], [receive(0), transmit(0), Role::Control]);
        assert_eq!(config(1).role(2, 0), Role::Control);
    }

    // Virtio 1.2, 5.1.3 and 5.1.4.
    #[test]
    fn features_and_space() {
        let all = Offloads { tcp: true, udp: true };
        let (one, several) = (config(1).features(all), config(4).features(all));
        assert_eq!(several & !one, 1 << 22);
        assert_eq!(
            one & !config(1).features(Offloads::default()),
            all.features() | 1 << 2
        );
        let mac = config(3).mac;
        assert_eq!(
            config(3).space(mac, 1),
            [0x52, 0x54, 0, 1, 2, 3, 1, 0, 3, 0, 0xdc, 5]
        );
        assert_eq!(
            (config(1).packet_max(false), config(1).packet_max(true)),
            (1530, 65566)
        );
    }
}
