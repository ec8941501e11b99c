//! Features in any subset, several queues of one disk, and a capacity that changes.

use ringvirtio::virtio::{
    VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VIRTQ_DESC_F_INDIRECT, feature,
};

use super::rig::{
    ALL_FEATURES, BASE, BUFFERS, Buf, Desc, ENGINES, Rig, SECTORS, open_soon, readable, writable,
};
use super::service::{REACTOR_VARIANTS, Running, collect, queue};
use crate::device;
use crate::virtio::{
    RequestStatus, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;
const IOERR: u8 = RequestStatus::IoErr as u8;
const UNSUPP: u8 = RequestStatus::Unsupp as u8;

// virtio-checklist 30, 31, device side: in each combination the negotiated features work, and no others
#[test]
fn every_subset_of_the_features_works() {
    let optional = [
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ];
    for kind in ENGINES {
        for subset in 0..1_u32 << optional.len() {
            let chosen = |number: u32| {
                let at = optional.iter().position(|&other| other == number).unwrap();
                subset & 1 << at != 0
            };
            let features = optional
                .iter()
                .filter(|&&number| chosen(number))
                .fold(feature(VIRTIO_F_VERSION_1), |all, &number| all | feature(number));
            let mut rig = Rig::with(kind, 64, features, false);
            rig.fill(DATA, &[subset as u8; 1024]);
            let write = rig.request(0, VIRTIO_BLK_T_OUT, 2, Some(readable(DATA, 1024)));
            assert_eq!(write, (OK, 1));
            assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
            let read = rig.request(0, VIRTIO_BLK_T_IN, 2, Some(writable(DATA + 1024, 1024)));
            assert_eq!(
                (read, rig.bytes(DATA + 1024, 1024)),
                ((OK, 1025), vec![subset as u8; 1024])
            );
            let segments = rig.segments(DATA + 4096, &[(120, 8, 0)]);
            let (discard, _) = rig.request(0, VIRTIO_BLK_T_DISCARD, 0, Some(segments));
            let negotiated = chosen(VIRTIO_BLK_F_DISCARD);
            assert_eq!(discard, if negotiated { OK } else { UNSUPP });
            let (zeroes, _) = rig.request(0, VIRTIO_BLK_T_WRITE_ZEROES, 0, Some(segments));
            if !chosen(VIRTIO_BLK_F_WRITE_ZEROES) {
                assert_eq!(zeroes, UNSUPP);
            }
            // Interrupts: with EVENT_IDX only the one that used_event requests, at 0; else all.
            let publications = rig.used_idx() as usize;
            let expected = if chosen(VIRTIO_RING_F_EVENT_IDX) {
                1
            } else {
                publications
            };
            assert_eq!(rig.interrupt_count(), expected);
            // An indirect table works, or breaks the queue.
            rig.header(BUFFERS, VIRTIO_BLK_T_IN, 2);
            let table = BUFFERS + 0x1000;
            rig.chain_in(
                table,
                0,
                &[
                    readable(BUFFERS, 16),
                    writable(DATA, 512),
                    writable(BUFFERS + 64, 1),
                ],
            );
            let (len, flags) = (48, VIRTQ_DESC_F_INDIRECT);
            rig.write_desc(
                BASE,
                9,
                Desc {
                    addr: table,
                    len,
                    flags,
                    next: 0,
                },
            );
            rig.offer_head(9);
            rig.run();
            let indirect = chosen(VIRTIO_RING_F_INDIRECT_DESC);
            assert_eq!(rig.take_used().len(), usize::from(indirect));
            assert_eq!(rig.fault_list().len(), usize::from(!indirect));
        }
    }
}

// MQ: each queue has its own ring, log and buffers; requests of all reach the one image
#[test]
fn several_queues_of_one_disk() {
    const QUEUES: u64 = 4;
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let first = Rig::closed(engine, 64, ALL_FEATURES, false);
        let disk = open_soon(&first.config);
        std::thread::scope(|scope| {
            for number in 0..QUEUES {
                let (disk, handle) = (disk.clone(), &reactor.handle);
                scope.spawn(move || {
                    let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
                    let (queue, interrupts) = queue(&rig, disk);
                    let id = handle.add(queue);
                    for round in 0..100_u64 {
                        let (kind, write) = match round % 3 {
                            2 => (VIRTIO_BLK_T_FLUSH, false),
                            1 => (VIRTIO_BLK_T_IN, true),
                            _ => (VIRTIO_BLK_T_OUT, false),
                        };
                        for head in 0..8_u64 {
                            let addr = DATA + head * 512;
                            if kind == VIRTIO_BLK_T_OUT {
                                rig.fill(addr, &[(number * 50 + round / 3) as u8; 512]);
                            }
                            let data = (kind != VIRTIO_BLK_T_FLUSH).then_some(Buf {
                                addr,
                                len: 512,
                                write,
                            });
                            rig.offer_request(head as u16 * 3, kind, number * 8 + head, data);
                        }
                        handle.schedule(id);
                        collect(&mut rig, &interrupts, 8);
                        for head in 0..8_u64 {
                            assert_eq!(rig.byte(BUFFERS + head * 192 + 32), OK);
                        }
                        let data = rig.bytes(DATA, 8 * 512);
                        assert!(data.iter().all(|&byte| byte == (number * 50 + round / 3) as u8));
                    }
                });
            }
        });
        for number in 0..QUEUES {
            let expected = vec![(number * 50 + 33) as u8; 8 * 512];
            assert_eq!(first.image_at(number * 8, 8 * 512), expected);
        }
    }
}

// virtio-checklist 51, 64: the file grows or shrinks, the capacity follows when it is asked for; the
// transport sends the notification when the bytes of the configuration space differ
#[test]
fn the_capacity_follows_the_file() {
    for kind in ENGINES {
        let mut rig = Rig::with(kind, 64, ALL_FEATURES, false);
        let disk = rig.queue().disk().clone();
        assert!(!disk.reread_capacity().unwrap(), "unchanged");
        let read = |rig: &mut Rig, sector| {
            rig.request(0, VIRTIO_BLK_T_IN, sector, Some(writable(DATA, 512)))
                .0
        };
        assert_eq!(read(&mut rig, SECTORS), IOERR);
        for sectors in [SECTORS * 3, SECTORS / 2, SECTORS] {
            rig.image_file().set_len(sectors * 512).unwrap();
            assert!(disk.reread_capacity().unwrap());
            assert_eq!(device::capacity(&disk), (0, sectors.to_le_bytes()));
            assert_eq!(device::config(&disk, 256, 1)[..8], sectors.to_le_bytes());
            assert_eq!(read(&mut rig, sectors - 1), OK);
            assert_eq!(read(&mut rig, sectors), IOERR);
        }
        // The last sector counts, whole or not; no size at all is refused and changes nothing.
        rig.image_file().set_len(1000).unwrap();
        assert!(disk.reread_capacity().unwrap());
        assert_eq!((disk.capacity(), read(&mut rig, 1)), (2, OK));
        rig.image_file().set_len(0).unwrap();
        let error = disk.reread_capacity().unwrap_err().to_string();
        assert!(error.contains("size 0 bytes"), "{error}");
        assert_eq!(disk.capacity(), 2);
    }
}
