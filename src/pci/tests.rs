//! The control function as Linux's PCI core and `uio_pci_generic` see it.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::{
    COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MEMORY, CONFIG_SIZE, ConfigSpace, Effect, Page,
    STATUS_INTERRUPT, WRITABLE,
};
use crate::abi::BAR_SIZE;
use crate::addr::Pa;

const BAR: u64 = 0x2_4010_0000;

/// What root would read.
struct ShownPage(Vec<u8>);

impl Page for ShownPage {
    fn store(&mut self, offset: u16, value: u32) {
        let at = usize::from(offset);
        assert_eq!(at % 4, 0);
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

impl ShownPage {
    fn read(&self, offset: u16, width: u8) -> u32 {
        let at = usize::from(offset);
        let mut bytes = [0; 4];
        bytes[..usize::from(width)].copy_from_slice(&self.0[at..at + usize::from(width)]);
        u32::from_le_bytes(bytes)
    }
}

fn function() -> (ConfigSpace, ShownPage) {
    let config = ConfigSpace::new(Pa(BAR));
    // Not zero, so that it shows if a word is not written.
    let mut page = ShownPage(vec![0xaa; CONFIG_SIZE]);
    config.fill(&mut page);
    (config, page)
}

#[test]
#[cfg_attr(miri, ignore = "safe code alone; a minute there")]
fn header() {
    let (_, page) = function();
    assert_eq!(page.read(0x00, 2), 0x1209);
    assert_eq!(page.read(0x02, 2), 0x7276);
    assert_eq!(page.read(0x04, 4), 0);
    assert_eq!(page.read(0x08, 4), 0xff00_0000);
    assert_eq!(page.read(0x0e, 1), 0, "header type");
    assert_eq!(page.read(0x10, 4), 0x4010_0004);
    assert_eq!(page.read(0x14, 4), 2);
    assert_eq!(page.read(0x34, 1), 0, "capabilities");
    assert_eq!(page.read(0x3d, 1), 1, "interrupt pin");
    let known = [0x00, 0x08, 0x10, 0x14, 0x3c];
    for offset in (0..CONFIG_SIZE as u16)
        .step_by(4)
        .filter(|offset| !known.contains(offset))
    {
        assert_eq!(page.read(offset, 4), 0, "{offset:#x}");
    }
}

/// As Linux's `__pci_read_base` and `pci_read_bases` do it.
#[test]
fn bars_are_sized() {
    let (mut config, mut page) = function();
    let mut size = |offset: u16| {
        let original = page.read(offset, 4);
        let _ = config.write(&mut page, offset, 4, u32::MAX.into());
        let size = page.read(offset, 4);
        let _ = config.write(&mut page, offset, 4, original.into());
        assert_eq!(page.read(offset, 4), original);
        size
    };
    let low = size(0x10);
    assert_eq!(low & 0xf, 0b0100, "64-bit memory, not prefetchable");
    let mask = u64::from(size(0x14)) << 32 | u64::from(low & !0xf);
    assert_eq!((!mask).wrapping_add(1), BAR_SIZE);
    for offset in [0x18, 0x1c, 0x20, 0x24, 0x30] {
        assert_eq!(size(offset), 0, "{offset:#x}");
    }
    assert_eq!(config.bar(), Pa(BAR));
}

/// As Linux's `pci_intx_mask_broken` probes.
#[test]
fn intx_disable_toggles() {
    let (mut config, mut page) = function();
    let original = page.read(4, 2);
    let toggled = original ^ COMMAND_INTX_DISABLE;
    assert_eq!(config.write(&mut page, 4, 2, toggled.into()), Effect::IntxMasked);
    assert_eq!(page.read(4, 2), toggled);
    assert_eq!(config.write(&mut page, 4, 2, original.into()), Effect::None);
    assert_eq!(page.read(4, 2), original);
}

/// As Linux's `pci_check_and_mask_intx` does it, which is `uio_pci_generic`'s interrupt handler.
fn check_and_mask(config: &mut ConfigSpace, page: &mut ShownPage) -> bool {
    let command = page.read(4, 4);
    if command & STATUS_INTERRUPT == 0 {
        return false;
    }
    if command & COMMAND_INTX_DISABLE == 0 {
        let masked = (command | COMMAND_INTX_DISABLE) & 0xffff;
        assert_eq!(config.write(page, 4, 2, masked.into()), Effect::IntxMasked);
    }
    true
}

/// As user space enables the interrupt again: a byte through sysfs.
fn unmask(config: &mut ConfigSpace, page: &mut ShownPage) -> Effect {
    config.write(page, 5, 1, 0)
}

#[test]
fn interrupts_are_neither_lost_nor_doubled() {
    let (mut config, mut page) = function();
    let _ = config.write(&mut page, 4, 2, (COMMAND_MEMORY | COMMAND_MASTER).into());
    assert!(
        !check_and_mask(&mut config, &mut page),
        "nothing pending: not ours"
    );

    assert_eq!(config.assert_intx(&mut page), Effect::RaiseIntx);
    assert_eq!(config.assert_intx(&mut page), Effect::None, "one is outstanding");
    assert!(check_and_mask(&mut config, &mut page));
    config.deassert_intx(&mut page);
    assert_eq!(
        page.read(4, 4),
        COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE
    );

    // An assertion while masked is signalled on unmasking.
    assert_eq!(config.assert_intx(&mut page), Effect::None);
    assert_eq!(page.read(6, 2), 1 << 3);
    assert_eq!(unmask(&mut config, &mut page), Effect::RaiseIntx);
    assert_eq!(unmask(&mut config, &mut page), Effect::None);
    assert!(check_and_mask(&mut config, &mut page));
    config.deassert_intx(&mut page);
    assert_eq!(unmask(&mut config, &mut page), Effect::None);
    assert_eq!(config.assert_intx(&mut page), Effect::RaiseIntx);
}

#[test]
fn pulses_need_no_write_and_are_never_lost() {
    let (mut config, mut page) = function();
    let enabled = COMMAND_MEMORY | COMMAND_MASTER;
    let _ = config.write(&mut page, 4, 2, enabled.into());
    // One is outstanding when pulse mode begins: it is signalled again.
    assert_eq!(config.assert_intx(&mut page), Effect::RaiseIntx);
    assert_eq!(config.set_pulses(&mut page, true), Effect::RaiseIntx);
    assert_eq!(config.set_pulses(&mut page, true), Effect::None);
    let shown = enabled | COMMAND_INTX_DISABLE | STATUS_INTERRUPT;
    for _ in 0..3 {
        assert_eq!(config.assert_intx(&mut page), Effect::RaiseIntx);
        assert!(check_and_mask(&mut config, &mut page));
        assert_eq!(page.read(4, 4), shown, "the handler wrote nothing");
    }
    // Writes that leave INTx disabled, as of Linux's bus mastering, change nothing.
    let _ = config.write(&mut page, 4, 2, (COMMAND_MEMORY | COMMAND_INTX_DISABLE).into());
    assert_eq!(config.assert_intx(&mut page), Effect::RaiseIntx);
    // Enabling INTx returns to levels, and signals the one that is high.
    assert_eq!(unmask(&mut config, &mut page), Effect::RaiseIntx);
    assert_eq!(config.assert_intx(&mut page), Effect::None, "one is outstanding");
    assert!(check_and_mask(&mut config, &mut page));
    config.deassert_intx(&mut page);
    assert_eq!(unmask(&mut config, &mut page), Effect::None);
    assert_eq!(config.assert_intx(&mut page), Effect::RaiseIntx);
    // Ended without a write: masked until software enables INTx.
    let _ = config.set_pulses(&mut page, true);
    assert_eq!(config.set_pulses(&mut page, false), Effect::None);
    assert_eq!(config.assert_intx(&mut page), Effect::None);
    assert_eq!(unmask(&mut config, &mut page), Effect::RaiseIntx);
}

#[test]
fn read_only_bits_do_not_change() {
    let (mut config, mut page) = function();
    let _ = config.assert_intx(&mut page);
    let (before, shown) = (config.clone(), page.0.clone());
    for offset in [0, 2, 6, 8, 0x0d, 0x0e, 0x2c, 0x34, 0x3d, 0x3e, 0x40, 0x100, 0xffe] {
        let _ = config.write(&mut page, offset, 1, 0xff);
    }
    // Misaligned, of an unsupported width, past the page.
    for (offset, width) in [
        (5, 2),
        (5, 4),
        (6, 4),
        (4, 0),
        (4, 3),
        (0, 8),
        (16, 8),
        (0x1000, 4),
        (0xfffc, 4),
    ] {
        let _ = config.write(&mut page, offset, width, u64::MAX);
    }
    assert_eq!(config, before);
    assert_eq!(page.0, shown);
}

#[test]
fn scratch_bytes() {
    let (mut config, mut page) = function();
    let _ = config.write(&mut page, 0x0c, 1, 0x10);
    let _ = config.write(&mut page, 0x3c, 1, 0x37);
    assert_eq!(page.read(0x0c, 4), 0x10);
    assert_eq!(page.read(0x3c, 4), 0x0137);
}

proptest! {
    /// Whatever is written, the page shows the registers, and only writable bits have changed.
    #[test]
    #[cfg_attr(miri, ignore = "safe code alone; minutes there")]
    fn page_agrees(writes in prop::collection::vec((any::<u16>(), 0..9_u8, any::<u64>()), 0..200)) {
        let (mut config, mut page) = function();
        let start = config.clone();
        for (offset, width, value) in writes {
            let _ = config.write(&mut page, offset % 80, width, value);
        }
        let mut fresh = ShownPage(vec![0; CONFIG_SIZE]);
        config.fill(&mut fresh);
        prop_assert_eq!(&fresh.0, &page.0);
        for (index, writable) in WRITABLE.iter().enumerate() {
            prop_assert_eq!((config.words[index] ^ start.words[index]) & !writable, 0);
        }
    }
}
