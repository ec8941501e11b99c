//! A hand-written vhost-user-blk server, which can violate the protocol at any byte.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ringblk::virtio::{VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH};
use ringvhost::front::DriverRing;
use ringvirtio::virtio::feature;
use ringvirtio::virtio::{VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC};
use rustix::fs::OFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vm_memory::{FileOffset, MmapRegion};

/// Feature bit VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Protocol feature bits.
pub const REPLY_ACK: u64 = 1 << 3;
pub const BACKEND_REQ: u64 = 1 << 5;
pub const CONFIG: u64 = 1 << 9;

// Requests.
const GET_FEATURES: u32 = 1;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_ADDR: u32 = 9;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const NEED_REPLY: u32 = 1 << 3;

/// The behavior of the server.
#[derive(Clone, Debug)]
pub struct Behavior {
    pub features: u64,
    pub protocol: u64,
    /// 512-byte sectors.
    pub sectors: u64,
    pub block_size: u32,
    /// Replies to no request from this number on.
    pub silent_from: Option<u32>,
    /// Ends each connection as soon as its queue is set up.
    pub disconnects_at_once: bool,
    /// Reports one more than `sectors` at every other GET_CONFIG.
    pub alternates_capacity: bool,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            features: feature(VIRTIO_F_VERSION_1)
                | feature(VIRTIO_RING_F_INDIRECT_DESC)
                | feature(VIRTIO_BLK_F_BLK_SIZE)
                | feature(VIRTIO_BLK_F_FLUSH)
                | PROTOCOL_FEATURES,
            protocol: CONFIG | REPLY_ACK | BACKEND_REQ,
            sectors: 512,
            block_size: 512,
            silent_from: None,
            disconnects_at_once: false,
            alternates_capacity: false,
        }
    }
}

/// What a front end that has set its queue up has passed to the server.
pub struct Given {
    /// The memory with the ring, and where the used ring is in it.
    rings: Arc<MmapRegion>,
    used: usize,
    call: Option<File>,
    kick: Option<File>,
    /// The back-end channel, for CONFIG_CHANGE messages.
    pub backend_channel: Option<UnixStream>,
    stream: UnixStream,
}

