//! [`Connection`]: a negotiated connection to a server, whose disk is known ([`DiskInfo`]) and whose queues
//! can be started.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use ringblk::device::CONFIG_LEN;
use ringblk::virtio::{
    SECTOR_SIZE, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use ringvirtio::virtio::feature;
use ringvirtio::virtio::{VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::EventFd;

use super::channel::BackendChannel;
use super::ring::{SEGMENTS, SIZE};
use super::shared::SharedRings;

/// Connects to a server's socket.
pub type ConnectFn = Arc<dyn Fn(&Path) -> io::Result<UnixStream> + Send + Sync>;

/// Default time for a server's answer, and for the release of abandoned requests.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Shuts a connection down when an answer takes too long: the `vhost` crate ignores the socket's timeout.
/// Dropped when the answer has come.
struct Watchdog {
    _done: Sender<()>,
}

impl Watchdog {
    fn new(stream: &UnixStream, timeout: Duration) -> io::Result<Self> {
        let stream = stream.try_clone()?;
        let (done, waited) = channel();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                if waited.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                    tracing::warn!(?timeout, "a vhost-user server does not answer");
                    let _ = stream.shutdown(Shutdown::Both);
                }
            })?;
        Ok(Self { _done: done })
    }
}

/// Features that are used if the server offers them.
const OPTIONAL_FEATURES: [u32; 7] = [
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
];

/// Why a server cannot be used, for a message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FrontError(pub String);

/// Returns a conversion of a system call's error, for `map_err`.
pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> FrontError {
    move |source| FrontError(format!("{what}: {source}"))
}

/// A server's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskInfo {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// It refuses writes.
    pub readonly: bool,
    /// It may keep writes in a cache until a flush.
    pub flush: bool,
    /// Most bytes of a discard; 0 if it is not supported.
    pub discard: u64,
    /// Most bytes of a write-zeroes request; 0 if it is not supported.
    pub write_zeroes: u64,
    /// Most buffers of a request.
    pub segments: usize,
    /// Queues that the server serves.
    pub queues: u16,
    /// Negotiated features, by bit.
    pub features: u64,
}

/// A negotiated connection.
pub struct Connection {
    frontend: Frontend,
    /// The socket, which closes when the server dies or ends the connection.
    pub stream: UnixStream,
    /// The server's disk.
    pub info: DiskInfo,
    /// The server supports the back-end channel.
    has_channel: bool,
    timeout: Duration,
}

fn step<T>(message: &'static str, result: vhost::Result<T>) -> Result<T, FrontError> {
    result.map_err(|error| {
        FrontError(format!(
            "no vhost-user server, or one that refuses: {message}: {error}"
        ))
    })
}

fn missing(name: &str) -> FrontError {
    FrontError(format!("the server does not offer {name}, which is needed"))
}

impl Connection {
    /// Negotiates with the server, for up to `queues` queues.
    ///
    /// # Errors
    /// It does not answer in time, is not a vhost-user server, or cannot be used.
    pub fn negotiate(stream: UnixStream, queues: u16) -> Result<Self, FrontError> {
        Self::negotiate_within(stream, queues, TIMEOUT)
    }

