//! [`State`]: what was said over a connection, in memory that outlives the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringvirtio::memory::Slots;

/// Words of a device.
pub const WORDS: usize = 5;
/// The socket's inode. 0: nothing below is true, such as while an answer is outstanding.
const SOCKET: usize = 0;
/// Features that the server offers.
const FEATURES: usize = 1;
/// Protocol features in use, and from bit 48 on the number of queues.
const PROTOCOL: usize = 2;
/// A bit for each queue that it serves.
const RUNNING: usize = 3;
/// Epoch of these queues.
const EPOCH: usize = 4;

/// What a server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Server {
    /// Features that it offers.
    pub features: u64,
    /// Protocol features in use.
    pub protocol: u64,
    /// How many queues it has.
    pub queues: u16,
}

/// Where it is kept: [`WORDS`] words, zeroed before their first use ever.
#[derive(Clone)]
pub struct State {
    words: Arc<Slots<AtomicU64>>,
    first: usize,
}

impl State {
    /// Takes the words from `first` on.
    #[must_use]
    pub const fn new(words: Arc<Slots<AtomicU64>>, first: usize) -> Self {
        Self { words, first }
    }

    fn get(&self, index: usize) -> u64 {
        let word = self.words.get(self.first + index);
        word.map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    fn set(&self, index: usize, value: u64) {
        if let Some(word) = self.words.get(self.first + index) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Returns the server that was negotiated with over this socket.
    #[must_use]
    pub fn server(&self, socket: u64) -> Option<Server> {
        self.last().filter(|_| socket != 0 && self.get(SOCKET) == socket)
    }

    /// Returns what the last server was, whether or not it is connected.
    #[must_use]
    pub fn last(&self) -> Option<Server> {
        let protocol = self.get(PROTOCOL);
        (self.get(FEATURES) != 0).then(|| Server {
            features: self.get(FEATURES),
            protocol: protocol & ((1 << 48) - 1),
            queues: (protocol >> 48) as u16,
        })
    }

    /// Returns the queues that the server serves, as bits.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.get(RUNNING)
    }

    /// Returns whether the server serves a queue of this epoch.
    #[must_use]
    pub fn is_running(&self, queue: u16, epoch: u64) -> bool {
        self.get(EPOCH) == epoch && self.get(RUNNING) >> queue & 1 != 0
    }

    /// From now on nothing is known of the connection, until [`Self::settle`].
    pub fn unsettle(&self) {
        self.set(SOCKET, 0);
    }

    /// All that was begun over this socket is done.
    pub fn settle(&self, socket: u64) {
        self.set(SOCKET, socket);
    }

    /// Sets what the server is; it serves no queue yet. Only while it is unsettled.
    pub fn negotiated(&self, server: &Server) {
        self.set(FEATURES, server.features);
        self.set(PROTOCOL, server.protocol | u64::from(server.queues) << 48);
        self.set(RUNNING, 0);
    }

    /// It serves only these queues of those that it served. Only while it is unsettled.
    pub fn keep_running(&self, queues: u64) {
        self.set(RUNNING, queues);
    }

    /// Sets which queues of which epoch it serves. Only while it is unsettled.
    pub fn set_running(&self, queues: u64, epoch: u64) {
        self.set(RUNNING, queues);
        self.set(EPOCH, epoch);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringvirtio::memory::Slots;
    use vm_memory::MmapRegion;

    use super::{Server, State, WORDS};

    #[test]
    fn what_is_settled_is_known_to_the_next() {
        let mapping = Arc::new(MmapRegion::new(4096).unwrap());
        let open = || {
            State::new(
                Arc::new(Slots::in_mapping(&mapping, 0, 2 * WORDS).unwrap()),
                WORDS,
            )
        };
        let server = Server {
            features: 1 << 32 | 3,
            protocol: 9,
            queues: 4,
        };
        let state = open();
        assert_eq!((state.server(0), state.server(7)), (None, None));
        state.negotiated(&server);
        assert_eq!(state.server(7), None);
        state.settle(7);
        assert_eq!((open().server(7), open().server(8)), (Some(server), None));
        state.unsettle();
        state.set_running(0b10, 5);
        assert_eq!(open().server(7), None);
        state.settle(7);
        assert!(open().is_running(1, 5) && !open().is_running(0, 5) && !open().is_running(1, 6));
    }
}
