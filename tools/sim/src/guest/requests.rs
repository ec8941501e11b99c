//! The requests of the guest: their kinds, their layout in memory, and the completions that are right.

use ringblk::virtio::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_drivers::transport::Transport;

use super::{Guest, Queue};
use crate::disk::SECTOR;
use crate::memory;
use crate::model::{Change, Covered, Model, content};
use crate::world::{Party, SECTORS, SERIAL};

/// `VIRTIO_BLK_S_IOERR`
const IOERR: u8 = 1;
/// `VIRTIO_BLK_S_UNSUPP`
const UNSUPP: u8 = 2;
/// Maximum number of segments of a request.
const SEGMENTS: u64 = 3;

#[derive(Debug)]
pub(super) enum Kind {
    Read,
    Change(Change),
    Flush {
        covered: Covered,
        after_failure: bool,
    },
    GetId,
    /// An invalid request and the status that is expected for it.
    Wrong {
        number: u32,
        status: u8,
    },
}

impl Kind {
    /// Returns the request's type.
    fn number(&self) -> u32 {
        match self {
            Self::Read => VIRTIO_BLK_T_IN,
            Self::Change(Change::Write) => VIRTIO_BLK_T_OUT,
            Self::Change(Change::Zeroes) => VIRTIO_BLK_T_WRITE_ZEROES,
            Self::Change(Change::Discard) => VIRTIO_BLK_T_DISCARD,
            Self::Flush { .. } => VIRTIO_BLK_T_FLUSH,
            Self::GetId => VIRTIO_BLK_T_GET_ID,
            Self::Wrong { number, .. } => *number,
        }
    }

    /// Returns whether its data buffers are device-readable.
    fn has_readable_data(&self) -> bool {
        matches!(
            self.number(),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
        )
    }
}

pub(super) struct Request {
    kind: Kind,
    /// Sectors: the first and the number of them.
    ranges: Vec<(usize, usize)>,
    /// How often the cache's mode had been set, if it was writethrough: if it has not been set since, the
    /// completion implies durability.
    through: Option<u64>,
    header: Vec<u8>,
    data: Vec<Vec<u8>>,
    status: Vec<u8>,
}

impl Request {
    /// Adds the request to the queue and returns its token.
    fn add(&mut self, queue: &mut Queue) -> Result<u16, virtio_drivers::Error> {
        let (inputs, mut outputs) = self.buffers();
        // SAFETY: the HAL copies, so the device never touches these buffers themselves.
        unsafe { queue.add(&inputs, &mut outputs) }
    }

    /// Takes the completed request from the queue and returns the used length.
    pub(super) fn pop(&mut self, queue: &mut Queue, token: u16) -> Result<u32, virtio_drivers::Error> {
        let (inputs, mut outputs) = self.buffers();
        // SAFETY: the buffers that were added with this token.
        unsafe { queue.pop_used(token, &inputs, &mut outputs) }
    }

    fn buffers(&mut self) -> (Vec<&[u8]>, Vec<&mut [u8]>) {
        let mut inputs: Vec<&[u8]> = vec![&self.header];
        let mut outputs: Vec<&mut [u8]> = Vec::new();
        if self.kind.has_readable_data() {
            inputs.extend(self.data.iter().map(Vec::as_slice));
        } else {
            outputs.extend(self.data.iter_mut().map(Vec::as_mut_slice));
        }
        outputs.push(&mut self.status);
        (inputs, outputs)
    }

    fn bytes(&self) -> Vec<u8> {
        self.data.concat()
    }

    /// Drops a request that will never complete, or whose completion cannot be checked.
    pub(super) fn forget(self, model: &mut Model) {
        for &(first, count) in &self.ranges {
            match self.kind {
                Kind::Read => model.abandon_read(first, count),
                Kind::Change(_) => model.abandon_change(first, count),
                _ => {}
            }
        }
    }
}

