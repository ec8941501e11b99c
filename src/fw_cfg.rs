//! QEMU's firmware configuration device for a guest ([`FwCfg`]), without DMA: an item is selected, then its
//! bytes are read one after the other. There are no files: what firmware asks for is in the device tree.

use crate::syndrome::Width;

/// Offset of the data register, of up to 8 bytes.
pub const DATA: u16 = 0;
/// Offset of the selector, 16 bits, big-endian.
pub const SELECTOR: u16 = 8;

/// Keys of the items (QEMU, `include/standard-headers/linux/qemu_fw_cfg.h`).
pub mod key {
    /// "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Bit 0: this interface; bit 1 would be DMA.
    pub const ID: u16 = 0x01;
    /// Number of vCPUs.
    pub const CPUS: u16 = 0x05;
    /// Number of files, big-endian, and the files.
    pub const FILES: u16 = 0x19;
}

/// Bit of a key that asks for write access, which there is none of.
const WRITE: u16 = 0x4000;

/// State of the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct FwCfg {
    key: u16,
    /// Bytes of the item that have been read.
    read: u8,
}

impl FwCfg {
    /// Executes a store at `offset` in the device. Only a selector of 16 bits has an effect.
    pub fn write(&mut self, offset: u16, width: Width, value: u64) {
        if (offset, width) == (SELECTOR, Width::Half) {
            self.key = (value as u16).swap_bytes() & !WRITE;
            self.read = 0;
        }
    }

    /// Executes a load of `width` at `offset` in the device: of the data register, the item's next bytes,
    /// the first one lowest, and zeroes behind its end.
    pub fn read(&mut self, offset: u16, width: Width, vcpus: u16) -> u64 {
        if offset >= SELECTOR {
            return 0;
        }
        let item = match self.key {
            key::SIGNATURE => u64::from(u32::from_le_bytes(*b"QEMU")),
            key::ID => 1,
            key::CPUS => vcpus.into(),
            // There are no files; items that do not exist read as zero, too.
            _ => 0,
        };
        let rest = item.checked_shr(u32::from(self.read) * 8).unwrap_or(0);
        self.read = self.read.saturating_add(width.bytes() as u8);
        rest & width.mask()
    }
}

#[cfg(test)]
mod tests {
    use super::{DATA, FwCfg, SELECTOR, key};
    use crate::syndrome::Width;

    const VCPUS: u16 = 0x203;

    fn select(device: &mut FwCfg, key: u16) {
        device.write(SELECTOR, Width::Half, key.swap_bytes().into());
    }

    fn item<const N: usize>(device: &mut FwCfg, key: u16) -> [u8; N] {
        select(device, key);
        [0; N].map(|_| device.read(DATA, Width::Byte, VCPUS) as u8)
    }

    // As QEMU 7.2's `virt` (`-qtest`), but without DMA and files.
    #[test]
    fn items_are_read_byte_by_byte() {
        let mut device = FwCfg::default();
        assert_eq!(item(&mut device, key::SIGNATURE), *b"QEMU\0\0");
        assert_eq!(item(&mut device, key::ID), [1, 0, 0, 0], "no DMA");
        assert_eq!(item(&mut device, key::CPUS), [3, 2, 0]);
        assert_eq!(item(&mut device, key::FILES), [0; 300]);
        // The size of RAM, an architecture's own item, and items that do not exist.
        for none in [3, 0x8000, 0x20, 0x3fff] {
            assert_eq!(item(&mut device, none), [0; 4]);
        }
        assert_eq!(item(&mut device, key::SIGNATURE | 0x4000), *b"QEMU");
    }

    #[test]
    fn wide_loads_take_several_bytes() {
        let mut device = FwCfg::default();
        select(&mut device, key::SIGNATURE);
        assert_eq!(device.read(DATA, Width::Byte, VCPUS), 0x51);
        assert_eq!(device.read(DATA + 4, Width::Half, VCPUS), 0x4d45);
        assert_eq!(device.read(DATA, Width::Word, VCPUS), 0x55);
        select(&mut device, key::SIGNATURE);
        assert_eq!(device.read(DATA, Width::Double, VCPUS), 0x554d_4551);
        for _ in 0..100 {
            assert_eq!(device.read(DATA, Width::Double, VCPUS), 0);
        }
    }

    #[test]
    fn other_accesses_have_no_effect() {
        let mut device = FwCfg::default();
        select(&mut device, key::CPUS);
        for (offset, width) in [
            (DATA, Width::Half),
            (SELECTOR, Width::Word),
            (SELECTOR, Width::Byte),
            (SELECTOR + 2, Width::Half),
            (0x10, Width::Double),
        ] {
            device.write(offset, width, 0);
            assert_eq!(device.read(SELECTOR, width, VCPUS), 0);
        }
        assert_eq!(device.read(DATA, Width::Word, VCPUS), VCPUS.into());
    }
}
