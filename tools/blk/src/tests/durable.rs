//! Durability on real files: after a completed FLUSH, or a durable write, the kernel has no dirty pages of
//! the image. A power cut is simulated in [`super::faults`], and made in tests/host/power-cut.sh.

use std::os::fd::AsRawFd;
use std::path::Path;

use ringvirtio::virtio::feature;

use super::rig::{ALL_FEATURES, BUFFERS, ENGINES, Rig, WRITABLE_FEATURES, readable};
use crate::disk::{EngineKind, Format};
use crate::virtio::{
    RequestStatus, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;

/// Returns the pages of a file that are not on its disk yet, by `cachestat`; `None` before Linux 6.5, or
/// where it is not permitted.
fn unwritten(path: &Path) -> Option<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    const DIRTY: usize = 1;
    const WRITEBACK: usize = 2;
    let file = std::fs::File::open(path).unwrap();
    // From the first byte to the last.
    let (range, mut counts) = ([0_u64; 2], [0_u64; 5]);
    // SAFETY: the call reads the two words of its range, and stores five.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    (result == 0).then(|| counts[DIRTY] + counts[WRITEBACK])
}

/// Makes a rig over a file on a disk: a file on tmpfs is never written back.
fn rig_on_disk(kind: EngineKind, format: Format, features: u64) -> Rig {
    let mut rig = Rig::closed(kind, 64, features, false);
    rig.dir =
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap_or_else(|_| tempfile::tempdir().unwrap());
    rig.config.path = rig.dir.path().join("disk.img");
    rig.config.format = format;
    match format {
        Format::Raw => std::fs::write(&rig.config.path, vec![0; 1 << 20]).unwrap(),
        Format::Qcow2 => super::qcow2::create(&rig.config.path, 1 << 20, None),
    }
    std::fs::File::open(&rig.config.path).unwrap().sync_all().unwrap();
    rig.open();
    rig
}

/// Returns whether the kernel reports dirty pages of this directory's files.
fn reports_dirty_pages() -> bool {
    for _ in 0..100 {
        let mut rig = rig_on_disk(EngineKind::Threads, Format::Raw, ALL_FEATURES);
        rig.request(0, VIRTIO_BLK_T_OUT, 8, Some(readable(DATA, 8192)));
        match unwritten(&rig.config.path) {
            None => break,
            // It may have been written back meanwhile.
            Some(0) => {}
            Some(_) => return true,
        }
    }
    eprintln!("skipped: the kernel does not report dirty pages");
    false
}

// virtio-checklist 58, 59; torture e2: on both engines and formats. The negative control is the stage
// "control: no fdatasync".
#[test]
fn nothing_is_left_to_be_written() {
    if !reports_dirty_pages() {
        return;
    }
    let through = WRITABLE_FEATURES & !feature(VIRTIO_BLK_F_FLUSH) & !feature(VIRTIO_BLK_F_CONFIG_WCE);
    for kind in ENGINES {
        for format in [Format::Raw, Format::Qcow2] {
            let mut rig = rig_on_disk(kind, format, WRITABLE_FEATURES);
            for round in 0..20 {
                rig.fill(DATA, &[round; 8192]);
                let sector = u64::from(round) * 64;
                assert_eq!(
                    rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(DATA, 8192)))
                        .0,
                    OK
                );
                assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, OK);
                assert_eq!(
                    unwritten(&rig.config.path),
                    Some(0),
                    "{kind:?} {format:?}: a FLUSH"
                );
            }
            let mut rig = rig_on_disk(kind, format, through);
            for round in 0..20 {
                rig.fill(DATA, &[round; 8192]);
                let sector = u64::from(round) * 64;
                assert_eq!(
                    rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(DATA, 8192)))
                        .0,
                    OK
                );
                assert_eq!(
                    unwritten(&rig.config.path),
                    Some(0),
                    "{kind:?} {format:?}: a write"
                );
                let segments = rig.segments(DATA, &[(sector + 3, 5, 0)]);
                assert_eq!(rig.request(0, VIRTIO_BLK_T_WRITE_ZEROES, 0, Some(segments)).0, OK);
                assert_eq!(
                    unwritten(&rig.config.path),
                    Some(0),
                    "{kind:?} {format:?}: zeroes"
                );
            }
        }
    }
}
