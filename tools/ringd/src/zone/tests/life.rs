//! Zones from their start to their end, and the next daemon.

use std::fs;
use std::time::{Duration, Instant};

use ringvisor::abi::command::Op;
use ringvisor::abi::{StopReason, ZoneState};

use super::{Machine, PAGES, daemon, until};
use crate::config::{Cpus, OnCrash, OnReboot, ZoneConfig};
use crate::device::Configs;
use crate::device::disk::config::DiskConfig;
use crate::host::Host;
use crate::host::fake::Fault;
use crate::zone::actor::Command;
use crate::zone::ended::Ended;
use crate::zone::record::Record;
use crate::zone::shared::Shared;
use crate::zone::{Ending, Phase};

#[test]
fn a_zone_lives_and_powers_off() {
    let machine = Machine::new();
    let zone = machine.registry.start(machine.config("a")).unwrap();
    let status = zone.status();
    assert_eq!(
        (status.state, status.number, status.cpus),
        (Phase::Running, Some(1), vec![2, 3])
    );
    assert_eq!(machine.host.online(), [0, 1]);
    assert_eq!(machine.host.free_pages(), PAGES - 8);
    assert_eq!(machine.el2.starts(1), [(0x4008_0000, 0x4080_0000)]);

    machine.el2.guest_prints(1, "hello from the guest\n");
    until("output", || {
        zone.console
            .read(0, Duration::ZERO)
            .is_some_and(|chunk| chunk.next == 21)
    });
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemOff);
    assert_eq!(zone.wait(), Ending::PoweredOff);
    machine.assert_clean();
    assert_eq!(machine.registry.list()[0].state, Phase::Stopped);
}

#[test]
fn a_power_key_is_pressed_and_the_zone_starts_again() {
    let machine = Machine::new();
    let registry = &machine.registry;
    let zone = registry.start(machine.config("a")).unwrap();
    registry.press_power_key("a").unwrap();
    assert_eq!(machine.el2.power_key(1), [false, true, false]);
    let message = registry.start_again("a").err().unwrap().to_string();
    assert!(message.contains("exists already"), "{message}");
    registry.execute("a", Command::Pause).unwrap();
    let message = registry.press_power_key("a").unwrap_err().to_string();
    assert!(message.contains("is paused, expected running"), "{message}");
    registry.execute("a", Command::Resume).unwrap();
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemOff);
    assert_eq!(zone.wait(), Ending::PoweredOff);
    assert!(registry.press_power_key("a").is_err());
    let again = registry.start_again("a").unwrap();
    assert_eq!(again.config, zone.config);
    registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn the_kernel_and_the_device_tree_are_in_ram() {
    let machine = Machine::new();
    fs::write(machine.path("initrd"), b"initrd!").unwrap();
    let config = ZoneConfig {
        initrd: Some(machine.path("initrd")),
        ..machine.config("a")
    };
    machine.registry.start(config).unwrap();
    let ram = fs::read(machine.path("a.ram")).unwrap();
    assert_eq!(&ram[0x8_0000..0x8_000d], b"\0 flat kernel");
    assert_eq!(&ram[0x80_0000..0x80_0007], b"initrd!");
    let tree = fdt::Fdt::new(&ram[0xa0_0000..0xa1_0000]).unwrap();
    assert_eq!(machine.el2.starts(1), [(0x4008_0000, 0x40a0_0000)]);
    assert_eq!(tree.chosen().bootargs(), Some("console=ttyAMA0"));
    assert_eq!(tree.cpus().count(), 2);
}

#[test]
fn a_reboot_loads_the_zone_again() {
    let machine = Machine::new();
    let zone = machine.registry.start(machine.config("a")).unwrap();
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemReset);
    until("restart", || zone.status().restarts == 1);
    assert_eq!(machine.el2.starts(1).len(), 2);
    assert_eq!(zone.status().state, Phase::Running);
    machine.registry.execute("a", Command::Stop).unwrap();
    assert_eq!(zone.wait(), Ending::Stopped);
    machine.assert_clean();
}

