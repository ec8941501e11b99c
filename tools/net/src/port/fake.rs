//! [`FakePort`]: a port in memory that a test controls.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use ringvirtio::memory::IoVec;
use ringvirtio::waiter::eventfd;

use super::{HEADER, Port, copy_in, copy_out};
use crate::offloads::Offloads;

/// What a port in memory has seen and has.
#[derive(Default)]
pub struct PortState {
    /// Sent by the driver: pair, header and frame.
    pub sent: Vec<(u16, Vec<u8>)>,
    /// To be received, for each pair: header and frame.
    pub arriving: Vec<VecDeque<Vec<u8>>>,
    /// How many packets may be sent before there is no room; `None`: any number.
    pub room: Option<usize>,
    /// As the device has set them.
    pub guest_offloads: u64,
    /// As the device has set them.
    pub active_pairs: u16,
    /// Every call fails.
    pub broken: bool,
}

/// A port in memory.
pub struct FakePort {
    state: Mutex<PortState>,
    events: Vec<OwnedFd>,
    offloads: Offloads,
    has_header: bool,
}

impl FakePort {
    /// Returns a port with headers of its own.
    #[must_use]
    pub fn new(pairs: u16, offloads: Offloads) -> Arc<Self> {
        Self::with_header(pairs, offloads, true)
    }

    /// Returns a port whose received packets have headers, or not.
    #[must_use]
    pub fn with_header(pairs: u16, offloads: Offloads, has_header: bool) -> Arc<Self> {
        let state = PortState {
            arriving: vec![VecDeque::new(); pairs.into()],
            ..PortState::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            events: (0..pairs).map(|_| eventfd().unwrap()).collect(),
            offloads,
            has_header,
        })
    }

    /// Returns what it has seen and has.
    ///
    /// # Panics
    /// Another test has panicked with it.
    pub fn state(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().unwrap()
    }

    /// A frame arrives, with an empty header.
    pub fn arrive(&self, pair: u16, frame: &[u8]) {
        self.arrive_with(pair, [0; HEADER], frame);
    }

    /// A frame arrives, with this header.
    pub fn arrive_with(&self, pair: u16, header: [u8; HEADER], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        self.state().arriving[usize::from(pair)].push_back(packet);
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight bytes.
        let written =
            unsafe { libc::write(self.events[usize::from(pair)].as_raw_fd(), one.as_ptr().cast(), 8) };
        assert_eq!(written, 8);
    }

    /// Returns the frames that the driver has sent.
    #[must_use]
    pub fn sent(&self) -> Vec<Vec<u8>> {
        let state = self.state();
        state
            .sent
            .iter()
            .map(|(_, packet)| packet[HEADER..].to_vec())
            .collect()
    }
}

impl Port for FakePort {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn pairs(&self) -> u16 {
        self.events.len() as u16
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        self.events.get(usize::from(pair)).map(AsRawFd::as_raw_fd)
    }

    fn has_header(&self) -> bool {
        self.has_header
    }

    unsafe fn receive(&self, pair: u16, room: &[IoVec]) -> io::Result<usize> {
        let mut state = self.state();
        if state.broken {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        let Some(packet) = state.arriving[usize::from(pair)].pop_front() else {
            let mut count = [0_u8; 8];
            let event = self.events[usize::from(pair)].as_raw_fd();
            // SAFETY: a pollfd.
            let ready = unsafe {
                libc::poll(
                    &mut libc::pollfd {
                        fd: event,
                        events: libc::POLLIN,
                        revents: 0,
                    },
                    1,
                    0,
                )
            };
            if ready == 1 {
                // SAFETY: eight bytes.
                unsafe { libc::read(event, count.as_mut_ptr().cast(), 8) };
            }
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let first = if self.has_header { 0 } else { HEADER };
        // SAFETY: by the contract of this function.
        let copied = unsafe { copy_in(room, first, &packet[first..]) };
        Ok(first + copied)
    }

    unsafe fn send(&self, pair: u16, packet: &[IoVec]) -> io::Result<()> {
        let mut state = self.state();
        if state.broken {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some(room) = &mut state.room {
            *room = room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        }
        let mut bytes = vec![0; packet.iter().map(IoVec::len).sum()];
        // SAFETY: by the contract of this function.
        unsafe { copy_out(packet, 0, &mut bytes) };
        state.sent.push((pair, bytes));
        Ok(())
    }

    fn set_guest_offloads(&self, guest: u64) -> io::Result<()> {
        self.state().guest_offloads = guest;
        Ok(())
    }

    fn set_active_pairs(&self, count: u16) -> io::Result<()> {
        self.state().active_pairs = count;
        Ok(())
    }
}
