//! Requests of a well-behaved driver: types, framing, limits of the disk. On both engines.

use ringvirtio::memory::GuestRam;
use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_RING_F_EVENT_IDX, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE, feature,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::rig::{
    ALL_FEATURES, BASE, BUFFERS, Buf, Desc, ENGINES, RAM, Rig, SECTORS, WRITABLE_FEATURES, open_soon,
    pattern, readable, writable,
};
use crate::device;
use crate::disk::EngineKind;
use crate::virtio::{
    RequestStatus, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;
const IOERR: u8 = RequestStatus::IoErr as u8;
const UNSUPP: u8 = RequestStatus::Unsupp as u8;

fn expected(sector: u64, len: u64) -> Vec<u8> {
    (sector * 512..sector * 512 + len).map(pattern).collect()
}

// virtio-checklist 37, 47, 50, 59
#[test]
fn reads_writes_and_flushes() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 3, Some(writable(DATA, 4096))),
            (OK, 4097)
        );
        assert_eq!(rig.bytes(DATA, 4096), expected(3, 4096));
        rig.fill(DATA, &[0x5a; 1024]);
        assert_eq!(
            rig.request(3, VIRTIO_BLK_T_OUT, 9, Some(readable(DATA, 1024))),
            (OK, 1)
        );
        assert_eq!(rig.image_at(9, 1024), [0x5a; 1024]);
        assert_eq!(rig.image_at(11, 512), expected(11, 512));
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
        assert_eq!(rig.interrupt_count(), 3);
        assert!(rig.fault_list().is_empty());
    }
}

// virtio-checklist 37; torture b7
#[test]
fn a_header_of_single_bytes_and_a_status_behind_the_data() {
    for engine in ENGINES {
        let mut rig = Rig::with(engine, 32, ALL_FEATURES, false);
        rig.header(BUFFERS, VIRTIO_BLK_T_IN, 5);
        let mut bufs: Vec<Buf> = (0..16).map(|byte| readable(BUFFERS + byte, 1)).collect();
        // 1024 bytes of data in odd pieces, empty ones among them, the last with the status.
        bufs.extend([
            writable(DATA, 1),
            writable(DATA + 1, 0),
            writable(DATA + 1, 700),
            writable(DATA + 701, 324),
        ]);
        rig.fill(DATA, &[0xff; 1025]);
        rig.offer(0, &bufs);
        rig.run();
        assert_eq!(rig.take_used(), [(0, 1025)]);
        assert_eq!(rig.bytes(DATA, 1024), expected(5, 1024));
        assert_eq!(rig.byte(DATA + 1024), OK);
    }
}

// virtio-checklist 37: header and data of a write in one descriptor
#[test]
fn a_write_with_header_and_data_in_one_buffer() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        rig.header(DATA, VIRTIO_BLK_T_OUT, 100);
        rig.fill(DATA + 16, &[0xc3; 512]);
        rig.offer(7, &[readable(DATA, 528), writable(BUFFERS, 1)]);
        rig.run();
        assert_eq!(rig.take_used(), [(7, 1)]);
        assert_eq!((rig.byte(BUFFERS), rig.image_at(100, 512)), (OK, vec![0xc3; 512]));
    }
}

// virtio-checklist 38, 39
#[test]
fn readable_buffers_and_descriptors_stay_as_they_are() {
    for kind in [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        99,
    ] {
        let mut rig = Rig::new(EngineKind::IoUring);
        rig.header(BUFFERS, kind, 0);
        rig.fill(DATA, &[0x11; 512]);
        rig.chain_in(
            BASE,
            0,
            &[
                readable(BUFFERS, 16),
                readable(DATA, 512),
                writable(DATA + 512, 513),
            ],
        );
        let before = (rig.bytes(BASE, 256), rig.bytes(BUFFERS, 16), rig.bytes(DATA, 512));
        rig.offer_head(0);
        rig.run();
        assert_eq!(rig.take_used().len(), 1);
        assert_eq!(
            before,
            (rig.bytes(BASE, 256), rig.bytes(BUFFERS, 16), rig.bytes(DATA, 512))
        );
    }
}

// virtio-checklist 40, 41
#[test]
fn indirect_tables_after_direct_descriptors() {
    for engine in ENGINES {
        for pointer_flags in [VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE] {
            let mut rig = Rig::new(engine);
            rig.header(BUFFERS, VIRTIO_BLK_T_IN, 1);
            // Unaligned: the specification does not require alignment.
            let table = BUFFERS + 0x1003;
            rig.chain_in(
                table,
                0,
                &[
                    writable(DATA, 512),
                    writable(DATA + 512, 512),
                    writable(BUFFERS + 64, 1),
                ],
            );
            rig.chain_in(BASE, 4, &[readable(BUFFERS, 10), readable(BUFFERS + 10, 6)]);
            let link = Desc {
                addr: BUFFERS + 10,
                len: 6,
                flags: VIRTQ_DESC_F_NEXT,
                next: 9,
            };
            rig.write_desc(BASE, 5, link);
            rig.write_desc(
                BASE,
                9,
                Desc {
                    addr: table,
                    len: 48,
                    flags: pointer_flags,
                    next: 0,
                },
            );
            rig.offer_head(4);
            rig.run();
            assert_eq!(rig.take_used(), [(4, 1025)], "{:?}", rig.fault_list());
            assert_eq!(
                (rig.byte(BUFFERS + 64), rig.bytes(DATA, 1024)),
                (OK, expected(1, 1024))
            );
        }
    }
}

