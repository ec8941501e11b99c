//! What devices leave for the next daemon is in the file that the next daemon opens, and is nothing of an
//! earlier zone of the same name: shown for every kind of device, after a first start and after a take-over.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ringnet::MacAddress;
use ringvirtio::virtio::feature;
use ringvisor::abi::MAX_QUEUES;

use super::{Machine, daemon, until};
use crate::config::ZoneConfig;
use crate::device::net::config::{NetConfig, NetLimits, Source};
use crate::device::net::open::default_mac;
use crate::device::rng::config::RngConfig;
use crate::device::{Configs, Device, inflight};
use crate::zone::actor::Command;
use crate::zone::registry::Registry;

/// Slots of the disk, the entropy device and the network device; between the first two is a drive without a
/// medium.
const DISK: u8 = 0;
const RNG: u8 = 2;
const NET: u8 = 3;

/// Where guest RAM begins, and the rings of a queue in it.
const RAM: u64 = 0x4000_0000;
const RINGS: u64 = 0x40_0000;
const RINGS_LEN: u64 = 0x4000;
/// Number of a network device's control queue.
const CONTROL: u8 = 2;

const FEATURES: u64 = feature(ringvirtio::virtio::VIRTIO_F_VERSION_1)
    | feature(ringnet::virtio::VIRTIO_NET_F_CTRL_VQ)
    | feature(ringnet::virtio::VIRTIO_NET_F_CTRL_MAC_ADDR);

impl Machine {
    fn with_all_kinds(&self, image: &str) -> ZoneConfig {
        let net = NetConfig {
            port: Source::User.into(),
            mac: None,
            mtu: 1500,
            queue_pairs: Some(1),
            limits: NetLimits::default(),
        };
        ZoneConfig {
            devices: Configs {
                disk: vec![self.disk(image, 4096)],
                spare_disks: 1,
                rng: Some(RngConfig { bps: None }),
                net: vec![net],
                ..Configs::default()
            },
            ..self.config("a")
        }
    }

    /// The daemon is killed; the next one takes the zone over, with its disk moved from `image` to `copy`: in
    /// this process the first one's is still locked.
    fn take_over(&self, registry: &Registry, image: &str, copy: &str) -> Arc<Registry> {
        registry.context().io.stop();
        let record = self.path("records/a.json");
        let text = fs::read_to_string(&record).unwrap();
        fs::write(record, text.replace(image, copy)).unwrap();
        fs::copy(self.path(image), self.path(copy)).unwrap();
        daemon(&self.el2, &self.host, self.path("records"))
    }

    fn rings(slot: u8, queue: u8) -> u64 {
        RINGS + (u64::from(slot) * MAX_QUEUES as u64 + u64::from(queue)) * RINGS_LEN
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let ram = fs::File::options().write(true).open(self.path("a.ram")).unwrap();
        ram.write_all_at(bytes, offset).unwrap();
    }

    /// Drivers set up all queues, with empty rings.
    fn set_up_queues(&self) {
        for (slot, queues) in [(DISK, 1), (RNG, 1), (NET, 3_u8)] {
            for queue in 0..queues {
                self.write(Self::rings(slot, queue), &[0; RINGS_LEN as usize]);
            }
            self.el2.guest_changes_device(1, slot, |device| {
                (device.status, device.features) = (15, FEATURES);
                for queue in 0..queues {
                    let rings = RAM + Self::rings(slot, queue);
                    let queue = &mut device.queue[usize::from(queue)];
                    (queue.size, queue.ready) = (16, 1);
                    (queue.desc, queue.driver, queue.device) = (rings, rings + 0x1000, rings + 0x2000);
                }
            });
        }
    }

