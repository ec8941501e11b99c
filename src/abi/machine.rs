//! The guest's machine: addresses and interrupts of QEMU's `virt`, so that a kernel that boots there boots in
//! a zone.

/// Flash banks, of a zone with firmware: the firmware, then its variables.
pub const FLASH_BASE: u64 = 0;
/// Bytes of a flash bank for its driver.
pub const FLASH_SIZE: u64 = 0x0400_0000;
/// Blocks of 2 MiB that are behind the first flash bank, from its beginning on.
pub const FIRMWARE_BLOCKS: usize = 2;
/// Blocks of 2 MiB that are behind the second flash bank.
pub const VARIABLE_BLOCKS: usize = 1;
/// Blocks of both banks.
pub const FLASH_BLOCKS: usize = FIRMWARE_BLOCKS + VARIABLE_BLOCKS;
/// GICv3 distributor.
pub const GICD_BASE: u64 = 0x0800_0000;
/// Bytes of the distributor frame.
pub const GICD_SIZE: u64 = 0x1_0000;
/// GICv3 redistributors, 128 KiB per vCPU.
pub const GICR_BASE: u64 = 0x080a_0000;
/// Bytes of one redistributor.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// PL011.
pub const UART_BASE: u64 = 0x0900_0000;
/// PL031.
pub const RTC_BASE: u64 = 0x0901_0000;
/// Firmware configuration, of a zone with firmware.
pub const FW_CFG_BASE: u64 = 0x0902_0000;
/// Bytes of its registers: data and selector, no DMA.
pub const FW_CFG_SIZE: u64 = 0xa;
/// PL061, with the power key.
pub const GPIO_BASE: u64 = 0x0903_0000;
/// First virtio-mmio slot.
pub const VIRTIO_BASE: u64 = 0x0a00_0000;
/// Bytes from one virtio-mmio slot to the next: a page, so that stage 2 can map each by itself.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Bytes of a slot's registers in the device tree.
pub const VIRTIO_SIZE: u64 = 0x200;
/// RAM.
pub const RAM_BASE: u64 = 0x4000_0000;

/// INTID of the first SPI.
pub const SPI_BASE: u32 = 32;
/// SPI number (INTID less 32) of the PL011.
pub const UART_SPI: u32 = 1;
/// SPI number of the PL031.
pub const RTC_SPI: u32 = 2;
/// SPI number of the PL061.
pub const GPIO_SPI: u32 = 7;
/// SPI number of virtio slot 0; that of slot n is n higher.
pub const VIRTIO_SPI: u32 = 16;
/// Number of SPIs of a zone.
pub const SPI_COUNT: u32 = 64;
/// INTID of the virtual timer (PPI 11).
pub const VIRTUAL_TIMER: u32 = 27;
/// INTID of the non-secure physical timer (PPI 14).
pub const PHYSICAL_TIMER: u32 = 30;

/// Returns the affinity of a vCPU: 16 to a cluster, as in QEMU's `virt`.
pub const fn vcpu_mpidr(vcpu: usize) -> u64 {
    ((vcpu / 16) as u64) << 8 | (vcpu % 16) as u64
}