#[test]
fn policies_are_followed() {
    let machine = Machine::new();
    let stop = ZoneConfig {
        on_reboot: OnReboot::Stop,
        ..machine.config("a")
    };
    let zone = machine.registry.start(stop).unwrap();
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemReset);
    assert_eq!(zone.wait(), Ending::Rebooted);
    machine.assert_clean();

    let zone = machine.registry.start(machine.config("a")).unwrap();
    machine.el2.guest_ends(1, ZoneState::Crashed, StopReason::Fault);
    let Ending::Crashed(detail) = zone.wait() else {
        panic!("{:?}", zone.status())
    };
    assert!(detail.contains("ELR_EL2 0x40201234"), "{detail}");
    machine.assert_clean();

    let hold = ZoneConfig {
        on_crash: OnCrash::Hold,
        ..machine.config("a")
    };
    let zone = machine.registry.start(hold).unwrap();
    machine.el2.guest_ends(1, ZoneState::Crashed, StopReason::Fault);
    until("hold", || zone.status().state == Phase::Crashed);
    assert_eq!(machine.el2.zones(), [1]);
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();

    let again = ZoneConfig {
        on_crash: OnCrash::Restart,
        ..machine.config("a")
    };
    let zone = machine.registry.start(again).unwrap();
    machine.el2.guest_ends(1, ZoneState::Crashed, StopReason::Fault);
    until("restart after a crash", || zone.status().restarts == 1);
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn cpus_that_root_never_started_are_given_first_and_stay_offline() {
    let machine = Machine::new();
    machine.host.never_start(2);
    let one = |name: &str| ZoneConfig {
        cpus: Cpus::Count(1),
        ..machine.config(name)
    };
    let first = machine.registry.start(one("a")).unwrap();
    assert_eq!(first.status().cpus, [2]);
    assert_eq!(machine.host.online(), [0, 1, 3]);
    let second = machine.registry.start(one("b")).unwrap();
    assert_eq!(second.status().cpus, [3], "a spare CPU is given once");
    for name in ["a", "b"] {
        machine.registry.execute(name, Command::Stop).unwrap();
    }
    assert_eq!(machine.host.online(), [0, 1, 3]);
    let again = machine.registry.start(one("a")).unwrap();
    assert_eq!(again.status().cpus, [2]);
    // The next daemon shows them, too.
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    assert_eq!(next.find("a").unwrap().status().cpus, [2]);
}

#[test]
fn a_zone_that_reboots_in_a_loop_waits_and_can_be_stopped() {
    let machine = Machine::new();
    let zone = machine.registry.start(machine.config("a")).unwrap();
    let reboot = || {
        machine
            .el2
            .guest_ends(1, ZoneState::Stopped, StopReason::SystemReset)
    };
    for count in 1..=5 {
        reboot();
        until("restart", || zone.status().restarts == count);
    }
    let (begin, delayed) = (Instant::now(), || {
        crate::limits::RESTARTS.load(std::sync::atomic::Ordering::Relaxed)
    });
    let before = delayed();
    reboot();
    until("restart", || zone.status().restarts == 6);
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(delayed() > before);
    reboot();
    let begin = Instant::now();
    machine.registry.execute("a", Command::Stop).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    machine.assert_clean();
}

