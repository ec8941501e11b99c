//! The numbers of the virtio specification that a network device uses, under the specification's names (5.1).
//!
//! Values come from the kernel's headers (`virtio-bindings`); the widths here are those of the structures
//! that hold them.

pub use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

use virtio_bindings::virtio_net as net;

/// The link is up: a bit of `status` in the configuration space (5.1.4).
pub const VIRTIO_NET_S_LINK_UP: u16 = net::VIRTIO_NET_S_LINK_UP as u16;
/// The driver shall announce its addresses.
pub const VIRTIO_NET_S_ANNOUNCE: u16 = net::VIRTIO_NET_S_ANNOUNCE as u16;

/// The packet's checksum is to be completed (5.1.6).
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
/// A packet as it is on the wire.
pub const VIRTIO_NET_HDR_GSO_NONE: u8 = net::VIRTIO_NET_HDR_GSO_NONE as u8;
/// To be segmented: TCP over IPv4.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
/// TCP over IPv6.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
/// UDP, into datagrams.
pub const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = net::VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
/// With any of the above: ECN is set.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = net::VIRTIO_NET_HDR_GSO_ECN as u8;

/// The command was carried out (5.1.6.5).
pub const VIRTIO_NET_OK: u8 = net::VIRTIO_NET_OK as u8;
/// The command was refused.
pub const VIRTIO_NET_ERR: u8 = net::VIRTIO_NET_ERR as u8;

/// Class of commands: receive modes.
pub const VIRTIO_NET_CTRL_RX: u8 = net::VIRTIO_NET_CTRL_RX as u8;
/// All packets.
pub const VIRTIO_NET_CTRL_RX_PROMISC: u8 = net::VIRTIO_NET_CTRL_RX_PROMISC as u8;
/// All multicast packets.
pub const VIRTIO_NET_CTRL_RX_ALLMULTI: u8 = net::VIRTIO_NET_CTRL_RX_ALLMULTI as u8;
/// All unicast packets.
pub const VIRTIO_NET_CTRL_RX_ALLUNI: u8 = net::VIRTIO_NET_CTRL_RX_ALLUNI as u8;
/// No multicast packets.
pub const VIRTIO_NET_CTRL_RX_NOMULTI: u8 = net::VIRTIO_NET_CTRL_RX_NOMULTI as u8;
/// No unicast packets.
pub const VIRTIO_NET_CTRL_RX_NOUNI: u8 = net::VIRTIO_NET_CTRL_RX_NOUNI as u8;
/// No broadcast packets.
pub const VIRTIO_NET_CTRL_RX_NOBCAST: u8 = net::VIRTIO_NET_CTRL_RX_NOBCAST as u8;

/// Class of commands: MAC addresses.
pub const VIRTIO_NET_CTRL_MAC: u8 = net::VIRTIO_NET_CTRL_MAC as u8;
/// Sets the filter's tables.
pub const VIRTIO_NET_CTRL_MAC_TABLE_SET: u8 = net::VIRTIO_NET_CTRL_MAC_TABLE_SET as u8;
/// Sets the device's own address.
pub const VIRTIO_NET_CTRL_MAC_ADDR_SET: u8 = net::VIRTIO_NET_CTRL_MAC_ADDR_SET as u8;

/// Class of commands: the VLAN filter.
pub const VIRTIO_NET_CTRL_VLAN: u8 = net::VIRTIO_NET_CTRL_VLAN as u8;
/// Adds a VLAN.
pub const VIRTIO_NET_CTRL_VLAN_ADD: u8 = net::VIRTIO_NET_CTRL_VLAN_ADD as u8;
/// Removes a VLAN.
pub const VIRTIO_NET_CTRL_VLAN_DEL: u8 = net::VIRTIO_NET_CTRL_VLAN_DEL as u8;

/// Class of commands: announcements.
pub const VIRTIO_NET_CTRL_ANNOUNCE: u8 = net::VIRTIO_NET_CTRL_ANNOUNCE as u8;
/// The driver has seen ANNOUNCE.
pub const VIRTIO_NET_CTRL_ANNOUNCE_ACK: u8 = net::VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8;

/// Class of commands: several queues.
pub const VIRTIO_NET_CTRL_MQ: u8 = net::VIRTIO_NET_CTRL_MQ as u8;
/// Sets the number of pairs in use.
pub const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: u8 = net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;

/// Class of commands: offloads of received packets.
pub const VIRTIO_NET_CTRL_GUEST_OFFLOADS: u8 = net::VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8;
/// Sets them.
pub const VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: u8 = net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET as u8;