/// Returns a `struct virtio_blk_discard_write_zeroes` (virtio 1.2, 5.2.6).
fn segment(first: usize, count: usize, flags: u32) -> impl Iterator<Item = u8> {
    let sector = (first as u64).to_le_bytes();
    let count = (count as u32).to_le_bytes();
    sector.into_iter().chain(count).chain(flags.to_le_bytes())
}

impl Guest {
    /// Submits a random request, if the queue has room.
    pub(super) fn submit(&mut self, number: usize) {
        let first = self.below(SECTORS as u64) as usize;
        let count = (1 + self.below(4) as usize).min(SECTORS - first);
        let profile = self.profile();
        match self.below(if profile.ranges { 13 } else { 10 }) {
            0..=3 if self.room(number) && self.model.can_write(first, count) => {
                let stamp = self.model.change(Change::Write, first, count);
                let bytes: Vec<u8> = (first..first + count)
                    .flat_map(|sector| content(stamp, sector))
                    .collect();
                self.offer(number, Kind::Change(Change::Write), vec![(first, count)], bytes);
            }
            4..=6 if self.room(number) && self.model.can_read(first, count) => {
                self.model.read(first, count);
                self.offer(number, Kind::Read, vec![(first, count)], vec![0; count * SECTOR]);
            }
            7 | 8 if profile.flush => self.submit_flush(number),
            9 if self.room(number) => self.submit_other(number),
            10.. if self.room(number) => self.submit_ranges(number),
            _ => {}
        }
    }

    pub(super) fn submit_flush(&mut self, number: usize) {
        if self.profile().flush && self.room(number) {
            let kind = Kind::Flush {
                covered: self.model.flush(),
                after_failure: self.flush_failed,
            };
            self.offer(number, kind, Vec::new(), Vec::new());
        }
    }

