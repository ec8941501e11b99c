//! The guest: `virtio-drivers`' queue under a driver that keeps many requests in flight and checks every answer.

use std::collections::BTreeMap;

use ringblk::virtio::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use ringvisor::virtio::features::bit;
use ringvisor::virtio::registers as reg;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::disk::SECTOR;
use crate::memory::{self, SimHal};
use crate::model::{Covered, Model, content};
use crate::transport::SimTransport;
use crate::world::{QUEUE_SIZE, SECTORS, SERIAL, SharedWorld};

/// Turns within which all that is outstanding must end once the guest only waits.
const PATIENCE: u32 = 50_000;

#[derive(Debug)]
enum Kind {
    Read,
    Write,
    Flush {
        covered: Covered,
        after_failure: bool,
    },
    GetId,
    /// Behind the end of the disk: IOERR.
    Beyond,
    /// A type that does not exist: UNSUPP.
    Unknown,
}

struct Request {
    kind: Kind,
    first: usize,
    count: usize,
    header: Vec<u8>,
    data: Vec<Vec<u8>>,
    status: Vec<u8>,
}

impl Request {
    /// Adds it to the queue; the token.
    fn add(&mut self, queue: &mut Queue) -> Result<u16, virtio_drivers::Error> {
        let writes = matches!(self.kind, Kind::Write);
        let mut inputs: Vec<&[u8]> = vec![&self.header];
        let mut outputs: Vec<&mut [u8]> = Vec::new();
        if writes {
            inputs.extend(self.data.iter().map(Vec::as_slice));
        } else {
            outputs.extend(self.data.iter_mut().map(Vec::as_mut_slice));
        }
        outputs.push(&mut self.status);
        // SAFETY: the HAL copies, so the device never touches these buffers themselves.
        unsafe { queue.add(&inputs, &mut outputs) }
    }

    /// Takes it back from the queue; the used length.
    fn pop(&mut self, queue: &mut Queue, token: u16) -> Result<u32, virtio_drivers::Error> {
        let writes = matches!(self.kind, Kind::Write);
        let mut inputs: Vec<&[u8]> = vec![&self.header];
        let mut outputs: Vec<&mut [u8]> = Vec::new();
        if writes {
            inputs.extend(self.data.iter().map(Vec::as_slice));
        } else {
            outputs.extend(self.data.iter_mut().map(Vec::as_mut_slice));
        }
        outputs.push(&mut self.status);
        // SAFETY: the buffers that were added with this token.
        unsafe { queue.pop_used(token, &inputs, &mut outputs) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.data.concat()
    }
}

type Queue = VirtQueue<SimHal, QUEUE_SIZE>;

/// See the module.
pub struct Guest {
    world: SharedWorld,
    transport: SimTransport,
    queue: Option<Queue>,
    outstanding: BTreeMap<u16, Request>,
    model: Model,
    /// Answers are checked: nobody else writes to the guest's memory.
    strict: bool,
    /// A flush has failed.
    flush_failed: bool,
    /// The guest looks without being interrupted.
    polls: bool,
}

impl Guest {
    /// A guest whose driver has not begun.
    #[must_use]
    pub fn new(world: SharedWorld, model: Model) -> Self {
        let strict = world.borrow().profile.second_vcpu == 0;
        Self {
            transport: SimTransport { world: world.clone() },
            world,
            queue: None,
            outstanding: BTreeMap::new(),
            model,
            strict,
            flush_failed: false,
            polls: false,
        }
    }

    fn chance(&self, per_mille: u64) -> bool {
        self.world.borrow_mut().rng.chance(per_mille)
    }

    fn below(&self, bound: u64) -> u64 {
        self.world.borrow_mut().rng.below(bound)
    }

    fn event(&self, what: std::fmt::Arguments<'_>) {
        self.world.borrow_mut().trace.event(what);
    }

    fn failed(&self) -> bool {
        self.world.borrow().failure.is_some()
    }

    fn fail(&self, why: impl Into<String>) {
        self.world.borrow_mut().fail(why);
    }

    fn turn(&self) {
        self.world.borrow_mut().turn();
    }

    /// The whole run.
    pub fn run(&mut self) {
        self.set_up();
        let (actions, patience) = {
            let world = self.world.borrow();
            (world.profile.actions, world.profile.patience)
        };
        for _ in 0..actions {
            if self.failed() {
                return;
            }
            self.act();
            for _ in 0..self.below(patience * 4) {
                self.turn();
            }
        }
        if self.failed() {
            return;
        }
        let (power_cut, hostile) = {
            let world = self.world.borrow();
            let hostile = world.profile.second_vcpu > 0 || world.profile.scribble > 0;
            (world.profile.power_cut, hostile)
        };
        if hostile {
            self.make_peace();
        } else if power_cut {
            let mut world = self.world.borrow_mut();
            let world = &mut *world;
            world.trace.event(format_args!("the power is cut"));
            let left = world.disk.cut(&mut world.rng);
            if let Err(why) = self.model.check_durable(&left) {
                world.fail(why);
            }
            return;
        }
        self.finish();
    }