    /// As [`Self::negotiate`], with this timeout for each step.
    ///
    /// # Errors
    /// As there.
    pub fn negotiate_within(stream: UnixStream, queues: u16, timeout: Duration) -> Result<Self, FrontError> {
        let _watchdog = Watchdog::new(&stream, timeout).map_err(system("cannot start a thread"))?;
        let copy = stream.try_clone().map_err(system("cannot copy a descriptor"))?;
        let mut frontend = Frontend::from_stream(copy, 1);
        step("SET_OWNER", frontend.set_owner())?;
        let offered = step("GET_FEATURES", frontend.get_features())?;
        let protocol_features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let mut features = 0;
        for (bit, name) in [
            (feature(VIRTIO_F_VERSION_1), "VERSION_1"),
            (feature(VIRTIO_RING_F_INDIRECT_DESC), "INDIRECT_DESC"),
            (protocol_features, "PROTOCOL_FEATURES"),
        ] {
            if offered & bit == 0 {
                return Err(missing(name));
            }
            features |= bit;
        }
        for optional in OPTIONAL_FEATURES {
            features |= offered & feature(optional);
        }
        // The crate checks the negotiated features before it sends messages that depend on them.
        step("SET_FEATURES", frontend.set_features(features))?;
        let protocol = step("GET_PROTOCOL_FEATURES", frontend.get_protocol_features())?;
        if !protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(missing("CONFIG"));
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
        let mut info = read_info(&mut frontend, features)?;
        let several = offered & feature(VIRTIO_BLK_F_MQ) != 0;
        let most = if several { info.queues } else { 1 };
        info.queues = most.clamp(1, u16::try_from(served).unwrap_or(1).clamp(1, queues.max(1)));
        if info.queues > 1 {
            info.features |= feature(VIRTIO_BLK_F_MQ);
            step("SET_FEATURES", frontend.set_features(info.features))?;
        }
        Ok(Self {
            frontend,
            stream,
            info,
            timeout,
            has_channel: protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ),
        })
    }

    /// Reads the disk's configuration space again.
    ///
    /// # Errors
    /// The server does not answer in time, or the configuration is not a disk's.
    pub fn reread(&mut self) -> Result<&DiskInfo, FrontError> {
        let _watchdog = self.watchdog()?;
        let queues = self.info.queues;
        self.info = DiskInfo {
            queues,
            ..read_info(&mut self.frontend, self.info.features)?
        };
        Ok(&self.info)
    }

    /// Opens the back-end channel, for changes of the disk; `None` if the server does not support it.
    ///
    /// # Errors
    /// The server refuses, or no descriptors are left.
    pub fn open_channel(&mut self) -> Result<Option<BackendChannel>, FrontError> {
        if !self.has_channel {
            return Ok(None);
        }
        let _watchdog = self.watchdog()?;
        let (channel, theirs) = BackendChannel::new().map_err(system("cannot make a channel"))?;
        step(
            "SET_BACKEND_REQ_FD",
            self.frontend.set_backend_request_fd(&theirs),
        )?;
        Ok(Some(channel))
    }

    /// Sets the timeout of each further step.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Returns whether VIRTIO_F_EVENT_IDX is negotiated.
    pub fn event_idx(&self) -> bool {
        self.info.features & feature(VIRTIO_RING_F_EVENT_IDX) != 0
    }

    /// Shares the memory of guest and rings and starts the queues. Each queue has its own kick; all share one
    /// call.
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
        let _watchdog = self.watchdog()?;
        let mut table = guest.to_vec();
        table.push(rings.memory.region());
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

    fn watchdog(&self) -> Result<Watchdog, FrontError> {
        Watchdog::new(&self.stream, self.timeout).map_err(system("cannot start a thread"))
    }

    /// Stops all queues; the server completes what is in flight.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn stop(&mut self) -> Result<(), FrontError> {
        let _watchdog = self.watchdog()?;
        for number in 0..usize::from(self.info.queues) {
            step("GET_VRING_BASE", self.frontend.get_vring_base(number))?;
        }
        Ok(())
    }
}

fn read_info(frontend: &mut Frontend, features: u64) -> Result<DiskInfo, FrontError> {
    let ask = [0; CONFIG_LEN];
    let config = frontend.get_config(0, CONFIG_LEN as u32, VhostUserConfigFlags::empty(), &ask);
    let (_, config) = step("GET_CONFIG", config)?;
    DiskInfo::parse(&config, features)
}

impl DiskInfo {
    /// Parses a configuration space (virtio 1.2, 5.2.4).
    fn parse(config: &[u8], features: u64) -> Result<Self, FrontError> {
        let has = |number| features & feature(number) != 0;
        let field = |offset: usize, len: usize| {
            let bytes = config.get(offset..offset + len).unwrap_or_default();
            bytes
                .iter()
                .rev()
                .fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let wrong = |what: &str, found: u64, expected: &str| {
            FrontError(format!("the server says {what} is {found}, expected {expected}"))
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
            write_zeroes: limit(VIRTIO_BLK_F_WRITE_ZEROES, 48),
            segments: usize::try_from(segments).unwrap_or(SEGMENTS).min(SEGMENTS),
            queues: (field(34, 2) as u16).max(1),
            features,
        })
    }
}
