//! `ringd serve`: a process that may be killed at any time, whose front end keeps the in-flight region and
//! continues with the next one. The front end is `ringvhost`'s driver here, QEMU in
//! `tests/host/vhost-user.sh`.
#![cfg(test)]

#[path = "../../vhost/tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringvhost::front::{DriverRing, Request, SharedRings};
use support::{BASE, RAM, connect};
use vhost::vhost_user::message::{VhostUserInflight, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
const DEPTH: u64 = 32;

struct Server(Child);

impl Server {
    fn start(socket: &Path, arguments: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_ringd"))
            .args(["--log-level", "warn", "serve", "--vhost-user"])
            .arg(socket)
            .args(arguments)
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state of a VMM that outlives its servers.
struct Vmm {
    rings: SharedRings,
    memory: GuestMemoryMmap,
    region: VhostUserMemoryRegionInfo,
    inflight: Option<(VhostUserInflight, File)>,
    call: EventFd,
    _file: File,
}

impl Vmm {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM).unwrap();
        let mapping: MmapRegion =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), RAM as usize).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: RAM,
            userspace_addr: mapping.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        let region_of_guest = GuestRegionMmap::new(mapping, GuestAddress(BASE)).unwrap();
        Self {
            rings: SharedRings::new(1, true).unwrap(),
            memory: GuestMemoryMmap::from_regions(vec![region_of_guest]).unwrap(),
            region,
            inflight: None,
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            _file: file,
        }
    }

    /// Connects as QEMU does: with the in-flight region of the last server, from the used ring's index on.
    fn connect(&mut self, socket: &Path) -> (Frontend, EventFd) {
        let mut front = Frontend::from_stream(connect(socket), 1);
        front.set_owner().unwrap();
        let features = front.get_features().unwrap();
        assert!(features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0);
        front.set_features(features).unwrap();
        let protocol = front.get_protocol_features().unwrap();
        front.set_protocol_features(protocol).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        if self.inflight.is_none() {
            let wanted = VhostUserInflight::new(0, 0, 1, 128);
            self.inflight = Some(front.get_inflight_fd(&wanted).unwrap());
        }
        if let Some((about, file)) = &self.inflight {
            front.set_inflight_fd(about, file.as_raw_fd()).unwrap();
        }
        front
            .set_mem_table(&[self.region, self.rings.memory.region()])
            .unwrap();
        front.set_vring_num(0, 128).unwrap();
        front.set_vring_base(0, 0).unwrap();
        front.set_vring_addr(0, &self.rings.addresses(0)).unwrap();
        front.set_vring_call(0, &self.call).unwrap();
        front.set_vring_kick(0, &kick).unwrap();
        front.set_vring_enable(0, true).unwrap();
        (front, kick)
    }

    fn ring(&mut self) -> &mut DriverRing {
        &mut self.rings.rings[0]
    }
}

/// Writes blocks with a unique stamp in every sector, at depth 32, while the server is killed repeatedly.
/// Each request completes once, with OK, and every block of the image holds the last write.
#[test]
fn killed_in_the_middle_of_writes() {
    for arguments in [&[][..], &["--no-io-uring"]] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, socket) = (directory.path().join("disk.img"), directory.path().join("sock"));
        fs::write(&image, vec![0; (BLOCK * BLOCKS) as usize]).unwrap();
        let mut all = vec!["--disk", image.to_str().unwrap()];
        all.extend(arguments);
        let mut server = Server::start(&socket, &all);
        let mut vmm = Vmm::new();
        let (mut front, mut kick) = vmm.connect(&socket);
        let (mut stamp, mut answered, mut kills) = (1_u64, 0_u64, 0);
        let mut flying: HashMap<u64, u64> = HashMap::new();
        let mut written = HashMap::new();
        let deadline = Instant::now() + Duration::from_secs(120);
        while kills < 8 {
            assert!(
                Instant::now() < deadline,
                "{answered} answered, {} in flight",
                flying.len()
            );
            // Each block has one buffer, and at most one outstanding request.
            let mut block = stamp;
            while (flying.len() as u64) < DEPTH {
                block = (block + 1) % BLOCKS;
                if flying.contains_key(&block) {
                    continue;
                }
                stamp += 1;
                let bytes: Vec<u8> = stamp.to_le_bytes().repeat(BLOCK as usize / 8);
                let at = BASE + block * BLOCK;
                vmm.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                let request = Request::Write {
                    offset: block * BLOCK,
                };
                assert!(vmm.ring().push(block, request, &[(at, BLOCK as u32)]));
                flying.insert(block, stamp);
            }
            if vmm.ring().publish() {
                kick.write(1).unwrap();
            }
            let mut taken = 0;
            while let Some(done) = vmm.ring().pop().expect("no request is answered twice") {
                assert_eq!(done.status, 0, "no request fails");
                let stamp = flying.remove(&done.token).unwrap();
                written.insert(done.token, stamp);
                (answered, taken) = (answered + 1, taken + 1);
            }
            if taken == 0 && !vmm.ring().arm() {
                std::thread::sleep(Duration::from_micros(200));
            }
            if answered > (kills + 1) * 400 {
                // Directly after a publication, so that requests are in all states.
                server.kill();
                drop(front);
                server = Server::start(&socket, &all);
                (front, kick) = vmm.connect(&socket);
                kills += 1;
            }
        }
        // The remaining requests, without a kill.
        while !flying.is_empty() {
            assert!(Instant::now() < deadline, "{} requests were lost", flying.len());
            while let Some(done) = vmm.ring().pop().expect("no request is answered twice") {
                assert_eq!(done.status, 0);
                written.insert(done.token, flying.remove(&done.token).unwrap());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let base = front.get_vring_base(0).unwrap();
        drop(front);
        server.kill();
        assert!(base > 0);
        let file = File::open(&image).unwrap();
        for (block, stamp) in written {
            let mut bytes = vec![0; BLOCK as usize];
            file.read_exact_at(&mut bytes, block * BLOCK).unwrap();
            assert_eq!(
                bytes,
                stamp.to_le_bytes().repeat(BLOCK as usize / 8),
                "block {block}"
            );
        }
    }
}

#[test]
fn invalid_disks_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let serve = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ringd"))
            .args(["serve", "--vhost-user"])
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = serve(&["--disk", "/nowhere/disk.img"]);
    assert!(
        missing.contains("/nowhere/disk.img") && missing.contains("No such file"),
        "{missing}"
    );
    let format = serve(&["--disk", "null:1M", "--format", "vhd"]);
    assert!(format.contains("expected raw or qcow2"), "{format}");
    fs::write(&socket, b"precious").unwrap();
    let taken = serve(&["--disk", "null:1M"]);
    assert!(taken.contains("cannot listen"), "{taken}");
    assert_eq!(fs::read(&socket).unwrap(), b"precious");
}
