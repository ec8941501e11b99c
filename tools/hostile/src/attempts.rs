//! What the worker tries, and what counts as success.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail};
use libc::c_long;
use ringblk::Opener;
use ringd::config::zone::BLOCK;
use ringd::daemon::{Options, Worker};
use ringd::device::net::config::Source;
use ringd::device::net::open::default_mac;
use ringd::device::net::opener::{PortOpener, PortRequest};
use ringd::host::Host as _;
use ringd::hv::{Control as _, Hypervisor};
use ringvirtio::Completion;
use ringvirtio::waiter::uring::Uring;
use ringvisor::abi::command::{CommandStatus, Header, Op};
use ringvisor::abi::{doorbell, shared};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
use zerocopy::IntoBytes as _;

use crate::raw;

/// The zone of the test, its memory, and the files that its user has named.
const ZONE: &str = "z";
const MEMORY: u64 = 64 << 20;
const KERNEL: &str = "/srv/zones/Image";
const DISK: &str = "/srv/test/z.img";
/// A CPU that no user has named.
const CPU: u32 = 2;
/// RAM of root's that no zone was given.
const ROOTS_BLOCK: u64 = 0x5000_0000;

/// How an attempt ends: `Ok` if it succeeded.
type Outcome = anyhow::Result<()>;

/// Makes all attempts and prints what came of them.
pub fn all(worker: &Worker, mut ring: Uring, options: &Options) {
    let broker = &worker.broker;
    let show = |name: &str, outcome: Outcome| match outcome {
        Ok(()) => println!("{name}: SUCCEEDED"),
        Err(why) => println!("{name}: refused ({why:#})"),
    };

    // Root's memory and its processes.
    show("open /dev/mem", open("/dev/mem", libc::O_RDWR));
    show(
        "open the broker's memory",
        open(&format!("/proc/{}/mem", parent()), libc::O_RDWR),
    );
    show(
        "trace the broker",
        call(libc::SYS_ptrace, [0x4206, parent(), 0, 0, 0, 0]),
    );
    show("kill the broker", call(libc::SYS_kill, [parent(), 0, 0, 0, 0, 0]));
    show("attach by the serving page", attach(worker, 0));
    show("attach 64 KiB further on", attach(worker, 0x1_0000));
    show("donate by the serving page", donate_directly(worker));
    show("donate root's memory to a zone", donate(worker, ROOTS_BLOCK));
    show("detach", detach(worker));

    // Files.
    show("open a file", open("/etc/shadow", libc::O_RDONLY));
    show(
        "open a file that all may read",
        open("/etc/passwd", libc::O_RDONLY),
    );
    show(
        "make a file",
        open("/tmp/hostile", libc::O_CREAT | libc::O_WRONLY),
    );
    show("be given a file", given(worker, "/etc/shadow", false, 0));
    show("be given a kernel to write", given(worker, KERNEL, true, 0));
    show("have a disk truncated", given(worker, DISK, true, libc::O_TRUNC));

    // Zones and what they are made of.
    show(
        "make a zone's memory",
        broker.create_ram("evil", MEMORY).map(drop).map_err(Into::into),
    );
    show("make a zone", make_zone(worker, "evil"));
    show(
        "make a zone's memory again",
        broker.create_ram(ZONE, MEMORY).map(drop).map_err(Into::into),
    );
    show(
        "remove a zone's memory",
        broker.remove_ram(ZONE, 0).map_err(Into::into),
    );
    show("take a CPU", broker.set_online(CPU, false).map_err(Into::into));
    show("be given a port", port(worker));

    // Processes and programs.
    show("make a process", process());
    show(
        "have a program take over",
        broker
            .upgrade(Some(PathBuf::from("/tmp/hostile")), abi(worker))
            .map_err(Into::into),
    );
    show(
        "have the program started again",
        broker.upgrade(None, abi(worker)).map_err(Into::into),
    );

    // Connections.
    let grants = ringd::broker::grants::socket(&options.run_dir);
    show(
        "be given a connection",
        broker.connect(&grants).map(drop).map_err(Into::into),
    );
    show(
        "make a socket",
        call(
            libc::SYS_socket,
            [long(libc::AF_UNIX), long(libc::SOCK_STREAM), 0, 0, 0, 0],
        ),
    );
    show(
        "make an Internet socket",
        call(
            libc::SYS_socket,
            [long(libc::AF_INET), long(libc::SOCK_STREAM), 0, 0, 0, 0],
        ),
    );

    // io_uring.
    show("make a ring", new_ring());
    show("open by a ring", open_by_ring(&mut ring));
    show("make a socket by a ring", socket_by_ring(&mut ring));

    // Last: it is the end of the zone's memory. No right is needed for it but the descriptor.
    if !options.no_sandbox {
        show("return pages to root", return_pages(worker));
    }
}

