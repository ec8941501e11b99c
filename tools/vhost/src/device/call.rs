//! [`Call`]: interrupts from a server, by an event descriptor that the server shares.
//!
//! The server could make a read of it block at any time. It is never read: an epoll instance of our own,
//! edge-triggered, is readable after each call, and polled instead.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{Timespec, epoll};

/// See the module.
pub struct Call {
    epoll: OwnedFd,
    event: OwnedFd,
}

impl Call {
    /// Takes the descriptor. If there have been calls already, it is ready at once.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(event: OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &event, epoll::EventData::new_u64(0), flags)?;
        Ok(Self { epoll, event })
    }

    /// Returns the descriptor to poll.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Returns the server's descriptor.
    #[must_use]
    pub const fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// Returns whether there were calls since the last time.
    pub fn take(&self) -> bool {
        let mut events = Vec::with_capacity(1);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let waited = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        );
        waited.is_ok() && !events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};

    use super::Call;

    #[test]
    fn each_call_is_seen_and_none_is_read() {
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        let ring = || rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
        let copy = || -> OwnedFd { event.as_fd().try_clone_to_owned().unwrap() };
        let call = Call::new(copy()).unwrap();
        assert!(!call.take());
        ring();
        ring();
        assert!(call.take() && !call.take());
        ring();
        assert!(call.take());
        // A successor does not know what was seen.
        assert!(Call::new(copy()).unwrap().take());
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&event, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 3);
    }
}
