//! [`Filter`]: which packets the driver wants (5.1.6.5.1 to 5.1.6.5.3): receive modes, MAC tables, VLANs.

use crate::mac::MacAddress;

/// Most addresses of a table; with more, all of that kind pass (5.1.6.5.2).
pub const TABLE_MAX: usize = 64;
/// EtherType of an 802.1Q tag.
const TAGGED: u16 = 0x8100;
/// Bytes of a packet that decide: both addresses, EtherType, tag.
pub const PREFIX: usize = 16;

/// Receive modes of the control queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Modes {
    /// Everything passes, of any VLAN.
    pub promisc: bool,
    /// All multicast packets pass.
    pub allmulti: bool,
    /// All unicast packets pass.
    pub alluni: bool,
    /// No multicast packet passes.
    pub nomulti: bool,
    /// No unicast packet passes.
    pub nouni: bool,
    /// No broadcast packet passes.
    pub nobcast: bool,
}

/// One table of addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MacTable {
    addresses: Vec<MacAddress>,
    /// There were more than [`TABLE_MAX`]: all pass.
    overflow: bool,
}

impl MacTable {
    /// Returns a table of these addresses.
    pub fn new(addresses: impl ExactSizeIterator<Item = MacAddress>) -> Self {
        let overflow = addresses.len() > TABLE_MAX;
        Self {
            addresses: if overflow { Vec::new() } else { addresses.collect() },
            overflow,
        }
    }

    fn has(&self, mac: MacAddress) -> bool {
        self.overflow || self.addresses.contains(&mac)
    }
}

/// What passes to the driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// The device's own address.
    pub mac: MacAddress,
    /// Modes.
    pub modes: Modes,
    /// Further unicast addresses.
    pub unicast: MacTable,
    /// Multicast addresses.
    pub multicast: MacTable,
    /// A bit for each VLAN that passes; `None`: all do.
    pub vlans: Option<Box<[u64; 64]>>,
}

impl Filter {
    /// Returns the filter of a device that was not configured: everything passes. With `vlans`, once the
    /// device is not promiscuous any more, no tagged packet does before its VLAN was added.
    #[must_use]
    pub fn open(mac: MacAddress, vlans: bool) -> Self {
        Self {
            mac,
            modes: Modes {
                promisc: true,
                ..Modes::default()
            },
            unicast: MacTable::default(),
            multicast: MacTable::default(),
            vlans: vlans.then(|| Box::new([0; 64])),
        }
    }

    /// Lets a VLAN pass, or not. Returns `false` for a number that is none.
    #[must_use]
    pub fn set_vlan(&mut self, id: u16, pass: bool) -> bool {
        let Some(vlans) = &mut self.vlans else {
            // The table is lost: everything passes until a reset.
            return id < 4096;
        };
        let Some(word) = vlans.get_mut(usize::from(id / 64)) else {
            return false;
        };
        let bit = 1 << (id % 64);
        *word = if pass { *word | bit } else { *word & !bit };
        true
    }

    /// Returns whether nothing needs to be looked at.
    #[must_use]
    pub fn passes_all(&self) -> bool {
        self.modes.promisc
    }

    /// Returns whether a packet passes that begins with these bytes.
    #[must_use]
    pub fn passes(&self, prefix: [u8; PREFIX]) -> bool {
        let [a, b, c, d, e, f, _, _, _, _, _, _, t, u, v, w] = prefix;
        let id = u16::from_be_bytes([v, w]) & 0xfff;
        let mac = MacAddress([a, b, c, d, e, f]);
        let modes = self.modes;
        if modes.promisc {
            true
        } else if u16::from_be_bytes([t, u]) == TAGGED && !self.has_vlan(id) {
            false
        } else if mac == MacAddress::BROADCAST {
            !modes.nobcast
        } else if mac.is_multicast() {
            !modes.nomulti && (modes.allmulti || self.multicast.has(mac))
        } else {
            !modes.nouni && (modes.alluni || mac == self.mac || self.unicast.has(mac))
        }
    }

    /// A priority tag (VLAN 0) passes always.
    fn has_vlan(&self, id: u16) -> bool {
        let Some(vlans) = &self.vlans else {
            return true;
        };
        let word = vlans.get(usize::from(id / 64)).copied().unwrap_or(0);
        id == 0 || word >> (id % 64) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Filter, MacTable, Modes, PREFIX, TABLE_MAX};
    use crate::mac::MacAddress;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const GROUP: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);

    fn packet(to: MacAddress, tag: Option<u16>) -> [u8; PREFIX] {
        let mut bytes = [0; PREFIX];
        bytes[..6].copy_from_slice(&to.0);
        bytes[12..14].copy_from_slice(&tag.map_or(0x0800_u16, |_| 0x8100).to_be_bytes());
        bytes[14..].copy_from_slice(&tag.unwrap_or(0x4500).to_be_bytes());
        bytes
    }

    fn with(modes: Modes) -> Filter {
        Filter {
            modes,
            ..Filter::open(OWN, false)
        }
    }

    fn passing(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, MacAddress::BROADCAST].map(|to| filter.passes(packet(to, None)))
    }

    // Virtio 1.2, 5.1.6.5.1.
    #[test]
    fn modes() {
        let modes = Modes::default();
        assert_eq!(passing(&with(modes)), [true, false, false, true]);
        for (modes, expected) in [
            (
                Modes {
                    promisc: true,
                    ..modes
                },
                [true; 4],
            ),
            (
                Modes {
                    allmulti: true,
                    ..modes
                },
                [true, false, true, true],
            ),
            (
                Modes {
                    alluni: true,
                    ..modes
                },
                [true, true, false, true],
            ),
            (
                Modes {
                    nomulti: true,
                    allmulti: true,
                    ..modes
                },
                [true, false, false, true],
            ),
            (
                Modes {
                    nouni: true,
                    alluni: true,
                    ..modes
                },
                [false, false, false, true],
            ),
            (
                Modes {
                    nobcast: true,
                    ..modes
                },
                [true, false, false, false],
            ),
        ] {
            assert_eq!(passing(&with(modes)), expected, "{modes:?}");
        }
    }

    #[test]
    fn tables_and_their_overflow() {
        let mut filter = with(Modes::default());
        filter.unicast = MacTable::new([OTHER].into_iter());
        filter.multicast = MacTable::new([GROUP].into_iter());
        assert_eq!(passing(&filter), [true; 4]);
        filter.multicast = MacTable::default();
        assert_eq!(passing(&filter), [true, true, false, true]);
        filter.multicast = MacTable::new(vec![OTHER; TABLE_MAX + 1].into_iter());
        assert_eq!(passing(&filter), [true; 4]);
    }

    // Virtio 1.2, 5.1.6.5.3.
    #[test]
    fn vlans() {
        let mut filter = Filter::open(OWN, true);
        assert!(filter.passes_all() && filter.passes(packet(OWN, Some(5))));
        filter.modes.promisc = false;
        let tagged = |filter: &Filter, id: u16| filter.passes(packet(OWN, Some(id)));
        assert!(filter.passes(packet(OWN, None)));
        assert!(!tagged(&filter, 5) && tagged(&filter, 0));
        assert!(filter.set_vlan(5, true) && filter.set_vlan(4095, true));
        // Priority and DEI are no part of the number.
        assert!(
            tagged(&filter, 5) && tagged(&filter, 0xf005) && tagged(&filter, 4095) && !tagged(&filter, 6)
        );
        assert!(filter.set_vlan(5, false) && !tagged(&filter, 5));
        assert!(!filter.set_vlan(4096, true));
        assert!(!filter.passes_all());
    }
}
