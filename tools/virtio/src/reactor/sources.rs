//! [`EventSources`]: a reactor's event sources and their watched descriptors.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use super::commands::{Commands, EventSource};
use crate::waiter::{ReadWidth, Waiter};

struct Registered {
    source: Box<dyn EventSource>,
    watch: usize,
    /// Kept open for the watch.
    _fd: OwnedFd,
}

/// The event sources.
#[derive(Default)]
pub struct EventSources(Vec<Registered>);

impl EventSources {
    /// Adds a source and watches its descriptor.
    pub fn add(
        &mut self,
        waiter: &mut Waiter,
        fd: OwnedFd,
        width: ReadWidth,
        source: Box<dyn EventSource>,
    ) -> io::Result<()> {
        let watch = waiter.watch(fd.as_raw_fd(), width)?;
        self.0.push(Registered {
            source,
            watch,
            _fd: fd,
        });
        Ok(())
    }

    /// A watched descriptor became readable; if it is a source's, that woke the reactor. Returns where the
    /// thread is best off, if that changes.
    pub fn on_wakeup(&mut self, watch: usize) -> Option<Option<usize>> {
        let registered = self.0.iter_mut().find(|registered| registered.watch == watch)?;
        registered.source.on_wakeup();
        registered.source.preferred_cpu()
    }

    /// Collects the events of all.
    pub fn collect(&mut self, commands: &mut Commands) {
        self.0
            .iter_mut()
            .for_each(|registered| registered.source.collect(commands));
    }

    /// Returns whether one has events.
    pub fn have_events(&self) -> bool {
        self.0.iter().any(|registered| registered.source.has_events())
    }

    /// Returns after what time they are to be collected.
    pub fn deadline(&self) -> Option<Duration> {
        self.0
            .iter()
            .filter_map(|registered| registered.source.deadline())
            .min()
    }

    /// Reports a busy poll to all.
    pub fn on_busy_poll(&mut self, found: bool, time: Duration) {
        self.0
            .iter_mut()
            .for_each(|registered| registered.source.on_busy_poll(found, time));
    }

    /// Arms all, even if one has events already. Returns whether one has.
    pub fn arm(&mut self) -> bool {
        self.0
            .iter_mut()
            .fold(false, |more, registered| registered.source.arm() | more)
    }

    /// Disarms all.
    pub fn disarm(&mut self) {
        self.0
            .iter_mut()
            .for_each(|registered| registered.source.disarm());
    }
}
