//! Kicks and maintenance interrupts are delayed: the other CPUs run with list registers that are out of date,
//! as on real machines. Whatever the order, no event is lost, none is delivered twice, and a device that
//! lowers its line in its handler is never served without cause.

extern crate std;
use super::property::count;
use super::{sgi_to, zone};
use crate::vgic::fake::{FakeCpu, SPURIOUS};
use crate::vgic::vmcr;
use crate::vgic::{Kicks, Vgic};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

const SGI: u32 = 3;
const EDGES: [u32; 3] = [40, 41, 42];
const LEVELS: [u32; 4] = [50, 51, 52, 53];
const TIMER: u32 = 27;

struct World {
    gic: Vgic,
    cpus: Vec<FakeCpu>,
    split_eoi: bool,
    /// Kicks sent and not yet received.
    kicks: Kicks,
    /// Events raised and handled, by CPU (SGIs) and INTID.
    raised: BTreeMap<(usize, u32), u32>,
    taken: BTreeMap<(usize, u32), u32>,
    /// Raised since it was last handled.
    owed: BTreeMap<(usize, u32), bool>,
    lines: BTreeMap<u32, bool>,
    timer_active: Vec<bool>,
    ended: Vec<Vec<u32>>,
    running: Vec<Vec<u32>>,
}

impl World {
    fn new(vcpus: usize, lrs: usize, split_eoi: bool) -> Self {
        let (mut gic, mut cpus) = zone(vcpus, lrs);
        for cpu in &mut cpus {
            let split = if split_eoi { vmcr::VEOIM } else { 0 };
            cpu.set_vmcr(vmcr::VENG0 | vmcr::VENG1 | split);
        }
        let _ = gic.dist_write(0xc08, 4, 0xaaaa_0000);
        for (n, intid) in EDGES.into_iter().chain(LEVELS).enumerate() {
            let _ = gic.dist_write(0x400 + intid, 1, 0x40 + 0x10 * n as u64);
            let _ = gic.dist_write(0x6000 + 8 * intid, 8, (n % vcpus) as u64);
        }
        Self {
            gic,
            cpus,
            split_eoi,
            kicks: Kicks::NONE,
            raised: BTreeMap::new(),
            taken: BTreeMap::new(),
            owed: BTreeMap::new(),
            lines: BTreeMap::new(),
            timer_active: std::vec![false; vcpus],
            ended: std::vec![Vec::new(); vcpus],
            running: std::vec![Vec::new(); vcpus],
        }
    }

    /// EL2 on `cpu` flushes its own list registers at once; the others are kicked.
    fn after(&mut self, cpu: usize, kicks: Kicks) {
        let more = if kicks.contains(cpu) {
            self.flush(cpu)
        } else {
            Kicks::NONE
        };
        self.kicks |= (kicks | more).without(cpu);
    }

    fn flush(&mut self, cpu: usize) -> Kicks {
        let kicks = self.cpus[cpu].with_shadow(|list| self.gic.flush(cpu, list));
        self.physical(cpu);
        kicks
    }

    fn sync(&mut self, cpu: usize) {
        let kicks = self.cpus[cpu].with_shadow(|list| self.gic.sync(cpu, list));
        self.physical(cpu);
        self.kicks |= kicks.without(cpu);
    }

    fn physical(&mut self, cpu: usize) {
        for intid in core::mem::take(&mut self.cpus[cpu].deactivated) {
            assert_eq!(intid, TIMER);
            assert!(
                core::mem::replace(&mut self.timer_active[cpu], false),
                "deactivated twice"
            );
        }
        let mut seen = Vec::new();
        for lr in self
            .cpus
            .iter()
            .flat_map(FakeCpu::valid)
            .filter(|lr| lr.intid() >= 32)
        {
            assert!(!seen.contains(&lr.intid()), "{lr:?} twice");
            seen.push(lr.intid());
        }
    }

    fn raise(&mut self, by: usize, cpu: usize, intid: u32) {
        *self.raised.entry((cpu, intid)).or_default() += 1;
        self.owed.insert((cpu, intid), true);
        let kicks = if intid == SGI {
            self.gic.send_sgi(by, &sgi_to(SGI, cpu as u32))
        } else {
            self.gic.set_line(intid, true) | self.gic.set_line(intid, false)
        };
        self.after(by, kicks);
    }

    fn take(&mut self, cpu: usize) -> bool {
        let intid = self.cpus[cpu].ack();
        self.physical(cpu);
        if intid == SPURIOUS {
            return false;
        }
        self.running[cpu].push(intid);
        if LEVELS.contains(&intid) {
            assert_eq!(
                self.lines.insert(intid, false),
                Some(true),
                "CPU {cpu} serves {intid} in vain"
            );
            let kicks = self.gic.set_line(intid, false);
            self.after(cpu, kicks);
        } else {
            let at = if intid < 32 { (cpu, intid) } else { (0, intid) };
            *self.taken.entry(at).or_default() += 1;
            assert!(
                self.taken[&at] <= self.raised[&at],
                "{intid} handled more often than raised"
            );
            self.owed.insert(at, false);
        }
        true
    }