    /// Submits a discard or write-zeroes request of some ranges.
    fn submit_ranges(&mut self, number: usize) {
        let what = match self.below(3) {
            0 => Change::Discard,
            _ => Change::Zeroes,
        };
        let (mut ranges, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.below(SEGMENTS) {
            let first = self.below(SECTORS as u64) as usize;
            let count = (1 + self.below(6) as usize).min(SECTORS - first);
            // This also excludes earlier segments of this request.
            if !self.model.can_write(first, count) {
                continue;
            }
            self.model.change(what, first, count);
            let unmap = what == Change::Zeroes && self.chance(500);
            let flags = if unmap {
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
            } else {
                0
            };
            ranges.push((first, count));
            bytes.extend(segment(first, count, flags));
        }
        if !ranges.is_empty() {
            self.offer(number, Kind::Change(what), ranges, bytes);
        }
    }

    /// Submits a request that changes nothing: GET_ID, or an invalid one.
    fn submit_other(&mut self, number: usize) {
        let wrong = |number, status| Kind::Wrong { number, status };
        let known = self.profile().ranges;
        // The first segment is valid; it must not be carried out either.
        let with = |first, count, flags| segment(0, 1, 0).chain(segment(first, count, flags)).collect();
        let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
        let bad = |status| if known { status } else { UNSUPP };
        let (kind, bytes): (Kind, Vec<u8>) = match self.below(8) {
            0 | 1 => (Kind::GetId, vec![0; 20]),
            2 => (wrong(VIRTIO_BLK_T_IN, IOERR), vec![0; SECTOR]),
            3 => (wrong(0x7777, UNSUPP), vec![0; SECTOR]),
            4 => (wrong(zeroes, bad(IOERR)), with(SECTORS - 1, 2, 0)),
            5 => (wrong(zeroes, UNSUPP), with(1, 1, 2)),
            6 => (wrong(discard, bad(IOERR)), with(SECTORS, 1, 0)),
            _ => (
                wrong(discard, UNSUPP),
                with(1, 1, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
            ),
        };
        self.offer(number, kind, vec![(SECTORS, 0)], bytes);
    }

    /// Returns whether a request with the largest number of buffers fits.
    fn room(&self, number: usize) -> bool {
        let queue = self.queues[number].queue.as_ref();
        queue.is_some_and(|queue| queue.available_desc() >= 5)
    }

    fn offer(&mut self, number: usize, kind: Kind, ranges: Vec<(usize, usize)>, mut bytes: Vec<u8>) {
        let mut header = kind.number().to_le_bytes().to_vec();
        header.extend([0; 4]);
        let first = match kind {
            Kind::Change(Change::Zeroes | Change::Discard) => 0,
            _ => ranges.first().map_or(0, |range| range.0),
        };
        header.extend((first as u64).to_le_bytes());
        // Up to three buffers, split anywhere.
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
            ranges,
            through: (!self.cache.back).then_some(self.cache.set),
            header,
            data,
            status: vec![0],
        };
        memory::set_owner(number);
        let Some(queue) = &mut self.queues[number].queue else {
            return request.forget(&mut self.model);
        };
        let token = match request.add(queue) {
            Ok(token) => token,
            Err(error) => return self.fail(format!("a request cannot be added: {error}")),
        };
        let notify = queue.should_notify();
        let name = match request.kind {
            Kind::Flush { .. } => "Flush".into(),
            ref other => format!("{other:?}"),
        };
        self.event(format_args!(
            "submits {token} to {number}: {name} {:?}, notify {notify}",
            request.ranges
        ));
        self.queues[number].outstanding.insert(token, request);
        if notify {
            self.transport.notify(number as u16);
        }
    }

    pub(super) fn answered(&mut self, number: usize, token: u16, request: Request, len: u32) {
        let status = request.status[0];
        let bytes = request.bytes();
        {
            let mut world = self.world.borrow_mut();
            world.counts.answered += 1;
            world.counts.errors += u64::from(status == IOERR);
            world.trace.event(format_args!(
                "completion {token} of {number}: status {status}, length {len}"
            ));
        }
        if !self.strict {
            return request.forget(&mut self.model);
        }
        if let Err(why) = self.check(request, status, len, &bytes) {
            self.fail(why);
        }
    }

    fn check(&mut self, request: Request, status: u8, len: u32, bytes: &[u8]) -> Result<(), String> {
        let ok = status == 0;
        let profile = self.profile();
        let kills = self.world.borrow().counts.kills;
        let expected = match request.kind {
            Kind::Wrong { status: wanted, .. } => status == wanted,
            Kind::GetId => ok,
            Kind::Change(Change::Zeroes) if profile.unsupported > 0 && status == UNSUPP => true,
            _ => ok || status == IOERR && (profile.fail > 0 || profile.fail_sync > 0),
        };
        let Request { ranges, through, .. } = request;
        let what = format!("{ranges:?}, status {status:#x}, length {len}");
        if !expected {
            return Err(format!("unexpected completion of {:?} {what}", request.kind));
        }
        match request.kind {
            Kind::Read => {
                for (first, _) in ranges {
                    self.model.read_done(first, bytes, ok)?;
                }
                if ok && len as usize != bytes.len() + 1 {
                    return Err(format!("wrong used length of a read: {what}"));
                }
            }
            Kind::Change(change) => {
                // A discard guarantees nothing.
                let durable = change != Change::Discard && through == Some(self.cache.set);
                for (first, count) in ranges {
                    self.model.changed(first, count, ok, durable);
                }
            }
            Kind::Flush {
                covered,
                after_failure,
            } => {
                // After a kill the completion may be the next daemon's, for which no flush has failed.
                if ok && after_failure && kills == 0 {
                    return Err("a flush completes with OK after one that failed".into());
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
            Kind::Wrong { .. } => {
                if !request.kind.has_readable_data() && bytes.iter().any(|&byte| byte != 0xa5) {
                    return Err(format!("a request that failed has transferred data: {what}"));
                }
            }
        }
        Ok(())
    }
}