impl Given {
    /// Stores a 16-bit word of the used ring and notifies the front end.
    pub fn write_used(&self, word: usize, value: u16) {
        let offset = self.used + 2 * word;
        assert!(offset + 2 <= self.rings.size());
        let address = self.rings.as_ptr().wrapping_add(offset).cast::<AtomicU16>();
        // SAFETY: inside the mapping, which outlives this, and aligned as the ring is.
        unsafe { &*address }.store(value, Ordering::Release);
        if let Some(mut call) = self.call.as_ref() {
            call.write_all(&1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Returns avail.idx.
    pub fn available(&self) -> u16 {
        let [_, avail, used] = DriverRing::areas();
        let offset = self.used - used + avail + 2;
        let address = self.rings.as_ptr().wrapping_add(offset).cast::<AtomicU16>();
        // SAFETY: inside the mapping, which outlives this, and aligned as the ring is.
        unsafe { &*address }.load(Ordering::Acquire)
    }

    /// Fills the kick and call eventfds, so that a blocking write to them blocks.
    pub fn fill_eventfds(&self) {
        for mut event in [&self.kick, &self.call].map(|event| event.as_ref().unwrap()) {
            // A read of an empty eventfd does not block yet.
            let _ = event.read(&mut [0; 8]);
            rustix::fs::fcntl_setfl(event, OFlags::RDWR).unwrap();
            event.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        }
    }

    /// Returns the file of the memory with the ring.
    pub fn file(&self) -> &File {
        self.rings.file_offset().unwrap().file()
    }

    /// Ends the connection.
    pub fn disconnect(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    /// Sends bytes that are no reply to a request.
    pub fn send_bytes(&self, bytes: &[u8]) {
        (&self.stream).write_all(bytes).unwrap();
    }

    /// Sends a CONFIG_CHANGE message.
    pub fn send_config_change(&self) -> io::Result<()> {
        let message = [2_u32, 1, 0].map(u32::to_ne_bytes).concat();
        self.backend_channel.as_ref().unwrap().write_all(&message)
    }
}

/// The server, which serves one connection after the other until it is dropped.
pub struct Fake {
    behavior: Arc<Mutex<Behavior>>,
    /// Queues that were set up.
    pub given: Receiver<Given>,
    /// Connections that have ended.
    pub gone: Receiver<()>,
    ending: Arc<AtomicBool>,
    /// The current connection.
    stream: Arc<Mutex<Option<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
    socket: std::path::PathBuf,
}

impl Fake {
    pub fn new(socket: &Path, behavior: Behavior) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (send, given) = channel();
        let (ended, gone) = channel();
        let behavior = Arc::new(Mutex::new(behavior));
        let ending = Arc::new(AtomicBool::new(false));
        let stream: Arc<Mutex<Option<UnixStream>>> = Arc::default();
        let (shared, stopping, current) = (behavior.clone(), ending.clone(), stream.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                *current.lock().unwrap() = Some(stream.try_clone().unwrap());
                if stopping.load(Ordering::Acquire) {
                    return;
                }
                // The front end decides how a connection ends.
                let _ = serve(&stream, &shared, &send);
                current.lock().unwrap().take();
                drop(stream);
                let _ = ended.send(());
            }
        });
        Self {
            behavior,
            given,
            gone,
            ending,
            stream,
            thread: Some(thread),
            socket: socket.to_owned(),
        }
    }

    /// Changes the server's behavior.
    pub fn change(&self, change: impl FnOnce(&mut Behavior)) {
        change(&mut self.behavior.lock().unwrap());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        if let Some(stream) = &*self.stream.lock().unwrap() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = UnixStream::connect(&self.socket);
        let _ = self.thread.take().unwrap().join();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(stream: &UnixStream, behavior: &Mutex<Behavior>, send: &Sender<Given>) -> io::Result<()> {
    // The last region of the table has the rings: its address in the front end, and its mapping.
    let mut rings: Option<(u64, Arc<MmapRegion>)> = None;
    let (mut used, mut call, mut backend_channel) = (0, None, None);
    let mut configs = 0;
    loop {
        let (header, mut files) = header(stream)?;
        let [request, flags, size] = header;
        let mut body = vec![0; size as usize];
        (&*stream).read_exact(&mut body)?;
        let word = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        let now = behavior.lock().unwrap().clone();
        if now
            .silent_from
            .is_some_and(|from| request >= from && request != 3)
        {
            // Until the front end disconnects.
            io::copy(&mut &*stream, &mut io::sink())?;
            return Ok(());
        }
        let mut answer = None;
        match request {
            GET_FEATURES => answer = Some(now.features.to_ne_bytes().to_vec()),
            GET_PROTOCOL_FEATURES => answer = Some(now.protocol.to_ne_bytes().to_vec()),
            GET_CONFIG => {
                let mut config = body.clone();
                configs += 1;
                let more = u64::from(now.alternates_capacity && configs % 2 == 0);
                config[12..20].copy_from_slice(&(now.sectors + more).to_le_bytes());
                config[32..36].copy_from_slice(&now.block_size.to_le_bytes());
                answer = Some(config);
            }
            SET_MEM_TABLE => {
                let count = u32::from_ne_bytes(body[..4].try_into().unwrap()) as usize;
                let last = 8 + 32 * (count - 1);
                let file = FileOffset::new(files.pop().unwrap(), word(last + 24));
                let mapping = MmapRegion::from_file(file, word(last + 8) as usize).unwrap();
                rings = Some((word(last + 16), Arc::new(mapping)));
            }
            SET_VRING_ADDR => {
                let (base, _) = rings.as_ref().expect("memory before rings");
                used = (word(16) - base) as usize;
            }
            SET_VRING_CALL => call = files.pop(),
            SET_BACKEND_REQ_FD => {
                backend_channel = files
                    .pop()
                    .map(|file| UnixStream::from(std::os::fd::OwnedFd::from(file)));
            }
            GET_VRING_BASE => answer = Some(body.clone()),
            _ => {}
        }
        if let Some(answer) = answer {
            reply(stream, request, &answer)?;
        } else if flags & NEED_REPLY != 0 {
            reply(stream, request, &[0; 8])?;
        }
        if request == SET_VRING_KICK {
            let (_, rings) = rings.clone().expect("memory before a kick");
            if now.disconnects_at_once {
                return Ok(());
            }
            let _ = send.send(Given {
                rings,
                used,
                call: call.take(),
                kick: files.pop(),
                backend_channel: backend_channel.take(),
                stream: stream.try_clone()?,
            });
        }
    }
}

fn reply(mut stream: &UnixStream, request: u32, body: &[u8]) -> io::Result<()> {
    let header = [request, 5, body.len() as u32].map(u32::to_ne_bytes).concat();
    stream.write_all(&[&header, body].concat())
}

/// Receives a message header and the files passed with it.
fn header(stream: &UnixStream) -> io::Result<([u32; 3], Vec<File>)> {
    let mut bytes = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes < 12 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights.map(File::from));
        }
    }
    let mut words = bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    let header = [(); 3].map(|()| words.next().unwrap());
    Ok((header, files))
}
