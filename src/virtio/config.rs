//! Configuration space (virtio 1.2, 2.5): its bytes, the fields a driver may write, and ConfigGeneration.

use super::features::{bit, device};
use super::queue::RegisterPage;
use super::registers::CONFIG;
use super::spec::Spec;
use crate::syndrome::Width;

/// A byte that the driver may write.
#[derive(Clone, Copy, Debug)]
struct Writable {
    /// Offset in configuration space.
    offset: u16,
    /// Feature that makes the byte writable.
    feature: u64,
    /// Feature without which the byte is fixed at zero.
    needs: u64,
    /// Largest valid value.
    max: u8,
}

/// `writeback` of a block device (5.2.5).
const BLK_WRITEBACK: Writable = Writable {
    offset: 32,
    feature: bit::BLK_CONFIG_WCE,
    needs: bit::BLK_FLUSH,
    max: 1,
};

/// Configuration space of one device.
#[derive(Clone, Debug)]
pub(super) struct Config {
    bytes: [u8; 256],
    /// Bytes that exist; the others read zero.
    len: u16,
    /// The writable byte, if the device has one, and its value after reset.
    writable: Option<(Writable, u8)>,
    /// ConfigGeneration.
    pub(super) generation: u32,
}

impl Config {
    pub(super) fn new(spec: &Spec) -> Self {
        let mut config = Self {
            bytes: spec.config,
            len: spec.config_len,
            writable: None,
            generation: 0,
        };
        if spec.device_id == device::BLOCK && spec.features & BLK_WRITEBACK.feature != 0 {
            config.writable = config
                .byte(BLK_WRITEBACK.offset)
                .map(|value| (BLK_WRITEBACK, value));
        }
        config
    }

    fn byte(&self, offset: u16) -> Option<u8> {
        if offset < self.len {
            self.bytes.get(usize::from(offset)).copied()
        } else {
            None
        }
    }

    fn set(&mut self, offset: u16, value: u8) {
        if let Some(byte) = self.bytes.get_mut(usize::from(offset)) {
            *byte = value;
        }
    }

    /// Returns the whole space.
    pub(super) fn bytes(&self) -> &[u8; 256] {
        &self.bytes
    }

    /// Executes a driver's store. Returns whether it changed anything: only on the writable byte, with
    /// another valid value and the features negotiated. A store of the same value is no event for the daemon.
    pub(super) fn write(&mut self, offset: u16, width: Width, value: u64, negotiated: u64) -> bool {
        let Some((field, _)) = self.writable else {
            return false;
        };
        let needed = field.feature | field.needs;
        let changes = offset == field.offset
            && width == Width::Byte
            && value <= u64::from(field.max)
            && negotiated & needed == needed
            && self.byte(offset) != Some(value as u8);
        if changes {
            self.set(offset, value as u8);
        }
        changes
    }

    /// Applies the negotiated features: virtio-checklist 53.
    pub(super) fn negotiated(&mut self, features: u64) {
        if let Some((field, _)) = self.writable
            && features & field.feature != 0
            && features & field.needs == 0
        {
            self.set(field.offset, 0);
        }
    }

    /// Restores the values that the driver has overwritten.
    pub(super) fn reset(&mut self) {
        if let Some((field, initial)) = self.writable {
            self.set(field.offset, initial);
        }
    }

    /// Applies the device's own change. Returns whether anything differs, or `None` if the range is not
    /// within the space.
    pub(super) fn change(&mut self, offset: u16, new: &[u8]) -> Option<bool> {
        let start = usize::from(offset);
        let end = start
            .checked_add(new.len())
            .filter(|&end| end <= usize::from(self.len))?;
        let target = self.bytes.get_mut(start..end)?;
        if target == new {
            return Some(false);
        }
        target.copy_from_slice(new);
        self.generation = self.generation.wrapping_add(1);
        if let Some((field, initial)) = &mut self.writable
            && let Some(&value) = usize::from(field.offset)
                .checked_sub(start)
                .and_then(|at| new.get(at))
        {
            *initial = value;
        }
        Some(true)
    }

    /// Stores the words that hold `len` bytes from `offset` to the page.
    pub(super) fn write_to(&self, offset: u16, len: u16, page: &impl RegisterPage) {
        let end = offset.saturating_add(len).min(256);
        let first = offset & !3;
        for at in (first..end).step_by(4) {
            let mut word = [0; 4];
            for (target, &byte) in word.iter_mut().zip(self.bytes.iter().skip(usize::from(at))) {
                *target = byte;
            }
            page.set32(CONFIG + at, u32::from_le_bytes(word));
        }
    }
}