    /// Waits for everything, then checks the whole image and what a power cut leaves after a last flush.
    fn finish(&mut self) {
        self.drain();
        if self.failed() {
            return;
        }
        self.submit_flush();
        self.drain();
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        let checked = self.model.check_image(&world.disk.image()).and_then(|()| {
            let left = world.disk.cut(&mut world.rng);
            self.model.check_durable(&left)
        });
        if let Err(why) = checked {
            world.fail(why);
        }
    }

    /// After hostile times: a new daemon, a reset, and then everything is as it should be.
    fn make_peace(&mut self) {
        self.event(format_args!("peace"));
        self.world.borrow_mut().make_peace();
        self.reset();
        if !self.strict {
            // Nobody can say what was written.
            self.model.adopt();
            self.strict = true;
        }
        for _ in 0..6 {
            if self.failed() {
                return;
            }
            self.submit();
            self.turn();
        }
    }

    /// One of the things that a driver does.
    fn act(&mut self) {
        let (reset, queue_reset, spurious) = {
            let world = self.world.borrow();
            (
                world.profile.reset,
                world.profile.queue_reset,
                world.profile.spurious,
            )
        };
        if self.chance(reset) {
            return self.reset();
        }
        if self.chance(queue_reset) {
            return self.reset_queue();
        }
        if self.chance(spurious) {
            self.event(format_args!("notifies for nothing"));
            let queue = self.below(3) as u16;
            self.transport.notify(queue);
        }
        if self.chance(60) {
            self.polls = !self.polls;
            let enable = !self.polls;
            if let Some(queue) = &mut self.queue {
                queue.set_dev_notify(enable);
            }
            // What came before the change was seen raises no interrupt.
            self.take_used();
        }
        if self.polls && self.chance(300) || self.chance(spurious) {
            self.take_used();
        }
        self.interrupt();
        for _ in 0..self.below(5) {
            self.submit();
        }
    }

    /// As a driver does when its line is asserted, and never else.
    fn interrupt(&mut self) {
        if self.world.borrow().el2.line() {
            let status = self.transport.ack_interrupt();
            self.event(format_args!("interrupt {:#x}", status.bits()));
            self.take_used();
        }
        let status = self.transport.get_status();
        if self.strict && status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.fail("a decent driver is told that the device needs a reset");
        }
    }

    /// From reset to DRIVER_OK.
    fn set_up(&mut self) {
        self.transport.set_status(DeviceStatus::empty());
        let (flush, event_idx, indirect) = {
            let world = self.world.borrow();
            (
                world.profile.flush,
                world.profile.event_idx,
                world.profile.indirect,
            )
        };
        let mut steps = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.transport.set_status(steps);
        let offered = self.transport.read_device_features();
        let mut wanted = bit::VERSION_1 | bit::RING_RESET;
        for (want, feature) in [
            (flush, bit::BLK_FLUSH),
            (event_idx, bit::EVENT_IDX),
            (indirect, bit::INDIRECT_DESC),
        ] {
            if want {
                wanted |= feature;
            }
        }
        self.transport.write_driver_features(offered & wanted);
        steps |= DeviceStatus::FEATURES_OK;
        self.transport.set_status(steps);
        if !self.transport.get_status().contains(DeviceStatus::FEATURES_OK) && !self.failed() {
            return self.fail("features that were offered are refused");
        }
        self.make_queue();
        steps |= DeviceStatus::DRIVER_OK;
        self.transport.set_status(steps);
        self.event(format_args!("DRIVER_OK"));
        let capacity = self.transport.read_config_space::<u64>(0);
        if capacity != Ok(SECTORS as u64) {
            self.fail(format!("capacity {capacity:?}"));
        }
    }

    fn make_queue(&mut self) {
        let (indirect, event_idx) = {
            let world = self.world.borrow();
            (world.profile.indirect, world.profile.event_idx)
        };
        self.polls = false;
        match VirtQueue::new(&mut self.transport, 0, indirect, event_idx) {
            Ok(queue) => self.queue = Some(queue),
            Err(error) => self.fail(format!("the queue cannot be set up: {error}")),
        }
    }

