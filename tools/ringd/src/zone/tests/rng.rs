//! A zone's entropy device: it has the last slot, is served, and is unchanged after a take-over.

use super::{Machine, daemon, until};
use crate::config::ZoneConfig;
use crate::device::Configs;
use crate::device::rng::config::RngConfig;
use crate::zone::actor::Command;
use crate::zone::record::Record;

impl Machine {
    /// Returns a zone with a disk, a drive without a medium, and an entropy device.
    fn with_rng(&self) -> ZoneConfig {
        ZoneConfig {
            devices: Configs {
                disk: vec![self.disk("d.img", 4096)],
                spare_disks: 1,
                rng: Some(RngConfig { bps: Some(1 << 20) }),
                ..Configs::default()
            },
            ..self.config("a")
        }
    }
}

#[test]
fn an_entropy_device_is_served_and_taken_over() {
    let machine = Machine::new();
    let zone = machine.registry.start(machine.with_rng()).unwrap();
    let device = machine.el2.device(1, 2).unwrap();
    assert_eq!((device.queues, zone.status().devices.disks), (1, 1));
    assert!(machine.el2.device(1, 3).is_none());
    machine.el2.guest_changes_device(1, 2, |device| {
        (device.status, device.features) = (15, 1 << 32);
        let queue = &mut device.queue[0];
        (queue.size, queue.ready) = (16, 1);
        (queue.desc, queue.driver, queue.device) = (0x4040_0000, 0x4040_1000, 0x4040_2000);
    });
    let active = |registry: &crate::zone::registry::Registry| {
        let queues = registry.context().io.snapshots(1, 2);
        queues.first().is_some_and(|queue| queue.active)
    };
    until("queue", || active(&machine.registry));
    let reset = |device: &mut ringvisor::abi::command::DeviceState| {
        (device.reset_generation, device.reset_pending) = (2, 1);
    };
    machine.registry.context().io.stop();
    let path = machine.path("records/a.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""rng":{"bps":1048576}"#), "{text}");
    std::fs::write(path, text.replace("d.img", "copy.img")).unwrap();
    std::fs::copy(machine.path("d.img"), machine.path("copy.img")).unwrap();
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    until("queue", || active(&next));
    machine.el2.guest_changes_device(1, 2, reset);
    until("reset", || machine.el2.device(1, 2).unwrap().reset_pending == 0);
    next.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

/// The record of a zone without an entropy device has no such section, so an older daemon can take the zone
/// over.
#[test]
fn a_zone_without_an_entropy_device_has_the_old_record() {
    let machine = Machine::new();
    let config = machine.with_disks("a", vec![machine.disk("d.img", 4096)]);
    machine.registry.start(config).unwrap();
    let text = std::fs::read_to_string(machine.path("records/a.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut top = keys(&record);
    top.sort();
    assert_eq!(
        top,
        [
            "added_pages",
            "config",
            "cpus",
            "disks",
            "number",
            "starts",
            "version"
        ]
    );
    let mut config = keys(&record["config"]);
    config.sort();
    assert_eq!(
        config,
        [
            "cmdline",
            "cpus",
            "disk",
            "initrd",
            "kernel",
            "memory",
            "name",
            "on_crash",
            "on_reboot",
            "origin",
            "spare_disks"
        ]
    );
    machine.registry.execute("a", Command::Stop).unwrap();
}

/// A record with keys that this daemon does not know must not be accepted.
#[test]
fn a_record_with_unknown_keys_is_refused() {
    let machine = Machine::new();
    machine
        .registry
        .start(machine.with_disks("a", vec![machine.disk("d.img", 4096)]))
        .unwrap();
    let path = machine.path("records/a.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [
        (r#""starts":"#, r#""nics":[],"starts":"#),
        (r#""memory":"#, r#""nic":[],"memory":"#),
        (r#""readonly":"#, r#""speed":1,"readonly":"#),
        (r#""disks":"#, r#""discs":"#),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let all = Record::load_all(&machine.path("records")).unwrap();
        assert!(all[0].is_err(), "{to}");
    }
    std::fs::write(&path, &text).unwrap();
    assert!(Record::load_all(&machine.path("records")).unwrap()[0].is_ok());
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}
