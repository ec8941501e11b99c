//! A vhost-user-blk server made by hand, byte for byte, so that it can do everything wrong that a server can.

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

/// Feature of vhost-user's own: there are protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Protocol features.
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

/// What it is like.
#[derive(Clone, Debug)]
pub struct Manners {
    pub features: u64,
    pub protocol: u64,
    /// 512-byte sectors.
    pub sectors: u64,
    pub block_size: u32,
    /// Answers nothing from this request on.
    pub mute_from: Option<u32>,
    /// Ends each connection as soon as its queue is set up.
    pub hasty: bool,
    /// Has another number of sectors each time it is asked: one more than `sectors` every other time.
    pub wavers: bool,
}

impl Default for Manners {
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
            mute_from: None,
            hasty: false,
            wavers: false,
        }
    }
}

/// What it was given by a front end that has set its queue up.
pub struct Given {
    /// The memory with the ring, and where the used ring is in it.
    rings: Arc<MmapRegion>,
    used: usize,
    call: Option<File>,
    kick: Option<File>,
    /// To say that the disk has changed.
    pub notices: Option<UnixStream>,
    stream: UnixStream,
}

impl Given {
    /// Stores into the used ring: which 16-bit word, and what.
    pub fn write_used(&self, word: usize, value: u16) {
        let offset = self.used + 2 * word;
        assert!(offset + 2 <= self.rings.size());
        let address = self.rings.as_ptr().wrapping_add(offset).cast::<AtomicU16>();
        // SAFETY: in the mapping, which lives, and aligned: the ring is.
        unsafe { &*address }.store(value, Ordering::Release);
        if let Some(mut call) = self.call.as_ref() {
            call.write_all(&1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Requests that were ever made available, as a 16-bit number.
    pub fn available(&self) -> u16 {
        let [_, avail, used] = DriverRing::areas();
        let offset = self.used - used + avail + 2;
        let address = self.rings.as_ptr().wrapping_add(offset).cast::<AtomicU16>();
        // SAFETY: in the mapping, which lives, and aligned: the ring is.
        unsafe { &*address }.load(Ordering::Acquire)
    }

    /// A write to the kick or the call blocks from now on.
    pub fn fill_events(&self) {
        for mut event in [&self.kick, &self.call].map(|event| event.as_ref().unwrap()) {
            // A read of an empty one ends at once, as yet.
            let _ = event.read(&mut [0; 8]);
            rustix::fs::fcntl_setfl(event, OFlags::RDWR).unwrap();
            event.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        }
    }

    /// The file of the memory with the ring.
    pub fn file(&self) -> &File {
        self.rings.file_offset().unwrap().file()
    }

    /// Ends the connection.
    pub fn hang_up(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    /// Sends an unsolicited message.
    pub fn say(&self, bytes: &[u8]) {
        (&self.stream).write_all(bytes).unwrap();
    }

    /// Says that the disk has changed.
    pub fn notice(&self) -> io::Result<()> {
        let message = [2_u32, 1, 0].map(u32::to_ne_bytes).concat();
        self.notices.as_ref().unwrap().write_all(&message)
    }
}

/// It listens, and serves one connection after the other until it is dropped.
pub struct Fake {
    manners: Arc<Mutex<Manners>>,
    /// Queues that were set up.
    pub given: Receiver<Given>,
    /// Front ends that have gone.
    pub gone: Receiver<()>,
    ending: Arc<AtomicBool>,
    /// The connection of now.
    stream: Arc<Mutex<Option<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
    socket: std::path::PathBuf,
}

impl Fake {
    pub fn new(socket: &Path, manners: Manners) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (send, given) = channel();
        let (tell, gone) = channel();
        let manners = Arc::new(Mutex::new(manners));
        let ending = Arc::new(AtomicBool::new(false));
        let stream: Arc<Mutex<Option<UnixStream>>> = Arc::default();
        let (shared, ended, current) = (manners.clone(), ending.clone(), stream.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                *current.lock().unwrap() = Some(stream.try_clone().unwrap());
                if ended.load(Ordering::Acquire) {
                    return;
                }
                // How a connection ends is the front end's affair.
                let _ = serve(&stream, &shared, &send);
                current.lock().unwrap().take();
                drop(stream);
                let _ = tell.send(());
            }
        });
        Self {
            manners,
            given,
            gone,
            ending,
            stream,
            thread: Some(thread),
            socket: socket.to_owned(),
        }
    }

    /// From now on it is another.
    pub fn change(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.manners.lock().unwrap());
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

fn serve(stream: &UnixStream, manners: &Mutex<Manners>, send: &Sender<Given>) -> io::Result<()> {
    // The last region of the table is the rings': where the front end has it, and the memory.
    let mut rings: Option<(u64, Arc<MmapRegion>)> = None;
    let (mut used, mut call, mut notices) = (0, None, None);
    let mut asked = 0;
    loop {
        let (header, mut files) = header(stream)?;
        let [request, flags, size] = header;
        let mut body = vec![0; size as usize];
        (&*stream).read_exact(&mut body)?;
        let word = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        let now = manners.lock().unwrap().clone();
        if now.mute_from.is_some_and(|from| request >= from && request != 3) {
            // Until it is hung up on.
            io::copy(&mut &*stream, &mut io::sink())?;
            return Ok(());
        }
        let mut answer = None;
        match request {
            GET_FEATURES => answer = Some(now.features.to_ne_bytes().to_vec()),
            GET_PROTOCOL_FEATURES => answer = Some(now.protocol.to_ne_bytes().to_vec()),
            GET_CONFIG => {
                let mut config = body.clone();
                asked += 1;
                let more = u64::from(now.wavers && asked % 2 == 0);
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
                notices = files
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
            if now.hasty {
                return Ok(());
            }
            let _ = send.send(Given {
                rings,
                used,
                call: call.take(),
                kick: files.pop(),
                notices: notices.take(),
                stream: stream.try_clone()?,
            });
        }
    }
}

fn reply(mut stream: &UnixStream, request: u32, body: &[u8]) -> io::Result<()> {
    let header = [request, 5, body.len() as u32].map(u32::to_ne_bytes).concat();
    stream.write_all(&[&header, body].concat())
}

/// A header, and the files that came with it.
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