#[test]
fn pause_and_resume() {
    let machine = Machine::new();
    let zone = machine.registry.start(machine.config("a")).unwrap();
    assert!(
        machine
            .registry
            .execute("a", Command::Resume)
            .unwrap_err()
            .to_string()
            .contains("expected paused")
    );
    machine.registry.execute("a", Command::Pause).unwrap();
    assert_eq!(zone.status().state, Phase::Paused);
    assert!(machine.registry.execute("a", Command::Pause).is_err());
    machine.registry.execute("a", Command::Resume).unwrap();
    assert_eq!(zone.status().state, Phase::Running);
    machine.registry.execute("a", Command::Stop).unwrap();
    let message = machine
        .registry
        .execute("a", Command::Stop)
        .unwrap_err()
        .to_string();
    assert!(message.contains("zone a is stopped"), "{message}");
    assert!(
        machine
            .registry
            .execute("b", Command::Stop)
            .unwrap_err()
            .to_string()
            .contains("no zone b")
    );
}

/// `torture d3`
#[test]
fn whatever_fails_nothing_is_left() {
    let machine = Machine::new();
    let disk = machine.disk("d.img", 4096);
    let config = ZoneConfig {
        devices: Configs {
            disk: vec![disk],
            ..Configs::default()
        },
        ..machine.config("a")
    };
    for op in [
        Op::ZoneCreate,
        Op::ZoneDonate,
        Op::DeviceAdd,
        Op::RingHead,
        Op::ZoneStart,
    ] {
        machine.el2.refuse(op);
        let message = machine
            .registry
            .start(config.clone())
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(message.contains(&format!("EL2 refused {op:?}")), "{message}");
        machine.assert_clean();
    }
    for fault in [Fault::Offline(2), Fault::Offline(3), Fault::Ram] {
        machine.host.set_fault(Some(fault));
        machine.registry.start(config.clone()).map(drop).unwrap_err();
        machine.host.set_fault(None);
        machine.assert_clean();
    }
    assert!(machine.registry.list().is_empty());
    // Before RAM is made, which takes a while, there is a record by which the next daemon finds it.
    machine.host.watch_creation(machine.path("records/a.json"));
    machine.registry.start(config).unwrap();
    assert!(machine.host.was_there());
}

#[test]
fn missing_files_and_invalid_disks_are_refused() {
    let machine = Machine::new();
    let good = machine.config("a");
    let elf = machine.path("elf");
    fs::write(&elf, b"\x7fELF").unwrap();
    let directory = machine.directory.path().display().to_string();
    let cases = [
        (
            ZoneConfig {
                kernel: "/nonexistent".into(),
                ..good.clone()
            },
            "kernel = \"/nonexistent\": expected a file",
        ),
        (
            ZoneConfig {
                kernel: elf,
                ..good.clone()
            },
            "elf\": its ELF header is cut short",
        ),
        (
            ZoneConfig {
                initrd: Some("/nonexistent".into()),
                ..good.clone()
            },
            "initrd = \"/nonexistent\"",
        ),
        (
            ZoneConfig {
                cpus: Cpus::List(vec![0]),
                ..good.clone()
            },
            "cpus = [0]: expected CPUs other than 0",
        ),
        (
            ZoneConfig {
                cpus: Cpus::List(vec![9]),
                ..good.clone()
            },
            "there is no CPU 9",
        ),
        (
            ZoneConfig {
                cpus: Cpus::Count(4),
                ..good.clone()
            },
            "cpus = 4: expected at most 3",
        ),
        (
            ZoneConfig {
                memory: 1 << 30,
                ..good.clone()
            },
            "memory = \"1G\": no huge pages left: 512 of 2 MiB",
        ),
        (
            ZoneConfig {
                devices: Configs {
                    disk: vec![DiskConfig {
                        path: directory.into(),
                        ..machine.disk("x", 512)
                    }],
                    ..Configs::default()
                },
                ..good
            },
            "is a directory, expected a raw image",
        ),
    ];
    for (config, expected) in cases {
        let message = machine.registry.start(config).map(drop).unwrap_err().to_string();
        assert!(
            message.starts_with("z.toml: ") && message.contains(expected),
            "{message}\nshould say {expected}"
        );
        machine.assert_clean();
    }
}

