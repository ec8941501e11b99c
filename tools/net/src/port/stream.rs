//! [`Stream`]: a stream socket with a frame behind each length, as passt and QEMU's `-netdev stream` speak
//! it: four bytes, big-endian, then an Ethernet frame.
//!
//! The socket outlives a daemon, so no kill may leave it in the middle of a frame. A frame is sent by one
//! call that the kernel carries out wholly or not at all, and taken off by one call once all of it is there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ringvirtio::memory::IoVec;

use super::{HEADER, PARTS_MAX, Port, behind, sys};
use crate::offloads::Offloads;

/// Bytes of a length.
const PREFIX: usize = 4;
/// Longest frame that may come. A peer that announces a longer one does not speak this protocol.
const RECEIVE_MAX: usize = 0x1_0000 + 256;
/// Longest frame that is sent: a Unix socket takes what fits into one buffer of 32 KiB in one piece.
pub const SEND_MAX: usize = 32_000;

/// A stream socket.
pub struct Stream {
    socket: OwnedFd,
}

impl Stream {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// The system's.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        sys::set_nonblocking(socket.as_raw_fd())?;
        Ok(Self { socket })
    }

    /// Returns the length of the first frame if all of it has arrived.
    fn arrived(&self) -> io::Result<usize> {
        let fd = self.socket.as_raw_fd();
        let mut prefix = [0; PREFIX];
        match sys::peek(fd, &mut prefix)? {
            PREFIX => {}
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => return Err(io::ErrorKind::WouldBlock.into()),
        }
        let len = u32::from_be_bytes(prefix) as usize;
        if len > RECEIVE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if sys::queued(fd)? < PREFIX + len {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(len)
    }
}

impl Port for Stream {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn pairs(&self) -> u16 {
        1
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        (pair == 0).then(|| self.socket.as_raw_fd())
    }

    fn has_header(&self) -> bool {
        false
    }

    unsafe fn receive(&self, _pair: u16, room: &[IoVec]) -> io::Result<usize> {
        let len = self.arrived()?;
        let mut prefix = [0; PREFIX];
        let mut parts = vec![IoVec::of(&mut prefix)];
        let mut rest = len;
        for part in behind(room, HEADER).take(PARTS_MAX - 2) {
            let part = part.front(rest);
            rest -= part.len();
            parts.push(part);
        }
        let mut lost = vec![0; rest];
        parts.push(IoVec::of(&mut lost));
        // SAFETY: by the contract of this function; the arrays outlive the call.
        let count = unsafe { sys::read(self.socket.as_raw_fd(), &parts) }?;
        if count != PREFIX + len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(HEADER + len)
    }

    unsafe fn send(&self, _pair: u16, packet: &[IoVec]) -> io::Result<()> {
        let len: usize = behind(packet, HEADER).map(|part| part.len()).sum();
        if len > SEND_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let mut prefix = (len as u32).to_be_bytes();
        let mut parts = vec![IoVec::of(&mut prefix)];
        parts.extend(behind(packet, HEADER));
        if parts.len() > PARTS_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        // SAFETY: by the contract of this function; the array outlives the call.
        match unsafe { sys::send(self.socket.as_raw_fd(), &parts) }? {
            sent if sent == PREFIX + len => Ok(()),
            // Not with a Unix socket. The peer cannot find the next frame any more.
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn set_guest_offloads(&self, _guest: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_active_pairs(&self, _count: u16) -> io::Result<()> {
        Ok(())
    }
}