// virtio-checklist 55; torture b10
#[test]
fn a_readonly_disk_takes_no_write() {
    for engine in ENGINES {
        let mut rig = Rig::with(engine, 16, ALL_FEATURES | feature(VIRTIO_BLK_F_RO), true);
        let before = rig.image();
        for (sector, len) in [(0, 512), (SECTORS, 512), (0, 0), (0, 100)] {
            let (status, _) = rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(DATA, len)));
            assert_eq!(status, IOERR);
        }
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, OK);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512))).0,
            OK
        );
        assert_eq!(rig.image(), before);
        // SAFETY: no pointers.
        let flags = unsafe { libc::fcntl(rig.queue().disk().fd(), libc::F_GETFL) };
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY);
    }
}

// virtio-checklist 60, 61; torture b11
#[test]
fn unknown_types_are_unsupported() {
    let mut rig = Rig::new(EngineKind::Threads);
    let before = rig.image();
    // Old SCSI commands, secure erase, zone operations (60), lifetime; DISCARD and WRITE_ZEROES, which are
    // not negotiated here.
    for kind in [
        2,
        3,
        10,
        11,
        13,
        14,
        15,
        16,
        18,
        20,
        22,
        24,
        26,
        0x8000_0000,
        u32::MAX,
    ] {
        assert_eq!(
            rig.request(1, kind, 0, Some(readable(DATA, 512))),
            (UNSUPP, 1),
            "type {kind}"
        );
    }
    assert_eq!(rig.queue().stats().unsupported.get(), 15);
    assert_eq!(rig.image(), before);
}

// virtio-checklist 62
#[test]
fn get_id_is_padded_and_cut() {
    let mut rig = Rig::new(EngineKind::Threads);
    let id = b"serial-0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (room, used) in [(20, 21), (4, 5), (0, 1), (64, 20)] {
        rig.fill(DATA, &[0xa5; 64]);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, room))),
            (OK, used)
        );
        let given = (room as usize).min(20);
        assert_eq!(rig.bytes(DATA, given), id[..given]);
        assert_eq!(rig.bytes(DATA + given as u64, 64 - given), vec![0xa5; 64 - given]);
    }
}

// virtio-checklist 63; torture b8, b9, b13
#[test]
fn requests_beyond_the_end_and_half_sectors_fail_without_a_transfer() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let before = rig.image();
        let cases = [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (u64::MAX / 512 + 1, 512),
            (1 << 55, 1024),
            (0, 511),
            (0, 1),
            (0, 513),
            (0, 512 * 129),
        ];
        for (sector, len) in cases {
            rig.fill(DATA, &vec![0xa5; len as usize]);
            let (status, used) = rig.request(0, VIRTIO_BLK_T_IN, sector, Some(writable(DATA, len)));
            assert_eq!((status, used), (IOERR, 0), "read {len} at {sector}");
            assert_eq!(rig.bytes(DATA, len as usize), vec![0xa5; len as usize]);
            let (status, used) = rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(DATA, len)));
            assert_eq!((status, used), (IOERR, 1), "write {len} at {sector}");
        }
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, SECTORS, None).0,
            OK,
            "nothing at the very end"
        );
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, SECTORS - 1, Some(writable(DATA, 512)))
                .0,
            OK
        );
        assert_eq!(rig.image(), before);
    }
}

// torture b8: more segments than IOV_MAX, and a sum above 2^32
#[test]
fn more_segments_than_the_kernel_takes_at_once() {
    for engine in ENGINES {
        let mut rig = Rig::with(engine, 4096, ALL_FEATURES, false);
        rig.header(BUFFERS, VIRTIO_BLK_T_IN, 0);
        let mut bufs = vec![readable(BUFFERS, 16)];
        // 64 KiB in pieces of 16 bytes.
        bufs.extend((0..4000).map(|part| writable(DATA + part * 16, 16)));
        bufs.push(writable(DATA + 64_000, 1536));
        bufs.push(writable(BUFFERS + 64, 1));
        rig.offer(0, &bufs);
        rig.run();
        assert_eq!(rig.take_used(), [(0, 65537)]);
        assert_eq!(
            (rig.byte(BUFFERS + 64), rig.bytes(DATA, 65536)),
            (OK, expected(0, 65536))
        );
        assert!(rig.queue().stats().operations.get() >= 4);
    }
}