#[test]
fn cpus_disks_and_names_are_not_shared() {
    let machine = Machine::new();
    let disk = machine.disk("d.img", 4096);
    let one = ZoneConfig {
        devices: Configs {
            disk: vec![disk.clone()],
            ..Configs::default()
        },
        cpus: Cpus::List(vec![3]),
        ..machine.config("one")
    };
    machine.registry.start(one.clone()).unwrap();
    let message = machine
        .registry
        .start(one.clone())
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(message.contains("zone one exists already"), "{message}");
    let two = ZoneConfig {
        name: "two".into(),
        devices: Configs {
            disk: Vec::new(),
            ..Configs::default()
        },
        ..one
    };
    let message = machine
        .registry
        .start(two.clone())
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(message.contains("CPU 3 is busy"), "{message}");
    let two = ZoneConfig {
        cpus: Cpus::List(vec![1]),
        devices: Configs {
            disk: vec![disk],
            ..Configs::default()
        },
        ..two
    };
    let message = machine
        .registry
        .start(two.clone())
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("disk[0].path") && message.contains("in use by another zone"),
        "{message}"
    );
    let two = ZoneConfig {
        devices: Configs {
            disk: Vec::new(),
            ..Configs::default()
        },
        ..two
    };
    machine.registry.start(two).unwrap();
    assert_eq!(machine.registry.list().len(), 2);
}

#[test]
fn a_device_reset_waits_for_the_daemon() {
    let machine = Machine::new();
    let disk = machine.disk("d.img", 4096);
    machine
        .registry
        .start(ZoneConfig {
            devices: Configs {
                disk: vec![disk],
                ..Configs::default()
            },
            ..machine.config("a")
        })
        .unwrap();
    machine.el2.guest_changes_device(1, 0, |device| {
        (device.reset_generation, device.reset_pending) = (1, 1)
    });
    until("reset", || machine.el2.device(1, 0).unwrap().reset_pending == 0);
    // The driver sets the queue up; a notification is then served and, with an empty ring, answered by
    // nothing.
    machine.el2.guest_changes_device(1, 0, |device| {
        device.status = 15;
        device.features = 1 << 32;
        let queue = &mut device.queue[0];
        (queue.size, queue.ready) = (16, 1);
        (queue.desc, queue.driver, queue.device) = (0x4040_0000, 0x4040_1000, 0x4040_2000);
    });
    let queues = || machine.registry.context().io.snapshots(1, 0);
    until("queue", || queues().first().is_some_and(|queue| queue.active));
    machine.el2.guest_notifies(1, 0, 0);
    machine.el2.guest_changes_device(1, 0, |device| {
        (device.reset_generation, device.reset_pending) = (2, 1)
    });
    until("second reset", || {
        machine.el2.device(1, 0).unwrap().reset_pending == 0
    });
    assert!(!queues()[0].active);
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn the_next_daemon_takes_zones_over() {
    let machine = Machine::new();
    let disk = DiskConfig {
        readonly: true,
        ..machine.disk("d.img", 4096)
    };
    machine
        .registry
        .start(ZoneConfig {
            devices: Configs {
                disk: vec![disk],
                ..Configs::default()
            },
            ..machine.config("a")
        })
        .unwrap();
    machine.el2.guest_prints(1, "before\n");
    let first = machine.registry.find("a").unwrap();
    until("output", || {
        first
            .console
            .read(0, Duration::ZERO)
            .is_some_and(|chunk| chunk.next == 7)
    });
    // The first daemon dies: its reactor ends, its zone threads hear no more.
    machine.registry.context().io.stop();
    machine.el2.guest_prints(1, "meanwhile\n");

    let next = {
        // A daemon with a disk lock of its own cannot live beside the first one in one process.
        fs::write(machine.path("records/half.json"), half_started(&machine)).unwrap();
        machine.host.set_online(1, false).unwrap();
        let config = Record::load_all(&machine.path("records")).unwrap();
        assert_eq!(config.len(), 2);
        let path = machine.path("records/a.json");
        let text = fs::read_to_string(&path).unwrap().replace("d.img", "copy.img");
        fs::copy(machine.path("d.img"), machine.path("copy.img")).unwrap();
        fs::write(path, text).unwrap();
        daemon(&machine.el2, &machine.host, machine.path("records"))
    };
    let zone = next.find("a").unwrap();
    until("running", || zone.status().state == Phase::Running);
    assert_eq!(zone.status().cpus, [2, 3]);
    // All that is still in the ring is read again: a doubled line is better than a lost one.
    until("output", || {
        zone.console
            .read(0, Duration::ZERO)
            .is_some_and(|chunk| chunk.next == 17)
    });
    // What was half started is gone.
    assert_eq!(machine.host.online(), [0, 1]);
    assert!(next.find("half").is_err());
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemOff);
    assert_eq!(zone.wait(), Ending::PoweredOff);
    machine.assert_clean();
}

