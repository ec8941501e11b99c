//! [`FrontEngine`]: ringblk's operations as requests in a server's rings.
//!
//! An operation is kept until the server has completed it. When the server goes down, all operations are
//! requested again from the next one, in order of arrival; their submitter notices only the delay.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::Arc;

use ringblk::engine::{Engine, IoOp};
use ringblk::remote::RemoteEngine;
use ringvirtio::Completion;
use ringvirtio::GuestRam;

use super::connect::DiskInfo;
use super::kick::Kick;
use super::request::Operation;
use super::ring::{DriverRing, UsedRequest};
use super::shared::SharedRings;
use super::state::{LinkEvent, LinkState};

/// A connected server.
struct Server {
    info: DiskInfo,
    rings: SharedRings,
    kicks: Vec<Kick>,
    /// It has broken the protocol and is being disconnected.
    faulty: bool,
}

/// The engine of one disk in one guest's memory.
pub struct FrontEngine {
    link: Arc<LinkState>,
    ram: Arc<GuestRam>,
    server: Option<Server>,
    /// By order of arrival.
    operations: BTreeMap<u64, Operation>,
    /// Those that are not in a ring.
    waiting: VecDeque<u64>,
    next_key: u64,
    done: Vec<Completion>,
    /// Storage for one request's buffers.
    parts: Vec<(u64, u32)>,
    /// Queues whose operations are being abandoned: tags without their low 16 bits.
    abandoned: Vec<u64>,
    /// Number of waits for the server to release abandoned operations.
    abandon_waits: u64,
}

/// Bits of a tag within its queue.
const IN_QUEUE: u64 = 0xffff;

impl FrontEngine {
    pub fn new(link: Arc<LinkState>, ram: Arc<GuestRam>) -> Self {
        Self {
            link,
            ram,
            server: None,
            operations: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_key: 0,
            done: Vec::new(),
            parts: Vec::new(),
            abandoned: Vec::new(),
            abandon_waits: 0,
        }
    }

    /// Moves waiting operations into the rings, as long as there is room.
    fn fill(&mut self) {
        while let Some(&key) = self.waiting.front() {
            let Some(server) = self.server.as_mut().filter(|server| !server.faulty) else {
                return;
            };
            let Some(operation) = self.operations.get_mut(&key) else {
                self.waiting.pop_front();
                continue;
            };
            let queue = (operation.op.tag >> 16) as usize % server.rings.rings.len().max(1);
            let Some(ring) = server.rings.rings.get_mut(queue) else {
                return;
            };
            if ring.is_full() {
                return;
            }
            self.parts.clear();
            match operation.next_request(&server.info, &self.ram, &mut self.parts) {
                Ok(request) => {
                    ring.push(key, request, &self.parts);
                }
                Err(result) => self.finish(key, result),
            }
            self.waiting.pop_front();
        }
    }

    fn kick(&mut self) {
        if let Some(server) = self.server.as_mut().filter(|server| !server.faulty) {
            for (ring, kick) in server.rings.rings.iter_mut().zip(&mut server.kicks) {
                if ring.publish() {
                    kick.kick();
                }
            }
        }
    }

    fn finish(&mut self, key: u64, result: i32) {
        if let Some(operation) = self.operations.remove(&key) {
            let tag = operation.op.tag;
            self.done.push(Completion { tag, result });
        }
    }

    fn complete(&mut self, completion: UsedRequest) {
        let key = completion.token;
        let cached = self.server.as_ref().is_some_and(|server| server.info.flush);
        let Some(operation) = self.operations.get_mut(&key) else {
            return;
        };
        match operation.complete_request(completion.status, cached) {
            Some(result) => self.finish(key, result),
            None => self.waiting.push_back(key),
        }
    }

    /// Handles the link's events and the server's completions, and requests what waits.
    fn advance(&mut self) {
        for event in self.link.take_events() {
            match event {
                LinkEvent::Connected { info, rings, kicks } => {
                    self.server = Some(Server {
                        info,
                        rings,
                        kicks,
                        faulty: false,
                    });
                }
                LinkEvent::Faulty => {
                    self.take_completions();
                    if let Some(server) = &mut self.server {
                        server.faulty = true;
                    }
                }
                LinkEvent::Disconnected => {
                    self.take_completions();
                    self.server = None;
                    // Abandoned operations are released now. The next server may be connected already, and
                    // must not get them.
                    let abandoned = &self.abandoned;
                    self.operations
                        .retain(|_, operation| !abandoned.contains(&(operation.op.tag & !IN_QUEUE)));
                    // Everything again, also writes that waited for a flush: the next server may not have
                    // them.
                    for operation in self.operations.values_mut() {
                        operation.written = false;
                    }
                    self.waiting = self.operations.keys().copied().collect();
                }
            }
        }
        self.take_completions();
        self.fill();
        self.kick();
        if !self.abandoned.is_empty() {
            self.end_abandoned();
        }
    }

    /// Removes the abandoned queues that have no operations left.
    fn end_abandoned(&mut self) {
        let operations = &self.operations;
        let has = |tag: u64| operations.values().any(|o| o.op.tag & !IN_QUEUE == tag);
        self.abandoned.retain(|&tag| has(tag));
        if self.abandoned.is_empty() {
            self.link.set_abandon_wait(0);
        }
    }

