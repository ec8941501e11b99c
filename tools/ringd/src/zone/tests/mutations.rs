//! Random, mostly invalid zone descriptions: either the zone runs, or it is refused and nothing has changed.

use std::fs::{self, File};

use super::Machine;
use crate::config::{Cpus, ZoneConfig};
use crate::zone::Ending;
use crate::zone::actor::Command;

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one_of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize].clone()
    }
}

/// Returns a kernel whose arm64 header has arbitrary fields.
fn kernel(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; 64 + random.below(4096) as usize];
    bytes[56..60].copy_from_slice(b"ARM\x64");
    for field in [8, 16] {
        let value = random.one_of(&[
            0,
            0x8_0000,
            0x1_0000,
            1 << 20,
            1 << 30,
            1 << 63,
            u64::MAX,
            u64::MAX - 7,
        ]);
        bytes[field..field + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    if random.below(4) == 0 {
        bytes.truncate(random.below(64) as usize);
    }
    bytes
}

fn mutate(machine: &Machine, config: &mut ZoneConfig, random: &mut Random) {
    match random.below(10) {
        0 => config.cpus = Cpus::Count(random.one_of(&[0, 1, 3, 4, 17, u32::MAX])),
        1 => {
            let count = random.below(20);
            let list = (0..count).map(|_| random.one_of(&[0, 1, 2, 3, 4, 64, u32::MAX]));
            config.cpus = Cpus::List(list.collect());
        }
        2 => {
            let block = 2 << 20;
            config.memory = random.one_of(&[
                0,
                1,
                block,
                block + 1,
                128 << 20,
                1 << 40,
                1 << 63,
                u64::MAX - block + 1,
                u64::MAX,
            ]);
        }
        3 => {
            fs::write(machine.path("odd"), kernel(random)).unwrap();
            config.kernel = machine.path("odd");
        }
        4 => config.kernel = machine.path(random.one_of(&["none", "records", "", "Image/x"])),
        5 => {
            let file = File::create(machine.path("initrd")).unwrap();
            file.set_len(random.one_of(&[0, 1, 8 << 20, 16 << 20, 17 << 20]))
                .unwrap();
            config.initrd = Some(machine.path(random.one_of(&["initrd", "none", "records"])));
        }
        6 => {
            config.cmdline = random
                .one_of(&["", "a\0b", "\u{1f980}"])
                .repeat(random.below(3000) as usize)
        }
        7 => {
            config.name = random
                .one_of(&["", ".", "..", "a/b", "a\0", "a\nb", "CON", "a"])
                .repeat(1 + random.below(40) as usize)
        }
        8 => config.devices.spare_disks = random.one_of(&[1, 31, 32, 33, u32::MAX]),
        _ => {
            let size = random.one_of(&[0, 1, 511, 512, 4096]);
            for _ in 0..random.one_of(&[1, 2, 31, 33]) {
                let mut disk = machine.disk("disk", size);
                match random.below(4) {
                    0 => disk.path = machine.path(random.one_of(&["none", "records", "null:1", "zero:"])),
                    1 => disk.format = Some(ringblk::Format::Qcow2),
                    2 => disk.queues = random.one_of(&[None, Some(0), Some(2), Some(9), Some(u32::MAX)]),
                    _ => disk.readonly = true,
                }
                config.devices.disk.push(disk);
            }
        }
    }
}

// torture d2
#[test]
fn mutated_descriptions_run_or_change_nothing() {
    let rounds = std::env::var("ZONE_MUTATIONS")
        .ok()
        .and_then(|text| text.parse().ok());
    let machine = Machine::new();
    let mut random = Random(0x7276_0d02);
    let (mut ran, mut refused) = (0, 0);
    for _ in 0..rounds.unwrap_or(100) {
        let mut config = machine.config("a");
        for _ in 0..1 + random.below(3) {
            mutate(&machine, &mut config, &mut random);
        }
        let name = config.name.clone();
        match machine.registry.start(config) {
            Ok(zone) => {
                ran += 1;
                machine.registry.execute(&name, Command::Stop).unwrap();
                assert_eq!(zone.wait(), Ending::Stopped);
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
        machine.assert_clean();
    }
    assert!(ran > 10 && refused > 10, "{ran} ran, {refused} were refused");
}
