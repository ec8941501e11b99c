//! [`Front`]: a device that another process serves, as the daemon has it.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use ringvirtio::{Callback, QueueSetup, SetupError};

use super::descriptors::{Descriptors, FrontOptions};
use super::link::Link;
use super::queue::{ServedDevice, ServedRing};
use super::session::{Session, inode};
use super::state::{Server, State};
use crate::front::kick::Threads;

/// See the module.
pub struct Front {
    device: ServedDevice,
    server: Server,
}

impl Front {
    /// Connects to a server, or goes on with the connection that an earlier daemon had. A server that is gone
    /// since then is waited for in the background.
    ///
    /// # Errors
    /// There is no server and never was, or it cannot be used.
    pub fn open(descriptors: Arc<dyn Descriptors>, state: State, options: FrontOptions) -> io::Result<Self> {
        let (session, server) = match Self::session(&*descriptors, &state, &options) {
            Ok((session, socket)) => {
                let server = state.last().unwrap_or(*session.server());
                (Some((session, socket)), server)
            }
            Err(error) => match state.last() {
                Some(server) => {
                    tracing::warn!(device = options.name, %error, "cannot use the vhost-user server: packets wait");
                    (None, server)
                }
                None => return Err(error),
            },
        };
        let link = Link::start(descriptors.clone(), state, options.clone(), session, server)?;
        let device = ServedDevice {
            link,
            descriptors,
            options,
            threads: Threads::default(),
        };
        Ok(Self { device, server })
    }

    fn session(
        descriptors: &dyn Descriptors,
        state: &State,
        options: &FrontOptions,
    ) -> io::Result<(Session, u64)> {
        let mut stream = descriptors.socket()?;
        let mut socket = inode(&stream)?;
        if let Some(server) = state.server(socket) {
            return Ok((Session::resume(stream, options.timeout, server), socket));
        }
        if state.last().is_some() {
            // The last daemon was killed between a message and its answer, or the server has gone.
            let _ = stream.shutdown(Shutdown::Both);
            stream = descriptors.socket()?;
            socket = inode(&stream)?;
        }
        let session = Session::negotiate(stream, options.timeout)?;
        let found = session.server();
        if let Some(last) = state.last()
            && (last.features & !found.features != 0 || found.queues < last.queues)
        {
            session.shut_down();
            return Err(io::Error::other("it has fewer queues or features than before"));
        }
        state.unsettle();
        state.negotiated(found);
        state.settle(socket);
        Ok((session, socket))
    }

    /// Returns the features that the driver may use, as the first server had them.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.server.features
    }

    /// Returns how many queues the server has.
    #[must_use]
    pub const fn queues(&self) -> u16 {
        self.server.queues
    }

    /// Makes the daemon's side of a queue, which the server serves once it is attached to a reactor.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn queue(&self, number: u16, setup: QueueSetup) -> Result<ServedRing, SetupError> {
        ServedRing::new(self.device.clone(), number, setup)
    }

    /// Takes a queue, or all of them, from the server. Calls `then` when it does not use their buffers any
    /// more, or was disconnected because it did not answer.
    pub fn release(&self, queue: Option<u16>, then: Callback) {
        self.device.link.release(queue, then);
    }

    /// Lets the first `count` queues transfer data, and no other.
    pub fn enable(&self, count: u16) {
        self.device.link.enable(count);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.device.link.end();
    }
}