fn long(value: libc::c_int) -> c_long {
    value.into()
}

fn parent() -> c_long {
    long(rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get()))
}

fn abi(worker: &Worker) -> u32 {
    worker.el2.info().abi_version
}

fn call(number: c_long, arguments: [c_long; 6]) -> Outcome {
    // SAFETY: none of the calls above writes memory of this process.
    unsafe { raw::call(number, arguments) }
        .map(drop)
        .map_err(Into::into)
}

fn open(path: &str, flags: libc::c_int) -> Outcome {
    let path = CString::new(path)?;
    let at = path.as_ptr().expose_provenance() as c_long;
    call(
        libc::SYS_openat,
        [long(libc::AT_FDCWD), at, long(flags), 0o600, 0, 0],
    )
}

/// Has the broker open a file.
fn given(worker: &Worker, path: &str, write: bool, flags: i32) -> Outcome {
    Opener::open(&*worker.broker, Path::new(path), write, flags)?;
    Ok(())
}

/// Attaches another page by a doorbell `further` behind that of the serving page.
fn attach(worker: &Worker, further: usize) -> Outcome {
    let before = worker.el2.info();
    let (bar, len) = raw::mapping("/resource0")?;
    let register = doorbell::PAGE_OFFSET as usize + usize::from(doorbell::ATTACH) + further;
    if register + 8 > len {
        bail!("only {len:#x} bytes are mapped");
    }
    // SAFETY: inside of the mapping; the control device's registers are no memory of Rust's.
    unsafe { raw::store::<u64>(bar + register, ROOTS_BLOCK) };
    let after = worker.el2.info();
    // An attempt that EL2 has looked at would be worse than none.
    let same = before.shared_pa == after.shared_pa
        && before.attach_epoch == after.attach_epoch
        && before.attach_status == after.attach_status;
    if same { bail!("EL2 took no notice") } else { Ok(()) }
}

fn detach(worker: &Worker) -> Outcome {
    let (bar, _) = raw::mapping("/resource0")?;
    let register = doorbell::PAGE_OFFSET as usize + usize::from(doorbell::DETACH);
    // SAFETY: as above.
    unsafe { raw::store::<u32>(bar + register, 1) };
    match worker.el2.info().shared_pa {
        0 => Ok(()),
        page => bail!("the page at {page:#x} is attached"),
    }
}

fn zone_number(worker: &Worker) -> anyhow::Result<u8> {
    let hv: &dyn Hypervisor = &worker.el2;
    (1..32)
        .find(|number| {
            hv.zone_info(*number)
                .is_ok_and(|info| ringd::hv::text(&info.name) == ZONE)
        })
        .ok_or_else(|| anyhow!("EL2 has no zone {ZONE}"))
}

fn donation(worker: &Worker) -> anyhow::Result<Header> {
    Ok(Header {
        op: Op::ZoneDonate as u32,
        status: u32::MAX,
        zone: zone_number(worker)?.into(),
        args: [0x8000_0000, 1, 0, 0],
        ..Header::default()
    })
}

/// A donation by the slot in the shared page and the serving page's doorbell.
fn donate_directly(worker: &Worker) -> Outcome {
    let header = donation(worker)?;
    let page = worker.el2.shared();
    page.write(shared::COMMAND, header.as_bytes());
    page.write(shared::PAYLOAD, ROOTS_BLOCK.as_bytes());
    let (bar, _) = raw::mapping("/resource0")?;
    let register = doorbell::PAGE_OFFSET as usize + usize::from(doorbell::COMMAND);
    // SAFETY: inside of the mapping, which is no memory of Rust's.
    unsafe { raw::store::<u32>(bar + register, 1) };
    let mut done = Header::default();
    page.read(shared::COMMAND, done.as_mut_bytes());
    if done.status == CommandStatus::Ok as u32 {
        return Ok(());
    }
    bail!("status {}", done.status)
}