    fn end(&mut self, cpu: usize) -> bool {
        let Some(intid) = self.running[cpu].pop() else {
            return false;
        };
        self.cpus[cpu].eoi(intid);
        if self.split_eoi {
            self.ended[cpu].push(intid);
        }
        self.physical(cpu);
        true
    }

    fn deactivate(&mut self, cpu: usize) -> bool {
        if self.ended[cpu].is_empty() {
            return false;
        }
        let intid = self.ended[cpu].remove(0);
        if !self.cpus[cpu].dir(intid) {
            let kicks = self.cpus[cpu].with_shadow(|list| self.gic.deactivate(cpu, intid, list));
            self.kicks |= kicks;
        }
        self.physical(cpu);
        true
    }

    /// A register write by `cpu`, as EL2 emulates it.
    fn write(&mut self, cpu: usize, offset: u32, width: u32, value: u64) {
        self.sync(cpu);
        let kicks = self.gic.dist_write(offset, width, value);
        self.after(cpu, kicks);
    }

    fn step(&mut self, [kind, a, b, c]: [u8; 4]) {
        let cpu = a as usize % self.cpus.len();
        let other = c as usize % self.cpus.len();
        let spis: Vec<u32> = EDGES.into_iter().chain(LEVELS).collect();
        let spi = spis[b as usize % spis.len()];
        match kind % 24 {
            0..6 => {
                self.take(cpu);
            }
            6..9 => {
                self.end(cpu);
            }
            9 | 10 => {
                self.deactivate(cpu);
            }
            11 => self.raise(cpu, other, SGI),
            12 | 13 => self.raise(cpu, 0, EDGES[b as usize % EDGES.len()]),
            14..17 => {
                // A completion: the device raises its line from any CPU.
                let intid = LEVELS[b as usize % LEVELS.len()];
                self.lines.insert(intid, true);
                let kicks = self.gic.set_line(intid, true);
                self.after(cpu, kicks);
            }
            17 if !self.timer_active[cpu] => {
                self.timer_active[cpu] = true;
                *self.raised.entry((cpu, TIMER)).or_default() += 1;
                self.owed.insert((cpu, TIMER), true);
                let kicks = self.gic.inject_physical(cpu, TIMER);
                self.after(cpu, kicks);
            }
            // The kick arrives.
            18 | 19 if self.kicks.contains(cpu) => {
                self.kicks = self.kicks.without(cpu);
                let kicks = self.flush(cpu);
                self.kicks |= kicks.without(cpu);
            }
            20 if self.cpus[cpu].maintenance() => self.sync(cpu),
            21 => self.write(cpu, if c & 1 != 0 { 0x104 } else { 0x184 }, 4, 1 << (spi % 32)),
            22 => self.write(cpu, 0x6000 + 8 * spi, 8, other as u64),
            23 => self.write(cpu, 0x400 + spi, 1, c.into()),
            _ => {}
        }
    }

    fn drain(&mut self) {
        self.write(0, 0x104, 4, 0xffff_ffff);
        for _ in 0..400 {
            let mut quiet = true;
            for cpu in 0..self.cpus.len() {
                if self.kicks.contains(cpu) {
                    self.kicks = self.kicks.without(cpu);
                    let kicks = self.flush(cpu);
                    self.kicks |= kicks.without(cpu);
                    quiet = false;
                }
                if self.cpus[cpu].maintenance() {
                    self.sync(cpu);
                    quiet = false;
                }
                while self.take(cpu) {
                    quiet = false;
                }
                if self.end(cpu) || self.deactivate(cpu) {
                    quiet = false;
                }
            }
            if quiet {
                break;
            }
        }
        assert!(self.kicks.is_empty());
        assert!(self.owed.values().all(|owed| !owed), "lost: {:?}", self.owed);
        assert!(
            self.lines.values().all(|line| !line),
            "not served: {:?}",
            self.lines
        );
        assert!(self.timer_active.iter().all(|active| !active));
        for cpu in 0..self.cpus.len() {
            self.sync(cpu);
            assert!(self.cpus[cpu].valid().is_empty());
            assert!(!self.cpus[cpu].maintenance());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: count(1000), failure_persistence: None, ..ProptestConfig::default() })]

    // torture a13
    #[test]
    #[cfg_attr(miri, ignore = "slow, and nothing here is unsafe")]
    fn late_kicks_lose_nothing(
        vcpus in 1usize..4,
        lrs in prop_oneof![Just(1usize), Just(2), Just(4)],
        split_eoi: bool,
        ops in prop::collection::vec(any::<[u8; 4]>(), 1..300),
    ) {
        let mut world = World::new(vcpus, lrs, split_eoi);
        for op in ops {
            world.step(op);
        }
        world.drain();
    }
}
