//! A tap device that is not always there: it has no room now and then, refuses packets, and is interrupted.
//! It outlives daemons, as a tap does, and remembers what it was given.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use ringnet::port::fake::FakePort;
use ringnet::{Offloads, Port};
use ringvirtio::memory::IoVec;

use crate::rng::Rng;

/// What a tap does wrong, in thousandths of its calls.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// It has no room.
    no_room: u64,
    /// It refuses a packet.
    refuse: u64,
    /// A signal interrupts the call.
    interrupt: u64,
}

struct State {
    rng: Rng,
    faults: Faults,
    /// Packets refused.
    refused: u64,
}

/// See the module.
pub struct SimTap {
    port: Arc<FakePort>,
    state: Mutex<State>,
}

impl SimTap {
    /// Returns a tap without packets, whose faults follow from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let mut some = |most| {
            if rng.chance(500) { rng.range(1, most) } else { 0 }
        };
        let faults = Faults {
            no_room: some(300),
            refuse: some(100),
            interrupt: some(100),
        };
        Arc::new(Self {
            port: FakePort::new(1, Offloads::default()),
            state: Mutex::new(State {
                rng,
                faults,
                refused: 0,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the simulation has one thread")
    }

    /// A frame arrives.
    pub fn arrive(&self, frame: &[u8]) {
        self.port.arrive(0, frame);
    }

    /// Returns how many frames have arrived and were not received.
    #[must_use]
    pub fn arriving(&self) -> usize {
        self.port.state().arriving.iter().map(|queue| queue.len()).sum()
    }

    /// Takes the frames that were sent since the last time.
    #[must_use]
    pub fn take_sent(&self) -> Vec<Vec<u8>> {
        let sent = self.port.sent();
        self.port.state().sent.clear();
        sent
    }

    /// Returns how many packets it has refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.state().refused
    }

    /// From now on it does nothing wrong.
    pub fn mend(&self) {
        self.state().faults = Faults::default();
    }

    fn draw(&self, kind: impl FnOnce(&Faults) -> u64) -> bool {
        let mut state = self.state();
        let per_mille = kind(&state.faults);
        state.rng.chance(per_mille)
    }
}

impl Port for SimTap {
    fn offloads(&self) -> Offloads {
        self.port.offloads()
    }

    fn pairs(&self) -> u16 {
        1
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        self.port.fd(pair)
    }

    fn has_header(&self) -> bool {
        true
    }

    unsafe fn receive(&self, pair: u16, room: &[IoVec]) -> io::Result<usize> {
        if self.draw(|faults| faults.interrupt) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // SAFETY: by the contract of this function.
        unsafe { self.port.receive(pair, room) }
    }

    unsafe fn send(&self, pair: u16, packet: &[IoVec]) -> io::Result<()> {
        if self.draw(|faults| faults.no_room) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.draw(|faults| faults.interrupt) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.draw(|faults| faults.refuse) {
            self.state().refused += 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        // SAFETY: by the contract of this function.
        unsafe { self.port.send(pair, packet) }
    }

    fn set_guest_offloads(&self, guest: u64) -> io::Result<()> {
        self.port.set_guest_offloads(guest)
    }

    fn set_active_pairs(&self, count: u16) -> io::Result<()> {
        self.port.set_active_pairs(count)
    }
}