/// A donation by way of the broker.
fn donate(worker: &Worker, block: u64) -> Outcome {
    let done = worker
        .broker
        .command(donation(worker)?, block.as_bytes(), &mut []);
    done.map(drop).map_err(|refusal| anyhow!("{refusal}"))
}

fn make_zone(worker: &Worker, name: &str) -> Outcome {
    let hv: &dyn Hypervisor = &worker.el2;
    hv.zone_create(name, &[CPU.into()], 0)
        .map(drop)
        .map_err(|refusal| anyhow!("{refusal}"))
}

fn port(worker: &Worker) -> Outcome {
    let request = PortRequest {
        zone: ZONE.into(),
        index: 0,
        port: Source::Bridge("ringvisor0".into()).into(),
        mac: default_mac(ZONE, 0),
        mtu: 1500,
        pairs: 1,
    };
    PortOpener::open(&*worker.broker, &request, 0)?;
    Ok(())
}

fn process() -> Outcome {
    // SAFETY: a child, which shares no memory, ends at once.
    match unsafe { raw::call(libc::SYS_clone, [long(libc::SIGCHLD), 0, 0, 0, 0, 0]) }? {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

fn new_ring() -> Outcome {
    let mut parameters = [0_u64; 15];
    let at = parameters.as_mut_ptr().expose_provenance() as c_long;
    // SAFETY: the kernel writes the parameters, of 120 bytes.
    unsafe { raw::call(libc::SYS_io_uring_setup, [4, at, 0, 0, 0, 0]) }?;
    Ok(())
}

/// Submits one entry and returns its result.
fn by_ring(ring: &mut Uring, entry: io_uring::squeue::Entry) -> Outcome {
    // It is enabled once.
    let _ = ring.enable();
    // SAFETY: the path of the entry is static, and it has no other memory.
    unsafe { ring.push(entry, 7) };
    let mut result = None;
    let (mut done, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        ring.wait(Some(Duration::from_millis(20)), &mut ready)?;
        ring.reap(&mut done);
        result = done.first().map(|completion: &Completion| completion.result);
        if result.is_some() {
            break;
        }
    }
    match result {
        None => bail!("nothing came back"),
        Some(done) if done < 0 => Err(io::Error::from_raw_os_error(-done).into()),
        Some(_) => Ok(()),
    }
}

fn open_by_ring(ring: &mut Uring) -> Outcome {
    let here = io_uring::types::Fd(libc::AT_FDCWD);
    by_ring(
        ring,
        io_uring::opcode::OpenAt::new(here, c"/proc/version".as_ptr()).build(),
    )
}

fn socket_by_ring(ring: &mut Uring) -> Outcome {
    by_ring(
        ring,
        io_uring::opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
    )
}

fn free_pages() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|line| line.trim().parse().ok())
        .ok_or_else(|| anyhow!("/proc/meminfo does not tell HugePages_Free"))
}

/// Takes the pages of the zone's memory from its file, each way there is.
fn return_pages(worker: &Worker) -> Outcome {
    let ram = worker.broker.open_ram(ZONE, MEMORY)?;
    let region = ram.memory.iter().next().ok_or_else(|| anyhow!("no region"))?;
    let file: File = region
        .file_offset()
        .ok_or_else(|| anyhow!("no file"))?
        .file()
        .try_clone()?;
    drop(ram);
    let before = free_pages()?;
    let descriptor = file.as_raw_fd().into();
    let punch = long(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
    let punched = call(libc::SYS_fallocate, [descriptor, punch, 0, BLOCK as c_long, 0, 0]);
    let truncated = file.set_len(0);
    drop(file);
    let after = free_pages()?;
    if after > before {
        return Ok(());
    }
    bail!("{before} pages are free as before; punched: {punched:?}, truncated: {truncated:?}")
}