    /// What was outstanding will never be answered; its memory is the driver's again.
    fn forget(&mut self) {
        self.outstanding.clear();
        self.queue = None;
        self.model.forget_outstanding();
        memory::release_all();
    }

    fn reset(&mut self) {
        self.world.borrow_mut().counts.resets += 1;
        self.event(format_args!("resets with {} in flight", self.outstanding.len()));
        self.transport.set_status(DeviceStatus::empty());
        if self.transport.load(reg::STATUS) != 0 && !self.failed() {
            self.fail("Status is not 0 after a reset");
        }
        self.check_silence();
        self.forget();
        self.set_up();
    }

    fn reset_queue(&mut self) {
        self.world.borrow_mut().counts.queue_resets += 1;
        let by_register = self.chance(500);
        let count = self.outstanding.len();
        self.event(format_args!(
            "stops the queue with {count} in flight: {by_register}"
        ));
        if by_register {
            self.transport.store(reg::QUEUE_SEL, 0);
            self.transport.store(reg::QUEUE_RESET, 1);
            if self.chance(200) {
                // It cannot wait.
                for _ in 0..self.below(12) {
                    self.turn();
                }
                return self.reset();
            }
            let mut left = PATIENCE;
            while self.transport.load(reg::QUEUE_RESET) != 0 {
                left -= 1;
                self.world.borrow_mut().wait(left);
                if left == 0 || self.failed() {
                    return self.fail("a queue reset hangs");
                }
            }
        } else {
            self.transport.queue_unset(0);
        }
        if self.transport.load(reg::QUEUE_READY) != 0 && !self.failed() {
            self.fail("a queue is ready after it was stopped");
        }
        self.check_silence();
        self.forget();
        // A broken device takes no queue before it is reset.
        if self
            .transport
            .get_status()
            .contains(DeviceStatus::DEVICE_NEEDS_RESET)
            && !self.strict
        {
            return self.reset();
        }
        self.make_queue();
    }

    /// Not one byte of memory changes now (torture a9), whatever the others do.
    fn check_silence(&mut self) {
        if !self.strict {
            return;
        }
        let before = memory::snapshot();
        for _ in 0..self.below(30) {
            self.turn();
        }
        if memory::snapshot() != before {
            self.fail("the guest's memory changed after a reset had ended");
        }
    }

    /// Makes a request and adds it, if the queue has room.
    fn submit(&mut self) {
        let first = self.below(SECTORS as u64) as usize;
        let count = (1 + self.below(4) as usize).min(SECTORS - first);
        let flush = self.world.borrow().profile.flush;
        match self.below(10) {
            0..=3 if self.room() && self.model.can_write(first, count) => {
                let stamp = self.model.write(first, count);
                let bytes: Vec<u8> = (first..first + count)
                    .flat_map(|sector| content(stamp, sector))
                    .collect();
                self.offer(Kind::Write, first, count, bytes);
            }
            4..=6 if self.room() && self.model.can_read(first, count) => {
                self.model.read(first, count);
                self.offer(Kind::Read, first, count, vec![0; count * SECTOR]);
            }
            7 | 8 if flush => self.submit_flush(),
            9 if self.room() => {
                let (kind, first, len) = match self.below(3) {
                    0 => (Kind::GetId, 0, 20),
                    1 => (Kind::Beyond, SECTORS, SECTOR),
                    _ => (Kind::Unknown, 0, SECTOR),
                };
                self.offer(kind, first, 0, vec![0; len]);
            }
            _ => {}
        }
    }

    fn submit_flush(&mut self) {
        if self.world.borrow().profile.flush && self.room() {
            let kind = Kind::Flush {
                covered: self.model.flush(),
                after_failure: self.flush_failed,
            };
            self.offer(kind, 0, 0, Vec::new());
        }
    }

    /// Whether a request of the largest number of buffers fits.
    fn room(&self) -> bool {
        self.queue
            .as_ref()
            .is_some_and(|queue| queue.available_desc() >= 5)
    }

