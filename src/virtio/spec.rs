//! What a device offers, from the daemon's description, checked: [`Spec`].

use arrayvec::ArrayVec;

use super::features;
use crate::abi::MAX_QUEUES;
use crate::abi::command::DeviceSpec;

/// Largest split queue (section 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Why a device description is rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    /// Device id 0 is the empty slot.
    #[error("device id is 0")]
    DeviceId,
    /// Number of queues not in 1 to [`MAX_QUEUES`].
    #[error("{0} queues")]
    QueueCount(u32),
    /// A queue's maximum is not a power of two up to [`MAX_QUEUE_SIZE`].
    #[error("queue {queue} has a maximum of {max} entries")]
    QueueMax {
        /// Which.
        queue: usize,
        /// Its maximum.
        max: u16,
    },
    /// More configuration space than the register page has.
    #[error("{0} bytes of configuration space")]
    ConfigLen(u32),
    /// VERSION_1 is not offered.
    #[error("VERSION_1 is not offered")]
    NotVersion1,
    /// These bits cannot be offered by this transport.
    #[error("features {0:#x} cannot be offered")]
    Unsupported(u64),
    /// This feature bit is offered without one that it requires.
    #[error("feature {0} is offered without what it needs")]
    Dependency(u32),
}

impl SpecError {
    /// Returns the offending value, for [`crate::abi::command::Header::detail`].
    pub const fn detail(self) -> u64 {
        match self {
            Self::DeviceId => 0,
            Self::QueueCount(count) => count as u64,
            Self::QueueMax { max, .. } => max as u64,
            Self::ConfigLen(len) => len as u64,
            Self::NotVersion1 => features::bit::VERSION_1,
            Self::Unsupported(bits) => bits,
            Self::Dependency(bit) => bit as u64,
        }
    }
}

/// A checked device description.
#[derive(Clone, Debug)]
pub struct Spec {
    pub(super) device_id: u32,
    pub(super) vendor_id: u32,
    pub(super) features: u64,
    pub(super) queue_max: ArrayVec<u16, MAX_QUEUES>,
    pub(super) config: [u8; 256],
    pub(super) config_len: u16,
}

impl Spec {
    /// Returns the description of an empty slot.
    pub(super) fn empty() -> Self {
        Self {
            device_id: 0,
            vendor_id: 0,
            features: 0,
            queue_max: ArrayVec::new(),
            config: [0; 256],
            config_len: 0,
        }
    }
}

impl TryFrom<&DeviceSpec> for Spec {
    type Error = SpecError;

    /// Checks a description: virtio-checklist 29, 34. Bytes of `config` past `config_len` are dropped, so
    /// that they read zero.
    fn try_from(raw: &DeviceSpec) -> Result<Self, SpecError> {
        if raw.device_id == 0 {
            return Err(SpecError::DeviceId);
        }
        let queues = raw.queues as usize;
        let maxima = raw.queue_max.get(..queues).filter(|maxima| !maxima.is_empty());
        let maxima = maxima.ok_or(SpecError::QueueCount(raw.queues))?;
        let bad = |&(_, &max): &(usize, &u16)| !max.is_power_of_two() || max > MAX_QUEUE_SIZE;
        if let Some((queue, &max)) = maxima.iter().enumerate().find(bad) {
            return Err(SpecError::QueueMax { queue, max });
        }
        let given = raw
            .config
            .get(..raw.config_len as usize)
            .ok_or(SpecError::ConfigLen(raw.config_len))?;
        let mut config = [0; 256];
        for (target, &byte) in config.iter_mut().zip(given) {
            *target = byte;
        }
        let unsupported = raw.features & !features::SUPPORTED;
        if unsupported != 0 {
            return Err(SpecError::Unsupported(unsupported));
        }
        if raw.features & features::bit::VERSION_1 == 0 {
            return Err(SpecError::NotVersion1);
        }
        if let Some(bit) = features::missing_for_offer(raw.device_id, raw.features) {
            return Err(SpecError::Dependency(bit));
        }
        Ok(Self {
            device_id: raw.device_id,
            vendor_id: raw.vendor_id,
            features: raw.features,
            queue_max: maxima.iter().copied().collect(),
            config,
            config_len: given.len() as u16,
        })
    }
}
