//! [`FakeTransport`]: the transport without EL2, which creates queues as the daemon does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use vm_memory::{GuestAddress, MmapRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::ram::guest_memory;
use crate::{
    Callback, GuestRam, InflightArea, QueueHandler, QueueId, QueueSetup, Reactor, ReactorHandle,
    ReactorOptions, RingAddresses,
};

/// Bytes between two in-flight logs.
const LOG: usize = 8192;
/// Most queues of a device.
const QUEUES: usize = 16;

/// A device that is tested.
pub trait FakeDevice {
    /// Its type.
    const TYPE: DeviceType;
    /// Largest queue size.
    const QUEUE_SIZE_MAX: u16;

    /// Returns the features that it offers.
    fn features(&self) -> u64;

    /// Returns its configuration space.
    fn config(&self) -> Vec<u8>;

    /// Makes the device side of virtqueue `number`.
    fn queue(&self, number: u16, setup: QueueSetup) -> Box<dyn QueueHandler>;

    /// The queue has left the reactor. Calls `then` once no other process uses it.
    fn release(&self, _number: u16, then: Callback) {
        then();
    }
}

/// A queue that the driver has set up.
struct Queue {
    ring: RingAddresses,
    epoch: u64,
    id: QueueId,
}

/// What outlives a daemon, and the daemon.
struct Machine<D> {
    device: D,
    handle: ReactorHandle,
    log: Arc<MmapRegion>,
    status: DeviceStatus,
    features: u64,
    epoch: u64,
    queues: BTreeMap<u16, Queue>,
}

/// The transport of a driver in this thread; all its clones are one.
pub struct FakeTransport<D>(Rc<RefCell<Machine<D>>>);

impl<D> Clone for FakeTransport<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: FakeDevice> FakeTransport<D> {
    /// Returns the transport of a device whose queues come to this reactor.
    #[must_use]
    pub fn new(device: D, handle: &ReactorHandle) -> Self {
        Self(Rc::new(RefCell::new(Machine {
            device,
            handle: handle.clone(),
            log: Arc::new(MmapRegion::new(LOG * QUEUES).unwrap()),
            status: DeviceStatus::empty(),
            features: 0,
            epoch: 0,
            queues: BTreeMap::new(),
        })))
    }

    /// Another daemon takes all queues over, after the reactor of the last one has ended.
    pub fn take_over(&self, device: D, handle: &ReactorHandle) {
        let mut machine = self.0.borrow_mut();
        (machine.device, machine.handle) = (device, handle.clone());
        let queues: Vec<_> = machine
            .queues
            .iter()
            .map(|(number, queue)| (*number, queue.ring, queue.epoch))
            .collect();
        for (number, ring, epoch) in queues {
            machine.add(number, ring, epoch);
        }
    }
}

impl<D: FakeDevice> Machine<D> {
    fn add(&mut self, number: u16, ring: RingAddresses, epoch: u64) {
        let setup = QueueSetup {
            ram: GuestRam::new(guest_memory()).unwrap(),
            ring,
            features: self.features,
            inflight: InflightArea {
                mapping: self.log.clone(),
                offset: usize::from(number) * LOG,
            },
            epoch,
            notify_driver: Box::new(|| {}),
            needs_reset: Box::new(|fault| panic!("a well-behaved driver broke the queue: {fault}")),
        };
        let id = self.handle.add(self.device.queue(number, setup));
        self.queues.insert(number, Queue { ring, epoch, id });
    }
}

/// Runs `test` with a reactor, which ends afterwards.
pub fn with_reactor(io_uring: bool, test: impl FnOnce(&ReactorHandle)) {
    let options = ReactorOptions {
        io_uring,
        ..ReactorOptions::default()
    };
    let (reactor, handle) = Reactor::new(options).unwrap();
    let thread = thread::spawn(move || reactor.run().unwrap());
    test(&handle);
    handle.stop();
    thread.join().unwrap();
}

impl<D: FakeDevice> Transport for FakeTransport<D> {
    fn device_type(&self) -> DeviceType {
        D::TYPE
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.borrow().device.features()
    }

    fn write_driver_features(&mut self, accepted: u64) {
        assert_eq!(accepted & !self.0.borrow().device.features(), 0);
        self.0.borrow_mut().features = accepted;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        D::QUEUE_SIZE_MAX.into()
    }

    fn notify(&mut self, queue: u16) {
        let machine = self.0.borrow();
        machine.handle.schedule(machine.queues[&queue].id);
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.borrow().status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.borrow_mut().status = status;
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        let mut machine = self.0.borrow_mut();
        machine.epoch += 1;
        let ring = RingAddresses {
            size: size as u16,
            desc: GuestAddress(desc),
            avail: GuestAddress(driver),
            used: GuestAddress(device),
        };
        // One for all queues that are set up together.
        let epoch = machine.queues.values().map(|queue| queue.epoch).min();
        let epoch = epoch.unwrap_or(machine.epoch);
        machine.add(queue, ring, epoch);
    }

    fn queue_unset(&mut self, queue: u16) {
        let mut machine = self.0.borrow_mut();
        if let Some(Queue { id, .. }) = machine.queues.remove(&queue) {
            let (sender, receiver) = channel();
            let then = sender.clone();
            let removed = Box::new(move || sender.send(()).unwrap());
            machine.handle.command(|commands| commands.remove(id, removed));
            receiver.recv().unwrap();
            machine
                .device
                .release(queue, Box::new(move || then.send(()).unwrap()));
            receiver.recv().unwrap();
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.borrow().queues.contains_key(&queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let config = self.0.borrow().device.config();
        let bytes = config
            .get(offset..offset + size_of::<T>())
            .ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_bytes(bytes).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Ok(())
    }
}
