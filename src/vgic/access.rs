//! Decodes accesses to the registers that hold one, two or eight bits per interrupt, at the same offsets in
//! the distributor (`GICD_*`, for SPIs) and in the second page of a redistributor (`GICR_*0`, for SGIs and
//! PPIs); IHI 0069, 12.9 and 12.11.

use super::intid::bits;

/// A frame of the GIC's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The distributor's.
    Distributor,
    /// The redistributor's of this vCPU, which need not be the one that accesses it.
    Redistributor(usize),
}

/// A register with a field per interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reg {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    Config,
}

/// An access to such a register, of a width the architecture allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Access {
    pub reg: Reg,
    /// The bank the interrupts are in.
    pub index: usize,
    /// The first interrupt of the access, within the bank.
    pub first: u32,
    /// Number of interrupts the access covers.
    pub count: u32,
}

impl Access {
    /// Decodes an access of `width` bytes at `offset`. Returns `None` if there is no such register, or it
    /// does not support the width or alignment. Bytes are for priorities only.
    pub fn decode(offset: u32, width: u32) -> Option<Self> {
        let word = |reg, base: u32| {
            let index = ((offset - base) / 4) as usize;
            (width == 4).then_some(Self {
                reg,
                index,
                first: 0,
                count: 32,
            })
        };
        if width == 0 || !offset.is_multiple_of(width) {
            return None;
        }
        match offset {
            0x080..0x100 => word(Reg::Group, 0x080),
            0x100..0x180 => word(Reg::SetEnable, 0x100),
            0x180..0x200 => word(Reg::ClearEnable, 0x180),
            0x200..0x280 => word(Reg::SetPending, 0x200),
            0x280..0x300 => word(Reg::ClearPending, 0x280),
            0x300..0x380 => word(Reg::SetActive, 0x300),
            0x380..0x400 => word(Reg::ClearActive, 0x380),
            0x400..0x800 if width == 1 || width == 4 => {
                let intid = offset - 0x400;
                Some(Self {
                    reg: Reg::Priority,
                    index: intid as usize / 32,
                    first: intid % 32,
                    count: width,
                })
            }
            0xc00..0xd00 if width == 4 => {
                let intid = (offset - 0xc00) * 4;
                Some(Self {
                    reg: Reg::Config,
                    index: intid as usize / 32,
                    first: intid % 32,
                    count: 16,
                })
            }
            _ => None,
        }
    }

    /// Returns the interrupts the access covers, as bits of the bank.
    pub fn covered(&self) -> u32 {
        if self.count >= 32 {
            u32::MAX
        } else {
            ((1 << self.count) - 1) << self.first
        }
    }
}

/// Returns bit n of the lower half of `bits` as bit 2n+1: the format of `ICFGR`.
pub(super) fn config_from_edges(edges: u32) -> u32 {
    bits(edges & 0xffff).fold(0, |config, bit| config | 2 << (2 * bit))
}

/// The inverse of [`config_from_edges`].
pub(super) fn edges_from_config(config: u32) -> u32 {
    (0..16).fold(0, |edges, bit| edges | (config >> (2 * bit + 1) & 1) << bit)
}

#[cfg(test)]
mod tests {
    use super::{Access, Reg, config_from_edges, edges_from_config};

    #[test]
    fn decoding() {
        let access = Access::decode(0x104, 4).unwrap();
        assert_eq!(
            (access.reg, access.index, access.covered()),
            (Reg::SetEnable, 1, u32::MAX)
        );
        let access = Access::decode(0x423, 1).unwrap();
        assert_eq!(
            (access.reg, access.index, access.first, access.count),
            (Reg::Priority, 1, 3, 1)
        );
        assert_eq!(access.covered(), 1 << 3);
        let access = Access::decode(0xc0c, 4).unwrap();
        assert_eq!((access.reg, access.index, access.first), (Reg::Config, 1, 16));
        assert_eq!(access.covered(), 0xffff_0000);
    }

    #[test]
    fn unsupported_widths_and_alignments_do_not_decode() {
        for (offset, width) in [
            (0x100, 1),
            (0x100, 2),
            (0x100, 8),
            (0x400, 2),
            (0x400, 8),
            (0x402, 4),
            (0xc00, 1),
            (0x102, 4),
        ] {
            assert_eq!(Access::decode(offset, width), None, "{offset:#x} {width}");
        }
        for offset in [0, 0x7c, 0x800, 0xbfc, 0xd00, 0xe00, 0xffff_fffc] {
            assert_eq!(Access::decode(offset, 4), None, "{offset:#x}");
        }
        assert_eq!(Access::decode(0x100, 0), None);
    }

    #[test]
    fn config_is_two_bits_each() {
        assert_eq!(config_from_edges(0b1001), 0b1000_0010);
        for edges in [0, 1, 0x8000, 0xffff, 0x1234] {
            assert_eq!(edges_from_config(config_from_edges(edges)), edges);
        }
        assert_eq!(
            edges_from_config(0x5555_5555),
            0,
            "the lower bit of each field is reserved"
        );
    }
}