/// Text of a console that has ended.
fn said(zone: &Shared) -> String {
    let mut said = Vec::new();
    let mut position = zone.console.start();
    while let Some(chunk) = zone.console.read(position, Duration::ZERO) {
        said.extend(chunk.bytes);
        position = chunk.next;
    }
    String::from_utf8(said).unwrap()
}

#[test]
fn the_next_daemon_knows_how_a_zone_ended() {
    let machine = Machine::new();
    let zone = machine.registry.start(machine.config("a")).unwrap();
    machine.el2.guest_prints(1, "last words\n");
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemOff);
    assert_eq!(zone.wait(), Ending::PoweredOff);
    machine.registry.context().io.stop();
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    let ended = next.find("a").unwrap();
    assert_eq!(
        (ended.wait(), ended.status().state),
        (Ending::PoweredOff, Phase::Stopped)
    );
    let text = said(&ended);
    assert!(
        text.contains("last words") && text.contains("powered off"),
        "{text}"
    );
    assert_eq!(text, said(&zone));
    machine.assert_clean();
    // Another zone of that name has its own end.
    next.start(machine.config("a")).unwrap();
    assert!(!machine.path("records/a.ended").exists());
    next.execute("a", Command::Stop).unwrap();
    assert_eq!(next.find("a").unwrap().wait(), Ending::Stopped);
}

/// A daemon that was killed after it had recorded the end, while it dismantled the zone.
#[test]
fn an_end_that_is_recorded_is_not_changed_by_what_is_still_there() {
    for el2_has_it in [true, false] {
        let machine = Machine::new();
        let zone = machine.registry.start(machine.config("a")).unwrap();
        let record = fs::read(machine.path("records/a.json")).unwrap();
        let restarts = zone.status().restarts;
        if !el2_has_it {
            machine.registry.execute("a", Command::Stop).unwrap();
        }
        machine.registry.context().io.stop();
        fs::write(machine.path("records/a.json"), record).unwrap();
        let ended = Ended::new(
            machine.config("a"),
            Ending::PoweredOff,
            restarts,
            zone.console.tail(),
        );
        ended.save(&machine.path("records")).unwrap();
        if !el2_has_it {
            for cpu in [2, 3] {
                machine.host.set_online(cpu, false).unwrap();
            }
        }
        let next = daemon(&machine.el2, &machine.host, machine.path("records"));
        assert_eq!(next.find("a").unwrap().wait(), Ending::PoweredOff, "{el2_has_it}");
        assert_eq!(machine.el2.zones(), [] as [u8; 0]);
        assert_eq!(machine.host.online(), [0, 1, 2, 3]);
    }
}

/// The record of a daemon that died after taking CPU 1 offline.
fn half_started(machine: &Machine) -> String {
    let record = Record {
        cpus: vec![1],
        ..Record::new(machine.config("half"))
    };
    serde_json::to_string(&record).unwrap()
}
