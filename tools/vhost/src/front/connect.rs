//! [`Connection`]: a server that has said what its disk is ([`Shape`]), and can be given rings.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use ringblk::device::{CONFIG_LEN, feature};
use ringblk::virtio::{
    SECTOR_SIZE, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::EventFd;

use super::notices::Notices;
use super::ring::{SEGMENTS, SIZE};
use super::shared::SharedRings;

/// How long a server may take for an answer, and for letting go of requests, if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Ends a connection on which something takes too long: the `vhost` crate waits for ever, whatever the socket says.
struct Watchdog {
    _done: Sender<()>,
}

impl Watchdog {
    fn new(stream: &UnixStream, patience: Duration) -> io::Result<Self> {
        let stream = stream.try_clone()?;
        let (done, waited) = channel();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                if waited.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                    tracing::warn!(?patience, "a vhost-user server does not answer");
                    let _ = stream.shutdown(Shutdown::Both);
                }
            })?;
        Ok(Self { _done: done })
    }
}

/// What is used if the server has it.
const WISHES: [u32; 7] = [
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
];

/// Why a server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The server did not answer as it must.
    #[error("no vhost-user server, or one that refuses: {message}: {source}")]
    Message {
        /// The message.
        message: &'static str,
        /// What happened.
        source: vhost::Error,
    },
    /// The server lacks what cannot be done without.
    #[error("the server does not offer {0}, which is needed")]
    Missing(&'static str),
    /// The guest's memory is nobody else's to map.
    #[error("the guest's memory has no descriptor, expected memory that can be shared")]
    Private,
    /// It is not what it was.
    #[error("the server says {what} is {found}, expected {expected}, which the guest knows")]
    Changed {
        /// What has changed.
        what: &'static str,
        /// As it is.
        found: u64,
        /// As the guest knows it.
        expected: u64,
    },
    /// Its disk is none.
    #[error("the server says {what} is {found}, expected {expected}")]
    Config {
        /// A field of the configuration space.
        what: &'static str,
        /// As read.
        found: u64,
        /// What would do.
        expected: &'static str,
    },
}

/// What a server's disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Nothing can be written.
    pub readonly: bool,
    /// It may keep what was written in a cache until a flush.
    pub flush: bool,
    /// Most bytes of a discard; 0: it has none.
    pub discard: u64,
    /// Most bytes of a request to write zeroes; 0: it has none.
    pub zeroes: u64,
    /// Most buffers of a request.
    pub segments: usize,
    /// Queues that it serves.
    pub queues: u16,
    /// Features taken, by bit.
    pub features: u64,
}

/// A server that has answered.
pub struct Connection {
    frontend: Frontend,
    stream: UnixStream,
    shape: Shape,
    /// The server can say that its disk has changed.
    notifies: bool,
    patience: Duration,
}

fn step<T>(message: &'static str, result: vhost::Result<T>) -> Result<T, FrontError> {
    result.map_err(|source| FrontError::Message { message, source })
}

impl Connection {
    /// Learns what is at the other end, and takes up to so many queues.
    ///
    /// # Errors
    /// It does not answer in time, is no server, or not one that can be used.
    pub fn negotiate(stream: UnixStream, queues: u16) -> Result<Self, FrontError> {
        Self::negotiate_within(stream, queues, PATIENCE)
    }