    fn take_completions(&mut self) {
        let mut queue = 0;
        while let Some(server) = self.server.as_mut().filter(|server| !server.faulty) {
            let Some(ring) = server.rings.rings.get_mut(queue) else {
                return;
            };
            match ring.pop() {
                Ok(Some(completion)) => self.complete(completion),
                Ok(None) => queue += 1,
                Err(fault) => {
                    if self.link.log.allows() {
                        tracing::error!(%fault, "the disk's server breaks the protocol: rejected");
                    }
                    server.faulty = true;
                    self.link.reject();
                }
            }
        }
    }
}

impl Engine for FrontEngine {
    unsafe fn push(&mut self, op: IoOp) {
        let key = self.next_key;
        self.next_key += 1;
        self.operations.insert(key, Operation::new(op));
        self.waiting.push_back(key);
    }

    fn submit(&mut self) {
        self.advance();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.advance();
        done.append(&mut self.done);
    }
}

impl RemoteEngine for FrontEngine {
    fn event(&self) -> Arc<File> {
        self.link.event.clone()
    }

    fn has_completions(&self) -> bool {
        let server = self.server.as_ref().filter(|server| !server.faulty);
        let completed =
            server.is_some_and(|server| server.rings.rings.iter().any(DriverRing::has_completions));
        completed || self.link.has_events() || !self.done.is_empty()
    }

    fn arm(&mut self) -> bool {
        let rings = self
            .server
            .iter_mut()
            .filter(|server| !server.faulty)
            .flat_map(|server| &mut server.rings.rings);
        let more = rings.fold(false, |more, ring| ring.arm() | more);
        more || self.link.has_events() || !self.done.is_empty()
    }

    fn abandon(&mut self, tag_base: u64) -> bool {
        self.advance();
        let of = |tag: u64| tag & !IN_QUEUE == tag_base;
        if self.server.is_none() {
            self.operations.retain(|_, operation| !of(operation.op.tag));
            self.end_abandoned();
        }
        if self.done.iter().any(|done| of(done.tag)) {
            // The reactor reaps before it sleeps.
            return false;
        }
        if !self.operations.values().any(|operation| of(operation.op.tag)) {
            return true;
        }
        if !self.abandoned.contains(&tag_base) {
            self.abandoned.push(tag_base);
            if let [_] = *self.abandoned {
                self.abandon_waits += 1;
                self.link.set_abandon_wait(self.abandon_waits);
            }
        }
        false
    }
}

impl Drop for FrontEngine {
    fn drop(&mut self) {
        self.link.end();
    }
}

#[cfg(test)]
mod tests {
    use ringblk::engine::{Engine, IoKind, IoOp};
    use ringblk::remote::RemoteEngine;
    use ringblk::{Disk, DiskConfig};
    use ringvirtio::GuestRam;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::FrontEngine;
    use crate::front::connect::DiskInfo;
    use crate::front::shared::SharedRings;
    use crate::front::state::{LinkEvent, LinkState};

    fn connected() -> LinkEvent {
        LinkEvent::Connected {
            info: DiskInfo {
                size: 1 << 20,
                block_size: 512,
                readonly: false,
                flush: true,
                discard: 0,
                write_zeroes: 0,
                segments: 1,
                queues: 1,
                features: 0,
            },
            rings: SharedRings::new(1, false).unwrap(),
            kicks: Vec::new(),
        }
    }

    /// The next server may be connected before the engine has run.
    #[test]
    fn an_abandoned_queue_is_released_when_the_server_disconnects() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        // An operation names an image, which this engine does not use.
        let disk = Disk::open(&DiskConfig {
            path: file.path().into(),
            ..DiskConfig::default()
        })
        .unwrap();
        let link = LinkState::new().unwrap();
        let mut engine = FrontEngine::new(link.clone(), GuestRam::new(memory).unwrap());
        link.push(connected());
        let (leaving, staying) = (1 << 16, 2 << 16);
        for tag in [leaving, staying] {
            let op = IoOp {
                tag,
                image: disk.image(),
                kind: IoKind::Sync,
                iov: std::ptr::null(),
                count: 0,
                offset: 0,
                len: 0,
                owner: 0,
                immediate: false,
            };
            // SAFETY: it has no buffers.
            unsafe { engine.push(op) };
        }
        assert!(!engine.abandon(leaving));
        link.push(LinkEvent::Disconnected);
        link.push(connected());
        assert!(engine.abandon(leaving), "no server has it");
        assert!(engine.abandoned.is_empty());
        let rings = |engine: &FrontEngine| engine.server.as_ref().unwrap().rings.rings[0].outstanding();
        assert_eq!(rings(&engine), 1, "the other queue's is requested again");
        // A server that has broken the protocol gets no more requests.
        link.push(LinkEvent::Faulty);
        assert!(!engine.abandon(staying));
        let again = engine.operations.values().next().unwrap().op;
        // SAFETY: as above.
        unsafe { engine.push(again) };
        engine.submit();
        assert_eq!(rings(&engine), 1);
        assert!(!engine.arm());
    }
}