// torture b8: a sum over 2^32 of many buffers
#[test]
fn a_sum_over_four_gibibytes_is_counted_right() {
    let mut rig = Rig::with(EngineKind::Threads, 1024, ALL_FEATURES, false);
    rig.header(BUFFERS, VIRTIO_BLK_T_IN, 0);
    let mut bufs = vec![readable(BUFFERS, 16)];
    // 1000 times 5 MiB of the same RAM: 2^32 and more, which truncated to 32 bits would be inside of the
    // disk.
    bufs.extend((0..1000).map(|_| writable(BASE + 0x20_0000, 5 << 20)));
    bufs.push(writable(BUFFERS + 64, 1));
    rig.offer(0, &bufs);
    rig.run();
    assert_eq!(rig.take_used(), [(0, 0)]);
    assert_eq!(rig.byte(BUFFERS + 64), IOERR);
}

// torture b8: descriptors of 4 GiB - 1 bytes and of the most whole sectors, one and two of them, above 2^32
// in sum. The memory is only reserved.
#[test]
fn descriptors_of_four_gibibytes() {
    const ODD: u32 = u32::MAX;
    const WHOLE: u32 = u32::MAX - 511;
    let high = BASE + 0x1_0000_0000;
    for kind in ENGINES {
        let mut rig = Rig::closed(kind, 16, ALL_FEATURES, false);
        let ranges = [(GuestAddress(BASE), RAM), (GuestAddress(high), 5 << 30)];
        rig.memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        rig.ram = GuestRam::new(rig.memory.clone()).unwrap();
        rig.config.path = "null:16G".into();
        rig.open();
        let both = |len| {
            [
                readable(BUFFERS, 16),
                writable(high, len),
                writable(high + 4096, len),
            ]
        };
        for (lens, status, used) in [
            (1, IOERR, 0),
            (2, OK, WHOLE + 1),
            // Used len has 32 bits: it saturates below the bytes that were written.
            (3, OK, u32::MAX),
        ] {
            rig.header(BUFFERS, VIRTIO_BLK_T_IN, 0);
            rig.fill(BUFFERS + 64, &[0xff]);
            let mut bufs = match lens {
                1 => both(ODD)[..2].to_vec(),
                2 => both(WHOLE)[..2].to_vec(),
                _ => both(WHOLE).to_vec(),
            };
            bufs.push(writable(BUFFERS + 64, 1));
            rig.offer(0, &bufs);
            rig.run();
            assert_eq!(
                (rig.take_used(), rig.byte(BUFFERS + 64)),
                (vec![(0, used)], status)
            );
        }
        // A smaller disk is not read at all.
        rig.kill();
        let mut small = Rig::closed(kind, 16, ALL_FEATURES, false);
        (small.memory, small.ram) = (rig.memory.clone(), rig.ram.clone());
        small.epoch = 2;
        small.fill(small.ring.avail.0, &[0; 64]);
        small.fill(small.ring.used.0, &[0; 256]);
        small.open();
        let done = small.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(high, WHOLE)));
        assert_eq!(done, (IOERR, 0));
    }
}

// virtio-checklist 51, 52, 54, 65
#[test]
fn features_and_configuration_space() {
    let rig = Rig::closed(EngineKind::Threads, 16, 0, false);
    let disk = open_soon(&rig.config);
    let common = ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX) | feature(VIRTIO_F_RING_RESET);
    assert_eq!(device::features(&disk, 1), common | WRITABLE_FEATURES);
    assert_eq!(
        device::features(&disk, 4),
        common | WRITABLE_FEATURES | feature(VIRTIO_BLK_F_MQ)
    );
    let mut expected = [0; device::CONFIG_LEN];
    let mut put = |offset: usize, value: &[u8]| expected[offset..][..value.len()].copy_from_slice(value);
    put(0, &SECTORS.to_le_bytes());
    // size_max, seg_max, blk_size; physical blocks of 4096, min_io_size; writeback
    put(8, &(4_u32 << 20).to_le_bytes());
    put(12, &254_u32.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    put(24, &[3, 0, 8, 0]);
    put(32, &[1]);
    // Discard and zeroes: sectors, segments, alignment; may_unmap.
    for (offset, value) in [(36, 1 << 21), (40, 64), (44, 8), (48, 1 << 18), (52, 64)] {
        put(offset, &u32::to_le_bytes(value));
    }
    put(56, &[1]);
    assert_eq!(device::config(&disk, 256, 1), expected);
    expected[34] = 4;
    assert_eq!(device::config(&disk, 256, 4), expected);
    drop(disk);
    let readonly = open_soon(&crate::DiskConfig {
        readonly: true,
        ..rig.config.clone()
    });
    assert_eq!(device::features(&readonly, 1), common | feature(VIRTIO_BLK_F_RO));
    expected[32..].fill(0);
    assert_eq!(device::config(&readonly, 256, 1), expected);
}