    /// As [`Self::negotiate`], with a server that has so much time for each step.
    ///
    /// # Errors
    /// As there.
    pub fn negotiate_within(stream: UnixStream, queues: u16, patience: Duration) -> Result<Self, FrontError> {
        let system = |what| move |source| FrontError::System { what, source };
        let _watchdog = Watchdog::new(&stream, patience).map_err(system("cannot start a thread"))?;
        let copy = stream.try_clone().map_err(system("cannot copy a descriptor"))?;
        let mut frontend = Frontend::from_stream(copy, 1);
        step("SET_OWNER", frontend.set_owner())?;
        let offered = step("GET_FEATURES", frontend.get_features())?;
        for (bit, name) in [
            (feature(VIRTIO_F_VERSION_1), "VERSION_1"),
            (feature(VIRTIO_RING_F_INDIRECT_DESC), "INDIRECT_DESC"),
            (
                VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
                "PROTOCOL_FEATURES",
            ),
        ] {
            if offered & bit == 0 {
                return Err(FrontError::Missing(name));
            }
        }
        let mut features = feature(VIRTIO_F_VERSION_1)
            | feature(VIRTIO_RING_F_INDIRECT_DESC)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        for wish in WISHES {
            features |= offered & feature(wish);
        }
        // The crate looks at what was taken before it lets messages pass.
        step("SET_FEATURES", frontend.set_features(features))?;
        let protocol = step("GET_PROTOCOL_FEATURES", frontend.get_protocol_features())?;
        if !protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(FrontError::Missing("CONFIG"));
        }
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::REPLY_ACK;
        step(
            "SET_PROTOCOL_FEATURES",
            frontend.set_protocol_features(protocol & wanted),
        )?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let mut served = 1;
        if queues > 1 && protocol.contains(VhostUserProtocolFeatures::MQ) {
            served = step("GET_QUEUE_NUM", frontend.get_queue_num())?;
        }
        let mut shape = read_shape(&mut frontend, features)?;
        let several = offered & feature(VIRTIO_BLK_F_MQ) != 0;
        let most = if several { shape.queues } else { 1 };
        shape.queues = most.clamp(1, u16::try_from(served).unwrap_or(1).clamp(1, queues.max(1)));
        if shape.queues > 1 {
            shape.features |= feature(VIRTIO_BLK_F_MQ);
            step("SET_FEATURES", frontend.set_features(shape.features))?;
        }
        Ok(Self {
            frontend,
            stream,
            shape,
            patience,
            notifies: protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ),
        })
    }

    /// Asks anew what its disk is.
    ///
    /// # Errors
    /// It does not answer in time, or the disk is none.
    pub fn reread(&mut self) -> Result<&Shape, FrontError> {
        let _watchdog = self.watch()?;
        let queues = self.shape.queues;
        self.shape = Shape {
            queues,
            ..read_shape(&mut self.frontend, self.shape.features)?
        };
        Ok(&self.shape)
    }

    /// Has the server say when its disk changes; `None`: it cannot.
    ///
    /// # Errors
    /// The server refuses, or no descriptors are left.
    pub fn notices(&mut self) -> Result<Option<Notices>, FrontError> {
        if !self.notifies {
            return Ok(None);
        }
        let _watchdog = self.watch()?;
        let (notices, theirs) = Notices::new().map_err(|source| FrontError::System {
            what: "cannot make a channel",
            source,
        })?;
        step(
            "SET_BACKEND_REQ_FD",
            self.frontend.set_backend_request_fd(&theirs),
        )?;
        Ok(Some(notices))
    }

    /// Gives the server so much time for each step from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// What its disk is.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The socket: it ends when the server does, or ends the connection.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether notifications are by index.
    #[must_use]
    pub fn event_idx(&self) -> bool {
        self.shape.features & feature(VIRTIO_RING_F_EVENT_IDX) != 0
    }

    /// Shares the memory of guest and rings and lets the server begin. Each queue has its kick; calls come to one.
    ///
    /// # Errors
    /// The server refuses.
    pub fn start(
        &mut self,
        guest: &[VhostUserMemoryRegionInfo],
        rings: &SharedRings,
        kicks: &[EventFd],
        call: &EventFd,
    ) -> Result<(), FrontError> {
        let _watchdog = self.watch()?;
        let mut table = guest.to_vec();
        table.push(rings.region());
        step("SET_MEM_TABLE", self.frontend.set_mem_table(&table))?;
        for (number, kick) in kicks.iter().enumerate() {
            step("SET_VRING_NUM", self.frontend.set_vring_num(number, SIZE))?;
            step("SET_VRING_BASE", self.frontend.set_vring_base(number, 0))?;
            step(
                "SET_VRING_ADDR",
                self.frontend.set_vring_addr(number, &rings.addresses(number)),
            )?;
            step("SET_VRING_CALL", self.frontend.set_vring_call(number, call))?;
            step("SET_VRING_KICK", self.frontend.set_vring_kick(number, kick))?;
            step("SET_VRING_ENABLE", self.frontend.set_vring_enable(number, true))?;
        }
        Ok(())
    }

    fn watch(&self) -> Result<Watchdog, FrontError> {
        Watchdog::new(&self.stream, self.patience).map_err(|source| FrontError::System {
            what: "cannot start a thread",
            source,
        })
    }

    /// Has the server finish what it does on all queues and let go of them.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn stop(&mut self) -> Result<(), FrontError> {
        let _watchdog = self.watch()?;
        for number in 0..usize::from(self.shape.queues) {
            step("GET_VRING_BASE", self.frontend.get_vring_base(number))?;
        }
        Ok(())
    }
}

fn read_shape(frontend: &mut Frontend, features: u64) -> Result<Shape, FrontError> {
    let ask = [0; CONFIG_LEN];
    let config = frontend.get_config(0, CONFIG_LEN as u32, VhostUserConfigFlags::empty(), &ask);
    let (_, config) = step("GET_CONFIG", config)?;
    Shape::parse(&config, features)
}

impl Shape {
    /// From a configuration space (virtio 1.2, 5.2.4).
    fn parse(config: &[u8], features: u64) -> Result<Self, FrontError> {
        let has = |number| features & feature(number) != 0;
        let field = |offset: usize, len: usize| {
            let bytes = config.get(offset..offset + len).unwrap_or_default();
            bytes
                .iter()
                .rev()
                .fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let wrong = |what, found, expected| FrontError::Config {
            what,
            found,
            expected,
        };
        let sectors = field(0, 8);
        let size = sectors.checked_mul(SECTOR_SIZE).filter(|&size| size > 0);
        let size = size.ok_or_else(|| wrong("the capacity", sectors, "1 sector up to 2^55"))?;
        let block_size = if has(VIRTIO_BLK_F_BLK_SIZE) {
            field(20, 4)
        } else {
            SECTOR_SIZE
        };
        if !block_size.is_power_of_two() || !(SECTOR_SIZE..=1 << 20).contains(&block_size) {
            return Err(wrong(
                "blk_size",
                block_size,
                "a power of two from 512 to 1048576",
            ));
        }
        let segments = if has(VIRTIO_BLK_F_SEG_MAX) {
            field(12, 4)
        } else {
            1
        };
        if segments == 0 {
            return Err(wrong("seg_max", segments, "at least 1"));
        }
        let limit = |number, offset| {
            let sectors = if has(number) { field(offset, 4) } else { 0 };
            sectors.saturating_mul(SECTOR_SIZE)
        };
        Ok(Self {
            size,
            block_size: block_size as u32,
            readonly: has(VIRTIO_BLK_F_RO),
            flush: has(VIRTIO_BLK_F_FLUSH),
            discard: limit(VIRTIO_BLK_F_DISCARD, 36),
            zeroes: limit(VIRTIO_BLK_F_WRITE_ZEROES, 48),
            segments: usize::try_from(segments).unwrap_or(SEGMENTS).min(SEGMENTS),
            queues: (field(34, 2) as u16).max(1),
            features,
        })
    }
}
