//! [`Reactor`] and its thread's loop.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::commands::{Mailbox, ReactorHandle};
use super::core::Core;
use crate::waiter::{ReadWidth, Waiter};

/// How to build a reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReactorOptions {
    /// Use io_uring if the system has it; else epoll and threads serve everything.
    pub io_uring: bool,
    /// Submission entries of the ring.
    pub entries: u32,
    /// Longest busy poll before sleeping; zero: none. Without io_uring never.
    pub poll: Duration,
}

impl ReactorOptions {
    /// KVM's limit for a halted vCPU on this architecture (`halt_poll_ns`).
    pub const POLL: Duration = Duration::from_micros(500);
}

impl Default for ReactorOptions {
    fn default() -> Self {
        Self {
            io_uring: true,
            entries: 256,
            poll: Self::POLL,
        }
    }
}

/// A reactor that does not run yet.
pub struct Reactor {
    poll: Duration,
    waiter: Waiter,
    mailbox: Mailbox,
}

impl Reactor {
    /// Returns a reactor and the handle to it. All that it needs of the system is made here: running it works
    /// under a filter of system calls.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(options: ReactorOptions) -> io::Result<(Self, ReactorHandle)> {
        let (mailbox, handle) = Mailbox::new()?;
        let waiter = Waiter::disabled(options.io_uring, options.entries)?;
        let poll = options.poll;
        let reactor = Self {
            poll,
            waiter,
            mailbox,
        };
        Ok((reactor, handle))
    }

    /// Runs as [`Self::run`] does. If it cannot wait any more or panics, the process ends with status 70:
    /// without it no device works, and a supervisor can start a new daemon.
    pub fn run_or_exit(self) {
        match catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::error!(%error, "the reactor cannot wait any more"),
            // The panic's own message has been printed.
            Err(_) => tracing::error!("the reactor's thread has panicked"),
        }
        std::process::exit(70);
    }

    /// Runs on the calling thread until [`ReactorHandle::stop`], and until all requests have completed.
    ///
    /// # Errors
    /// Waiting itself failed; errors of files are their requests'.
    pub fn run(self) -> io::Result<()> {
        let Self {
            poll,
            waiter,
            mailbox,
        } = self;
        waiter.enable()?;
        let mut core = Core::new(waiter, poll);
        let mail = core.waiter.watch(mailbox.event(), ReadWidth::Eight)?;
        let mut ready = Vec::new();
        let mut commands = mailbox.commands();
        mailbox.take(&mut commands);
        loop {
            core.sources.collect(&mut commands);
            while let Some(message) = commands.list.pop_front() {
                core.carry_out(message);
            }
            core.service();
            // What was done in place is published in this round.
            core.reap();
            core.publish();
            core.abandon_leaving();
            core.finish_quiesced();
            if core.is_stopped() {
                return Ok(());
            }
            core.backends.submit(&mut core.waiter);
            let busy = core.backends.are_busy();
            let idle = commands.list.is_empty() && core.is_idle() && !busy;
            if !idle {
                // Rings whose notifications are disabled are checked all the same, and no interrupt waits for
                // the work of other queues.
                core.signal(None);
                core.schedule_polled();
            }
            if busy || idle && (core.coalesce() || core.busy_poll()) {
                // Nothing was armed, so nothing is disarmed.
                core.waiter.wait(Some(Duration::ZERO), &mut ready)?;
            } else {
                core.sleep(idle, &mut ready)?;
            }
            for watch in ready.drain(..) {
                if watch == mail {
                    mailbox.take(&mut commands);
                } else {
                    // Or a back end's, which is reaped below in any case.
                    core.on_wakeup(watch);
                }
            }
            core.reap();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Reactor, ReactorOptions};
    use crate::reactor::commands::{Commands, EventSource};
    use crate::waiter::{ReadWidth, eventfd};

    const CHILD: &str = "RINGVIRTIO_PANICKING_REACTOR";

    struct Faulty;

    impl EventSource for Faulty {
        fn collect(&mut self, _: &mut Commands) {
            panic!("a fault of the event source")
        }
    }

    // Part of the next test, which starts it in a process of its own.
    #[test]
    fn a_reactor_that_panics() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let (reactor, handle) = Reactor::new(ReactorOptions::default()).unwrap();
        handle.add_event_source(eventfd().unwrap(), ReadWidth::Foreign, Box::new(Faulty));
        std::thread::spawn(move || reactor.run_or_exit()).join().unwrap();
    }

    #[test]
    fn a_panic_ends_the_process() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "reactor::thread::tests::a_reactor_that_panics"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(70));
    }
}