    fn offer(&mut self, kind: Kind, first: usize, count: usize, mut bytes: Vec<u8>) {
        let number = match kind {
            Kind::Read | Kind::Beyond => VIRTIO_BLK_T_IN,
            Kind::Write => VIRTIO_BLK_T_OUT,
            Kind::Flush { .. } => VIRTIO_BLK_T_FLUSH,
            Kind::GetId => VIRTIO_BLK_T_GET_ID,
            Kind::Unknown => 0x7777,
        };
        let mut header = number.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend((first as u64).to_le_bytes());
        // Up to three buffers, cut anywhere.
        let mut data = Vec::new();
        while bytes.len() > 1 && data.len() < 2 && self.chance(300) {
            let at = 1 + self.below(bytes.len() as u64 - 1) as usize;
            let rest = bytes.split_off(at);
            data.push(std::mem::replace(&mut bytes, rest));
        }
        if !bytes.is_empty() {
            data.push(bytes);
        }
        let mut request = Request {
            kind,
            first,
            count,
            header,
            data,
            status: vec![0],
        };
        let Some(queue) = &mut self.queue else { return };
        let token = match request.add(queue) {
            Ok(token) => token,
            Err(error) => return self.fail(format!("the queue takes no request: {error}")),
        };
        let notify = queue.should_notify();
        let name = match request.kind {
            Kind::Flush { .. } => "Flush".into(),
            ref other => format!("{other:?}"),
        };
        self.event(format_args!(
            "offers {token}: {name} {first}+{count}, notify {notify}"
        ));
        self.outstanding.insert(token, request);
        if notify {
            self.transport.notify(0);
        }
    }

    /// Takes all that is used.
    fn take_used(&mut self) {
        for _ in 0..2 * QUEUE_SIZE {
            let Some(queue) = &mut self.queue else { return };
            let Some(token) = queue.peek_used() else { return };
            let Some(mut request) = self.outstanding.remove(&token) else {
                if self.strict {
                    self.fail(format!("head {token} was used, but is not outstanding"));
                }
                return;
            };
            match request.pop(queue, token) {
                Ok(len) => self.answered(token, request, len),
                Err(error) if self.strict => self.fail(format!("head {token} cannot be taken: {error}")),
                Err(_) => return,
            }
        }
    }

    fn answered(&mut self, token: u16, request: Request, len: u32) {
        let status = request.status[0];
        let bytes = request.bytes();
        {
            let mut world = self.world.borrow_mut();
            world.counts.answered += 1;
            world.counts.errors += u64::from(status == 1);
            world
                .trace
                .event(format_args!("answer {token}: status {status}, length {len}"));
        }
        if !self.strict {
            return;
        }
        if let Err(why) = self.judge(request, status, len, &bytes) {
            self.fail(why);
        }
    }

    fn judge(&mut self, request: Request, status: u8, len: u32, bytes: &[u8]) -> Result<(), String> {
        let ok = status == 0;
        let (may_fail, flush) = {
            let world = self.world.borrow();
            let profile = &world.profile;
            (profile.fail > 0 || profile.fail_sync > 0, profile.flush)
        };
        let expected = match request.kind {
            Kind::Beyond => status == 1,
            Kind::Unknown => status == 2,
            Kind::GetId => ok,
            _ => ok || status == 1 && may_fail,
        };
        let Request { first, count, .. } = request;
        let what = format!("{first}+{count}, status {status:#x}, length {len}");
        if !expected {
            return Err(format!("unexpected answer to {:?} {what}", request.kind));
        }
        match request.kind {
            Kind::Read => {
                self.model.read_done(first, bytes, ok)?;
                if ok && len as usize != bytes.len() + 1 {
                    return Err(format!("a read says too little or too much: {what}"));
                }
            }
            Kind::Write => self.model.write_done(first, count, ok, !flush),
            Kind::Flush {
                covered,
                after_failure,
            } => {
                if ok && after_failure {
                    return Err("a flush says OK after one that failed".into());
                }
                self.flush_failed |= !ok;
                self.model.flush_done(&covered, ok);
            }
            Kind::GetId => {
                let mut serial = [0; 20];
                serial[..SERIAL.len()].copy_from_slice(SERIAL.as_bytes());
                if bytes != serial {
                    return Err(format!("the serial is {bytes:x?}"));
                }
            }
            Kind::Beyond | Kind::Unknown => {
                if bytes.iter().any(|&byte| byte != 0xa5) {
                    return Err(format!("a request that failed has moved data: {what}"));
                }
            }
        }
        Ok(())
    }

    /// Waits until nothing is outstanding, as a guest that has nothing else to do.
    fn drain(&mut self) {
        let mut left = PATIENCE;
        while !self.outstanding.is_empty() && !self.failed() {
            self.interrupt();
            if self.polls {
                self.take_used();
            }
            if self.outstanding.is_empty() {
                return;
            }
            let mut world = self.world.borrow_mut();
            if world.is_idle() && !world.el2.line() && !world.make_up_for_lost_bell() {
                let heads: Vec<u16> = self.outstanding.keys().copied().collect();
                return world.fail(format!(
                    "everyone sleeps and requests {heads:?} wait: a wake-up is lost"
                ));
            }
            world.turn();
            left -= 1;
            if left == 0 {
                return world.fail("requests do not end");
            }
        }
    }
}
