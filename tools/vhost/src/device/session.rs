//! [`Session`]: a connection to a server, and the messages that negotiate, start and stop queues.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringvirtio::virtio::{VIRTIO_F_VERSION_1, feature};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::message::{
    self, HEADER, MQ, PAYLOAD_MAX, PROTOCOL_FEATURES, REPLY_ACK, Region, Request, check_reply, encode,
};
use super::state::Server;

/// Most descriptors of a message (`VHOST_MEMORY_BASELINE_NREGIONS`).
pub const REGIONS: usize = 8;

/// A queue as the server is to serve it.
pub struct Vring<'a> {
    /// Its number.
    pub number: u16,
    /// Its size.
    pub size: u16,
    /// Descriptor table, available ring, used ring: guest-physical.
    pub areas: [u64; 3],
    /// Where it begins.
    pub base: u16,
    /// Notifies the server.
    pub kick: BorrowedFd<'a>,
    /// Notifies the daemon.
    pub call: BorrowedFd<'a>,
}

/// A connection.
pub struct Session {
    stream: UnixStream,
    timeout: Duration,
    server: Server,
}

fn broken(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

impl Session {
    /// Negotiates with the server: owner, features that it offers, protocol features.
    ///
    /// # Errors
    /// It does not answer in time, or is no server of a modern device.
    pub fn negotiate(stream: UnixStream, timeout: Duration) -> io::Result<Self> {
        let server = Server {
            features: 0,
            protocol: 0,
            queues: 2,
        };
        let mut session = Self::resume(stream, timeout, server);
        session.tell(Request::SetOwner, &[], &[])?;
        let features = session.ask(Request::GetFeatures)?;
        if features & feature(VIRTIO_F_VERSION_1) == 0 {
            return Err(broken(format_args!(
                "it offers features {features:#x}, without VERSION_1, which is needed"
            )));
        }
        session.server.features = features;
        if features & PROTOCOL_FEATURES != 0 {
            let offered = session.ask(Request::GetProtocolFeatures)?;
            let protocol = offered & (MQ | REPLY_ACK);
            session.tell(Request::SetProtocolFeatures, &protocol.to_le_bytes(), &[])?;
            session.server.protocol = protocol;
            if protocol & MQ != 0 {
                let queues = session.ask(Request::GetQueueNum)?;
                session.server.queues = u16::try_from(queues).unwrap_or(u16::MAX);
            }
        }
        Ok(session)
    }

    /// Continues a connection that was negotiated before.
    #[must_use]
    pub const fn resume(stream: UnixStream, timeout: Duration, server: Server) -> Self {
        Self {
            stream,
            timeout,
            server,
        }
    }

    /// Returns what the server is.
    #[must_use]
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// Returns the socket.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Ends the connection, for each process that has it.
    pub fn shut_down(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Sends one message, wholly.
    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REGIONS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(broken(format_args!(
                "a message with {} descriptors, expected {REGIONS} at most",
                fds.len()
            )));
        }
        self.stream.set_write_timeout(Some(self.timeout))?;
        let sent = loop {
            let sent = sendmsg(
                &self.stream,
                &[IoSlice::new(bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            );
            match sent {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(broken(format_args!(
                "{sent} of {} bytes of a message were taken",
                bytes.len()
            )))
        }
    }

    /// Reads the reply to a request.
    fn reply<const N: usize>(&self, request: Request) -> io::Result<[u8; N]> {
        const { assert!(N <= PAYLOAD_MAX) };
        let deadline = Instant::now() + self.timeout;
        let mut header = [0; HEADER];
        self.read(&mut header, deadline)?;
        check_reply(request, header, N).map_err(broken)?;
        let mut payload = [0; N];
        self.read(&mut payload, deadline)?;
        Ok(payload)
    }

    fn read(&self, to: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut filled = 0;
        while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match (&self.stream).read(rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends a request that has no reply of its own; waits until it is carried out, if the server says so.
    fn tell(&self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let acknowledged = self.server.protocol & REPLY_ACK != 0;
        self.send(&encode(request, acknowledged, payload), fds)?;
        if acknowledged {
            let result = u64::from_le_bytes(self.reply(request)?);
            if result != 0 {
                return Err(broken(format_args!("it refuses {request:?}: result {result}")));
            }
        }
        Ok(())
    }

    fn ask(&self, request: Request) -> io::Result<u64> {
        self.send(&encode(request, false, &[]), &[])?;
        Ok(u64::from_le_bytes(self.reply(request)?))
    }

    fn has_protocol(&self) -> bool {
        self.server.features & PROTOCOL_FEATURES != 0
    }

    /// Sets the driver's features, and shares the guest's memory. No queue runs.
    ///
    /// # Errors
    /// The server does not answer in time or refuses.
    pub fn set_up(&self, features: u64, regions: &[Region], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let features = features & self.server.features | self.server.features & PROTOCOL_FEATURES;
        self.tell(Request::SetFeatures, &features.to_le_bytes(), &[])?;
        self.tell(Request::SetMemTable, &message::mem_table(regions), files)
    }

    /// Starts a queue.
    ///
    /// # Errors
    /// As [`Self::set_up`].
    pub fn start(&self, vring: &Vring<'_>, enabled: bool) -> io::Result<()> {
        let number = vring.number;
        let state = |value: u32| message::vring_state(number, value);
        let fd = u64::from(number).to_le_bytes();
        let [desc, avail, used] = vring.areas;
        self.tell(Request::SetVringNum, &state(vring.size.into()), &[])?;
        self.tell(Request::SetVringBase, &state(vring.base.into()), &[])?;
        self.tell(
            Request::SetVringAddr,
            &message::vring_addr(number, desc, avail, used),
            &[],
        )?;
        self.tell(Request::SetVringCall, &fd, &[vring.call])?;
        self.tell(Request::SetVringKick, &fd, &[vring.kick])?;
        self.enable(number, enabled)
    }

    /// Lets a queue transfer data, or not. Without protocol features, it always does.
    ///
    /// # Errors
    /// As [`Self::set_up`].
    pub fn enable(&self, number: u16, enabled: bool) -> io::Result<()> {
        if !self.has_protocol() {
            return Ok(());
        }
        let state = message::vring_state(number, enabled.into());
        self.tell(Request::SetVringEnable, &state, &[])
    }

    /// Stops a queue: the server does not use its buffers any more.
    ///
    /// # Errors
    /// The server does not answer in time.
    pub fn stop(&self, number: u16) -> io::Result<()> {
        let request = Request::GetVringBase;
        self.send(&encode(request, false, &message::vring_state(number, 0)), &[])?;
        message::vring_base(number, self.reply(request)?).map_err(broken)?;
        Ok(())
    }
}

/// Returns the number of a socket that no other has while it is open.
///
/// # Errors
/// The system's.
pub fn inode(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}
