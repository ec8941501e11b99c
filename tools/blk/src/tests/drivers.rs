//! The block driver of the `virtio-drivers` crate as the guest, on a transport that adds its queues to a
//! reactor.

use std::sync::Arc;

use ringvirtio::fake::{FakeDevice, FakeTransport, Ram, with_reactor};
use ringvirtio::{QueueHandler, QueueSetup};
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

use super::rig::{ENGINES, Rig, SECTORS, open_soon, pattern};
use crate::device;
use crate::disk::{Disk, EngineKind};
use crate::queue::BlockQueue;

/// The device under test.
struct Tested(Arc<Disk>);

impl FakeDevice for Tested {
    const TYPE: DeviceType = DeviceType::Block;
    const QUEUE_SIZE_MAX: u16 = device::QUEUE_SIZE_MAX;

    fn features(&self) -> u64 {
        device::features(&self.0, 1)
    }

    fn config(&self) -> Vec<u8> {
        device::config(&self.0, device::QUEUE_SIZE_MAX, 1).to_vec()
    }

    fn queue(&self, _number: u16, setup: QueueSetup) -> Box<dyn QueueHandler> {
        Box::new(BlockQueue::new(self.0.clone(), setup).unwrap())
    }
}

type Driver = VirtIOBlk<Ram, FakeTransport<Tested>>;

/// Runs `test` with a driver on a disk of this kind.
fn with_driver(io_uring: bool, rig: &Rig, test: impl FnOnce(&mut Driver)) {
    with_reactor(io_uring, |handle| {
        let transport = FakeTransport::new(Tested(open_soon(&rig.config)), handle);
        test(&mut VirtIOBlk::new(transport).unwrap());
    });
}

// virtio-checklist 37, 51, 59, 62; torture e1 on a small scale: random sectors and sizes against a model
#[test]
fn reads_back_what_it_wrote() {
    for (io_uring, kind) in [
        (true, EngineKind::IoUring),
        (true, EngineKind::Threads),
        (false, EngineKind::Threads),
    ] {
        let rig = Rig::closed(kind, 16, 0, false);
        let mut model = rig.image();
        with_driver(io_uring, &rig, |driver| {
            assert_eq!((driver.capacity(), driver.readonly()), (SECTORS, false));
            let mut id = [0xff; 20];
            assert_eq!(driver.device_id(&mut id).unwrap(), 8);
            assert_eq!(&id[..9], b"serial-0\0");
            let mut seed = 42_u32;
            for round in 0..500_u32 {
                seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                let count = 1 + (seed >> 28) as usize;
                let sector = (seed >> 8) as usize % (SECTORS as usize - count);
                let range = sector * SECTOR_SIZE..(sector + count) * SECTOR_SIZE;
                let mut bytes = vec![round as u8; count * SECTOR_SIZE];
                if seed & 0x10 == 0 {
                    driver.write_blocks(sector, &bytes).unwrap();
                    model[range].copy_from_slice(&bytes);
                } else {
                    driver.read_blocks(sector, &mut bytes).unwrap();
                    assert!(bytes == model[range]);
                }
                if round % 50 == 0 {
                    driver.flush().unwrap();
                }
            }
        });
        assert!(rig.image() == model);
    }
}

// Requests in flight together complete in any order.
#[test]
fn several_at_once() {
    for kind in ENGINES {
        let rig = Rig::closed(kind, 16, 0, false);
        with_driver(true, &rig, |driver| {
            for _ in 0..100 {
                let mut parts: Vec<_> = (0..8)
                    .map(|_| (BlkReq::default(), BlkResp::default(), [0; SECTOR_SIZE], None))
                    .collect();
                for (sector, (request, response, buffer, token)) in parts.iter_mut().enumerate() {
                    // SAFETY: the parts are not touched before they are completed below.
                    *token = Some(
                        unsafe { driver.read_blocks_nb(sector * 3, request, buffer, response) }.unwrap(),
                    );
                }
                for _ in 0..8 {
                    let token = loop {
                        match driver.peek_used() {
                            Some(token) => break token,
                            None => std::hint::spin_loop(),
                        }
                    };
                    let (sector, (request, response, buffer, _)) = parts
                        .iter_mut()
                        .enumerate()
                        .find(|(_, part)| part.3 == Some(token))
                        .unwrap();
                    // SAFETY: the same parts as given with this token.
                    unsafe { driver.complete_read_blocks(token, request, buffer, response) }.unwrap();
                    let expected: Vec<u8> = (0..512)
                        .map(|byte| pattern(sector as u64 * 1536 + byte))
                        .collect();
                    assert_eq!(buffer[..], expected);
                }
            }
        });
    }
}

// virtio-checklist 55, 63
#[test]
fn a_driver_gets_errors() {
    let mut rig = Rig::closed(EngineKind::IoUring, 16, 0, true);
    with_driver(true, &rig, |driver| {
        assert!(driver.readonly());
        assert!(driver.write_blocks(0, &[0; 512]).is_err());
        assert!(driver.read_blocks(SECTORS as usize, &mut [0; 512]).is_err());
        assert!(driver.read_blocks(0, &mut [0; 512]).is_ok());
    });
    rig.config.readonly = false;
    with_driver(true, &rig, |driver| {
        assert!(driver.write_blocks(0, &[0; 512]).is_ok())
    });
}
