//! [`EventSources`]: a reactor's event sources, and which watched descriptor belongs to which.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::commands::{Commands, EventSource};
use crate::waiter::{ReadWidth, Waiter};

/// What a watched descriptor belongs to.
#[derive(Clone, Copy)]
pub enum Watched {
    Mailbox,
    Source(usize),
}

struct Registered {
    source: Box<dyn EventSource>,
    /// Kept open for the watch.
    _fd: OwnedFd,
}

/// The event sources, and the mailbox among the watched descriptors.
#[derive(Default)]
pub struct EventSources {
    sources: Vec<Registered>,
    /// By number of the watch; `None` is a back end's, which is reaped in any case.
    watched: Vec<Option<Watched>>,
}

impl EventSources {
    /// Watches the mailbox's descriptor, which stays open.
    pub fn watch_mailbox(&mut self, waiter: &mut Waiter, fd: RawFd) -> io::Result<()> {
        self.watch(waiter, fd, ReadWidth::Eight, Watched::Mailbox)
    }

    fn watch(
        &mut self,
        waiter: &mut Waiter,
        fd: RawFd,
        width: ReadWidth,
        watched: Watched,
    ) -> io::Result<()> {
        let number = waiter.watch(fd, width)?;
        if self.watched.len() <= number {
            self.watched.resize(number + 1, None);
        }
        if let Some(entry) = self.watched.get_mut(number) {
            *entry = Some(watched);
        }
        Ok(())
    }

    /// Adds a source and watches its descriptor.
    pub fn add(
        &mut self,
        waiter: &mut Waiter,
        fd: OwnedFd,
        width: ReadWidth,
        source: Box<dyn EventSource>,
    ) -> io::Result<()> {
        let watched = Watched::Source(self.sources.len());
        self.watch(waiter, fd.as_raw_fd(), width, watched)?;
        self.sources.push(Registered { source, _fd: fd });
        Ok(())
    }

    /// Returns what a watch belongs to, unless to a back end.
    pub fn watched(&self, watch: usize) -> Option<Watched> {
        self.watched.get(watch).copied().flatten()
    }

    /// A source woke the reactor. Returns where the thread is best off, if that changes.
    pub fn on_wakeup(&mut self, index: usize) -> Option<Option<usize>> {
        let registered = self.sources.get_mut(index)?;
        registered.source.on_wakeup();
        registered.source.preferred_cpu()
    }

    /// Collects the events of all.
    pub fn collect(&mut self, commands: &mut Commands) {
        self.sources
            .iter_mut()
            .for_each(|registered| registered.source.collect(commands));
    }

    /// Returns whether one has events.
    pub fn have_events(&self) -> bool {
        self.sources
            .iter()
            .any(|registered| registered.source.has_events())
    }

    /// Reports a busy poll to all.
    pub fn on_busy_poll(&mut self, found: bool, time: Duration) {
        self.sources
            .iter_mut()
            .for_each(|registered| registered.source.on_busy_poll(found, time));
    }

    /// Arms all, even if one has events already. Returns whether one has.
    pub fn arm(&mut self) -> bool {
        self.sources
            .iter_mut()
            .fold(false, |more, registered| registered.source.arm() | more)
    }

    /// Disarms all.
    pub fn disarm(&mut self) {
        self.sources
            .iter_mut()
            .for_each(|registered| registered.source.disarm());
    }
}
