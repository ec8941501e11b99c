//! [`Offloads`]: what may be left to the other side of a packet's way, and the feature bits of it.

use ringvirtio::virtio::feature;

use crate::virtio::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Offloads that a port has in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Checksums and TCP segmentation (with ECN) of both versions of IP.
    pub tcp: bool,
    /// Segmentation of UDP into datagrams; only with the above.
    pub udp: bool,
}

const fn mask(numbers: &[u32]) -> u64 {
    let (mut mask, mut rest) = (0, numbers);
    while let [first, others @ ..] = rest {
        mask |= feature(*first);
        rest = others;
    }
    mask
}

/// Features of received packets that the driver can change while it runs (5.1.6.5.6.1).
pub const GUEST: u64 = GUEST_TCP | GUEST_UDP;
const GUEST_TCP: u64 = mask(&[
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
]);
const GUEST_UDP: u64 = mask(&[VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]);
const HOST_TCP: u64 = mask(&[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
]);
/// Features of packets in both directions.
pub const PACKETS: u64 = GUEST | HOST_TCP | feature(VIRTIO_NET_F_HOST_USO);
/// Features with which received packets may be larger than the MTU.
const GUEST_LARGE: u64 = GUEST & !mask(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]);

/// What a set of guest features needs: each bit, and those that must be with it (5.1.3.1).
const NEEDS: [(u32, u64); 5] = [
    (VIRTIO_NET_F_GUEST_TSO4, feature(VIRTIO_NET_F_GUEST_CSUM)),
    (VIRTIO_NET_F_GUEST_TSO6, feature(VIRTIO_NET_F_GUEST_CSUM)),
    (
        VIRTIO_NET_F_GUEST_ECN,
        mask(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]),
    ),
    (VIRTIO_NET_F_GUEST_USO4, feature(VIRTIO_NET_F_GUEST_CSUM)),
    (VIRTIO_NET_F_GUEST_USO6, feature(VIRTIO_NET_F_GUEST_CSUM)),
];

impl Offloads {
    /// Returns the feature bits that a device offers.
    #[must_use]
    pub fn features(self) -> u64 {
        let tcp = GUEST_TCP | HOST_TCP;
        let udp = GUEST_UDP | feature(VIRTIO_NET_F_HOST_USO);
        match self {
            Self { tcp: false, .. } => 0,
            Self { udp: false, .. } => tcp,
            Self { udp: true, .. } => tcp | udp,
        }
    }

    /// Returns whether `self` has all that `other` has.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        (self.tcp || !other.tcp) && (self.udp || !other.udp)
    }
}

/// Returns whether no feature of the set lacks another one that it needs.
#[must_use]
pub fn is_consistent(guest: u64) -> bool {
    NEEDS
        .iter()
        .all(|&(number, any_of)| guest & feature(number) == 0 || guest & any_of != 0)
}

/// Returns features of packets without those that lack another one that they need.
#[must_use]
pub fn consistent(features: u64) -> u64 {
    let guest = features & GUEST;
    let guest = if is_consistent(guest) { guest } else { 0 };
    let host = features & !GUEST;
    // HOST_ECN needs a TSO of its own (5.1.3.1).
    let tso = mask(&[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]);
    let complete = host & feature(VIRTIO_NET_F_CSUM) != 0
        && (host & feature(VIRTIO_NET_F_HOST_ECN) == 0 || host & tso != 0);
    guest | if complete { host } else { 0 }
}

/// Returns whether packets may come that are larger than the MTU.
#[must_use]
pub const fn are_large(guest: u64) -> bool {
    guest & GUEST_LARGE != 0
}

/// Returns whether a received packet with these fields in its header needs no more than `guest` has.
#[must_use]
pub fn covers(guest: u64, flags: u8, gso_type: u8) -> bool {
    let has = |number| guest & feature(number) != 0;
    let segmented = match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => true,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_GUEST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_GUEST_TSO6),
        VIRTIO_NET_HDR_GSO_UDP_L4 => has(VIRTIO_NET_F_GUEST_USO4) || has(VIRTIO_NET_F_GUEST_USO6),
        _ => false,
    };
    // A packet to be segmented has a checksum to be completed (5.1.6.4.1).
    let complete = gso_type == VIRTIO_NET_HDR_GSO_NONE || flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    segmented
        && complete
        && (flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || has(VIRTIO_NET_F_GUEST_CSUM))
        && (gso_type & VIRTIO_NET_HDR_GSO_ECN == 0 || has(VIRTIO_NET_F_GUEST_ECN))
}

#[cfg(test)]
mod tests {
    use super::{GUEST, Offloads, are_large, consistent, covers, is_consistent};

    const TCP: Offloads = Offloads {
        tcp: true,
        udp: false,
    };
    const ALL: Offloads = Offloads { tcp: true, udp: true };

    #[test]
    fn features_and_what_they_cover() {
        assert_eq!(Offloads::default().features(), 0);
        assert_eq!(TCP.features(), 0b11_1011_1000_0011);
        assert_eq!(ALL.features() & !TCP.features(), 7 << 54);
        assert!(ALL.covers(TCP) && !TCP.covers(ALL) && TCP.covers(Offloads::default()));
        assert!(is_consistent(ALL.features() & GUEST) && is_consistent(0) && !is_consistent(1 << 7));
        assert!(!is_consistent(1 << 9 | 1 << 1) && is_consistent(1 << 9 | 1 << 8 | 1 << 1));
        assert!(!are_large(1 << 1) && are_large(1 << 55));
        assert_eq!(consistent(ALL.features()), ALL.features());
        assert_eq!(consistent(1 << 7 | 1 << 0 | 1 << 11), 1 << 0 | 1 << 11);
        assert_eq!(consistent(1 << 1 | 1 << 11), 1 << 1);
    }

    #[test]
    fn headers_need_features() {
        for (guest, flags, gso, expected) in [
            (0, 0, 0, true),
            (0, 2, 0, true),
            (0, 1, 0, false),
            (1 << 1, 1, 0, true),
            (1 << 1, 1, 1, false),
            (1 << 1 | 1 << 7, 1, 1, true),
            (1 << 1 | 1 << 7, 1, 0x81, false),
            (1 << 1 | 1 << 7 | 1 << 9, 1, 0x81, true),
            (1 << 1 | 1 << 7, 1, 4, false),
            (GUEST, 1, 3, false),
            (GUEST, 1, 5, true),
            (GUEST, 0, 1, false),
            (GUEST, 0, 5, false),
        ] {
            assert_eq!(covers(guest, flags, gso), expected, "{guest:#x} {flags} {gso}");
        }
    }
}
