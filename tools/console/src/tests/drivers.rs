//! The console driver of the `virtio-drivers` crate as the guest, on a transport that adds its queues to a
//! reactor.

use std::sync::Arc;

use ringvirtio::fake::{FakeDevice, FakeTransport, Ram, with_reactor};
use ringvirtio::{QueueHandler, QueueSetup};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::{DeviceType, Transport};
use vm_memory::MmapRegion;

use crate::memory::BYTES;
use crate::{Console, PortMemory, QUEUE_SIZE_MAX, Size};

/// The device under test.
struct Tested(Arc<Console>);

impl FakeDevice for Tested {
    const TYPE: DeviceType = DeviceType::Console;
    const QUEUE_SIZE_MAX: u16 = QUEUE_SIZE_MAX;

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn config(&self) -> Vec<u8> {
        self.0.space().to_vec()
    }

    fn queue(&self, number: u16, setup: QueueSetup) -> Box<dyn QueueHandler> {
        self.0.queue(number, setup).unwrap().0
    }
}

fn console(kept: &Arc<MmapRegion>, ports: usize) -> Arc<Console> {
    let memory = |port| Arc::new(PortMemory::in_mapping(kept, port * BYTES).unwrap());
    Console::new("console".into(), (0..ports).map(memory).collect())
}

fn output(console: &Console) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let read = console.ports()[0].read_output(0, &mut bytes);
    bytes.truncate(read.len);
    bytes
}

/// A driver without MULTIPORT uses the first port, of one or of several.
#[test]
fn a_driver_prints_and_reads() {
    for (io_uring, ports) in [(true, 1), (false, 1), (true, 3)] {
        with_reactor(io_uring, |handle| {
            let kept = Arc::new(MmapRegion::new(BYTES * ports).unwrap());
            let console = console(&kept, ports);
            let (columns, rows) = (132, 43);
            console.set_size(0, Size { columns, rows });
            let mut transport = FakeTransport::new(Tested(console.clone()), handle);
            let mut driver = VirtIOConsole::<Ram, _>::new(transport.clone()).unwrap();
            let size = driver.size().unwrap().unwrap();
            assert_eq!((size.columns, size.rows), (132, 43));
            driver.send_bytes(b"login: ").unwrap();
            driver.send(b'!').unwrap();
            assert_eq!(output(&console), b"login: !");
            let mut text = Vec::new();
            for typed in [&b"root\n"[..], b"x", b"echo 1\n"] {
                assert_eq!(console.ports()[0].type_in(typed), typed.len());
                // As a daemon schedules the queue of input.
                transport.notify(0);
                while text.len() < typed.len() {
                    text.extend(driver.recv(true).unwrap());
                }
                assert_eq!(text, typed);
                text.clear();
            }
        });
    }
}

/// A daemon ends, and the next one goes on with the driver's queues.
#[test]
fn a_driver_notices_no_other_daemon() {
    let kept = Arc::new(MmapRegion::new(BYTES).unwrap());
    let mut made = None;
    with_reactor(true, |handle| {
        let transport = FakeTransport::new(Tested(console(&kept, 1)), handle);
        let mut driver = VirtIOConsole::<Ram, _>::new(transport.clone()).unwrap();
        driver.send_bytes(b"one ").unwrap();
        made = Some((transport, driver));
    });
    let (mut transport, mut driver) = made.unwrap();
    with_reactor(true, |handle| {
        let console = console(&kept, 1);
        transport.take_over(Tested(console.clone()), handle);
        driver.send_bytes(b"two").unwrap();
        assert_eq!(output(&console), b"one two");
        console.ports()[0].type_in(b"y");
        transport.notify(0);
        let byte = loop {
            if let Some(byte) = driver.recv(true).unwrap() {
                break byte;
            }
        };
        assert_eq!(byte, b'y');
        drop(driver);
    });
}