    /// The driver makes a chain available as the first one of a queue: buffers by offset in its page of
    /// buffers, length and flags.
    fn offer(&self, slot: u8, queue: u8, buffers: &[(u64, u32, u16)]) {
        let rings = Self::rings(slot, queue);
        for (index, &(at, len, flags)) in (0_u64..).zip(buffers) {
            let next = index as u16 + 1;
            let mut descriptor = (RAM + rings + 0x3000 + at).to_le_bytes().to_vec();
            descriptor.extend(len.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(next.to_le_bytes());
            self.write(rings + index * 16, &descriptor);
        }
        self.write(rings + 0x1000, &[0, 0, 1, 0, 0, 0]);
        self.el2.guest_notifies(1, slot, queue);
    }

    /// The driver gives the network device another address, and waits for the result.
    fn set_mac(&self, registry: &Registry, mac: MacAddress) {
        let rings = Self::rings(NET, CONTROL);
        self.write(rings + 0x3000, &[&[1, 1], &mac.0[..]].concat());
        self.offer(NET, CONTROL, &[(0, 8, 1), (0x100, 1, 2)]);
        until("command", || shown_mac(registry) == mac);
    }

    /// Returns whether the file that the next daemon opens has the logs of all kinds of devices, and what the
    /// driver of the network device has set.
    fn is_logged(&self) -> bool {
        let file = fs::File::open(inflight::path(&self.path("records"), "a")).unwrap();
        let word = |offset: usize| {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, offset as u64).unwrap();
            u64::from_le_bytes(word)
        };
        let log = |slot: u8| word(usize::from(slot) * MAX_QUEUES * inflight::LOG_STRIDE);
        [DISK, RNG, NET].iter().all(|&slot| log(slot) != 0)
            && word(inflight::WORDS + inflight::net_words(NET) * 8) != 0
    }
}

fn shown_mac(registry: &Registry) -> MacAddress {
    match registry.context().io.device(1, NET) {
        Some(Device::Net(net)) => net.view().filter.mac,
        _ => MacAddress([0; 6]),
    }
}

/// Waits until all queues are served; returns how many requests of an earlier daemon were run again.
fn served(registry: &Registry) -> u64 {
    let queues = |slot| registry.context().io.snapshots(1, slot);
    until("queues", || {
        [(DISK, 1), (RNG, 1), (NET, 3)]
            .iter()
            .all(|&(slot, count)| queues(slot).iter().filter(|queue| queue.active).count() == count)
    });
    let restarted = |slot| -> u64 {
        let counters = queues(slot).into_iter().map(|queue| queue.stats());
        counters.map(|stats| stats.counters["restarted"]).sum()
    };
    [DISK, RNG, NET].map(restarted).iter().sum()
}

#[test]
fn an_earlier_zones_file_is_neither_used_nor_mapped() {
    let machine = Machine::new();
    let file = inflight::path(&machine.path("records"), "a");
    let (first, second) = (MacAddress([2, 0, 0, 0, 0, 1]), MacAddress([2, 0, 0, 0, 0, 2]));

    // The earlier zone: a receive buffer is in flight, and the driver has set an address.
    machine.registry.start(machine.with_all_kinds("a.img")).unwrap();
    machine.set_up_queues();
    assert_eq!(served(&machine.registry), 0);
    assert!(machine.is_logged());
    machine.offer(NET, 0, &[(0, 1600, 2)]);
    machine.set_mac(&machine.registry, first);
    let left = fs::read(&file).unwrap();
    let registry = machine.take_over(&machine.registry, "a.img", "b.img");
    // The queue is there before it has run what was in flight.
    until("restart", || served(&registry) == 1);
    assert_eq!(shown_mac(&registry), first);
    registry.execute("a", Command::Stop).unwrap();
    assert!(!file.exists());

    // A zone of the same name, beside what the earlier one's daemon could not remove.
    fs::write(&file, left).unwrap();
    registry.start(machine.with_all_kinds("c.img")).unwrap();
    machine.set_up_queues();
    assert_eq!(
        (served(&registry), shown_mac(&registry)),
        (0, default_mac("a", 0))
    );
    assert!(machine.is_logged());
    machine.set_mac(&registry, second);
    let registry = machine.take_over(&registry, "c.img", "d.img");
    assert_eq!((served(&registry), shown_mac(&registry)), (0, second));
    registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}
