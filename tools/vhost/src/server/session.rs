//! [`Session`]: the state of one front end's connection, and the handlers of its messages.
//!
//! A queue runs when it has a size, addresses, a kick descriptor and memory, and is enabled. A message that
//! changes one of these stops it first; no request is lost, because it resumes from its log.

use std::fs::File;
use std::sync::Arc;

use ringvirtio::virtio::{VIRTIO_F_RING_RESET, feature};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::ServerOptions;
use super::device::Served;
use super::inflight::Region;
use super::memory::FrontMemory;
use super::ring::{Ring, RingContext};

/// Largest queue that is served.
const QUEUE_SIZE_MAX: u32 = 1024;
/// Bytes of the configuration space that can be read; fields that the device does not have read zero.
const CONFIG_MAX: usize = 256;
/// Most regions of memory.
const MEMORY_REGIONS: u64 = 32;

/// One connection's state.
pub struct Session<D> {
    device: Arc<D>,
    options: ServerOptions,
    features: u64,
    memory: Option<FrontMemory>,
    region: Option<Region>,
    rings: Vec<Ring>,
}

impl<D: Served> Session<D> {
    pub fn new(device: Arc<D>, options: ServerOptions) -> Self {
        device.begin();
        Self {
            device,
            options,
            features: 0,
            memory: None,
            region: None,
            rings: (0..options.queues).map(|_| Ring::default()).collect(),
        }
    }

    /// Returns the features that the server offers.
    fn offered(&self) -> u64 {
        // vhost-user has no message for the reset of a single queue.
        let device = self.device.features(self.options.queues) & !feature(VIRTIO_F_RING_RESET);
        device | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let queues = self.rings.len();
        let ring = usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index));
        ring.ok_or_else(|| refuse(format_args!("queue {index}: expected one below {queues}")))
    }

    /// Starts the queue if its set-up is complete.
    fn start(&mut self, index: u32) -> Result<()> {
        let index = index as usize;
        let (Some(ring), Some(memory)) = (self.rings.get_mut(index), &self.memory) else {
            return Ok(());
        };
        let context = RingContext {
            device: &self.device,
            memory,
            region: self.region.as_ref(),
            features: self.features,
            reactor: self.options.reactor,
        };
        ring.start(index, &context)
            .map_err(|error| refuse(format_args!("queue {index}: {error}")))
    }

    fn start_all(&mut self) -> Result<()> {
        (0..u32::from(self.options.queues)).try_for_each(|index| self.start(index))
    }

    /// Stops all queues: the front end's memory is not accessed any more.
    pub fn stop(&mut self) {
        self.rings.iter_mut().for_each(Ring::stop);
    }

    fn configuration(&self) -> [u8; CONFIG_MAX] {
        let mut all = [0; CONFIG_MAX];
        let config = self.device.config(self.options.queues);
        for (to, from) in all.iter_mut().zip(config) {
            *to = from;
        }
        all
    }
}

/// Logs why a message is refused. The front end gets no reason, and at most an error.
fn refuse(why: impl std::fmt::Display) -> Error {
    tracing::warn!("front end refused: {why}");
    Error::InvalidParam
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    tracing::warn!("front end refused: {what} was not offered");
    Err(Error::InvalidOperation(what))
}

impl<D: Served> VhostUserBackendReqHandlerMut for Session<D> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated by the protocol, which says that it must only disable the queues.
    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for ring in &mut self.rings {
            ring.stop();
            *ring = Ring::default();
        }
        self.features = 0;
        self.device.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(refuse(format_args!(
                "features {features:#x}, of which {unknown:#x} were not offered"
            )));
        }
        if features != self.features {
            self.stop();
            self.features = features;
            self.device.begin();
        }
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            // Without protocol features there is no message to enable queues.
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        self.start_all()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        // Queues hold the old mappings.
        self.stop();
        self.memory = None;
        let memory = FrontMemory::map(regions, files).map_err(refuse)?;
        self.memory = Some(memory);
        self.start_all()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let ring = self.ring(index)?;
        if !num.is_power_of_two() || num > QUEUE_SIZE_MAX {
            return Err(refuse(format_args!(
                "queue {index}: size {num}, expected a power of two up to {QUEUE_SIZE_MAX}"
            )));
        }
        let size = num as u16;
        if ring.size != size {
            ring.stop();
            ring.size = size;
        }
        self.start(index)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Some([descriptor, available, used]);
        let ring = self.ring(index)?;
        if ring.addresses != addresses {
            ring.stop();
            ring.addresses = addresses;
        }
        self.start(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let ring = self.ring(index)?;
        let Ok(base) = u16::try_from(base) else {
            return Err(refuse(format_args!(
                "queue {index}: base {base}, expected an index of 16 bits"
            )));
        };
        if ring.is_running() {
            return Err(refuse(format_args!("queue {index}: a base while the queue runs")));
        }
        ring.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        ring.stop();
        ring.kick = None;
        ring.call.set(None);
        Ok(VhostUserVringState::new(index, ring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        if fd.is_none() {
            return Err(refuse(format_args!(
                "queue {index}: no descriptor to kick it with, and queues are not polled"
            )));
        }
        ring.stop();
        ring.kick = fd;
        self.start(index.into())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        let wanted = fd.is_some();
        ring.call.set(fd);
        if wanted {
            // There may be used buffers that were not signalled without a descriptor.
            ring.call.raise();
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.error.set(fd);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.options.queues.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let ring = self.ring(index)?;
        ring.enabled = enable;
        if !enable {
            ring.stop();
        }
        self.start(index)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let start = offset as usize;
        let wanted = start.checked_add(size as usize).map(|end| start..end);
        let config = self.configuration();
        match wanted.and_then(|range| config.get(range)) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(refuse(format_args!(
                "{size} bytes of the configuration at {offset}, expected up to {CONFIG_MAX}"
            ))),
        }
    }

    /// Sets what the driver may write: a disk's `writeback`.
    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let mut config = self.configuration();
        let start = offset as usize;
        let to = start
            .checked_add(buf.len())
            .and_then(|end| config.get_mut(start..end));
        match to {
            Some(to) => to.copy_from_slice(buf),
            None => {
                return Err(refuse(format_args!(
                    "{} bytes of the configuration at {offset}",
                    buf.len()
                )));
            }
        }
        if self.device.driver_wrote(self.features, &config) {
            self.rings.iter().for_each(Ring::schedule);
        }
        Ok(())
    }

    fn get_inflight_fd(&mut self, inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        if queues > self.options.queues || u32::from(size) > QUEUE_SIZE_MAX {
            return Err(refuse(format_args!(
                "an in-flight region for {queues} queues of {size}, expected up to {} of {QUEUE_SIZE_MAX}",
                self.options.queues
            )));
        }
        Region::make(queues, size).map_err(refuse)
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        self.stop();
        let region = Region::map(inflight, file).map_err(refuse)?;
        self.region = Some(region);
        self.start_all()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_REGIONS)
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        unsupported("a display")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported("SHARED_OBJECT")
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        unsupported("CONFIGURE_MEM_SLOTS")
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported("CONFIGURE_MEM_SLOTS")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        unsupported("DEVICE_STATE")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("SHMEM")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported("LOG_SHMFD")
    }
}
