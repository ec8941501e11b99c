//! Random guests on the fake virtual CPU interface against the reference state machine: nothing lost, nothing
//! delivered twice, levels exact, the order of priorities kept, physical interrupts deactivated once each.

extern crate std;
use super::reference::{Cpu, Irq, Reference, key};
use super::sgi_to;
use crate::vgic::fake::{FakeCpu, SPURIOUS};
use crate::vgic::vmcr;
use crate::vgic::{Kicks, Vgic};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

/// Interrupts used: SGIs, a PPI with a line, a physical PPI, SPIs with lines, physical SPIs.
const SGIS: [u32; 3] = [0, 1, 15];
const PPI_LINE: u32 = 20;
const PPI_PHYSICAL: u32 = 27;
const SPIS: std::ops::Range<u32> = 40..52;
const SPIS_PHYSICAL: std::ops::Range<u32> = 62..66;

/// Parameters of one run.
#[derive(Clone, Debug)]
struct Case {
    vcpus: usize,
    lrs: usize,
    split_eoi: bool,
    /// As root's GIC: SPIs never wait for an offline CPU, and some are physical.
    fallback: bool,
    /// The guest writes `ISACTIVER` and `ICACTIVER`. Not with many interrupts active and `EOImode` 0: the
    /// architecture does not report to EL2 which interrupt without a list register was ended.
    touches_active: bool,
    /// CPUs go offline and online.
    hotplug: bool,
}

struct World {
    case: Case,
    gic: Vgic,
    cpus: Vec<FakeCpu>,
    reference: Reference,
    /// Physical interrupts that are active: acknowledged by EL2, not deactivated.
    physically_active: BTreeSet<(usize, u32)>,
    kicks: Kicks,
}

impl World {
    fn new(case: Case) -> Self {
        let affinities: Vec<u32> = (0..case.vcpus as u32).collect();
        let mut gic = Vgic::new(&affinities, 64).unwrap();
        gic.fallback = case.fallback;
        let mut cpus: Vec<FakeCpu> = (0..case.vcpus).map(|_| FakeCpu::new(case.lrs)).collect();
        let split = if case.split_eoi { vmcr::VEOIM } else { 0 };
        let mut irqs = BTreeMap::new();
        for (cpu, interface) in cpus.iter_mut().enumerate() {
            let _ = interface.with_shadow(|list| gic.unpark(cpu, list));
            interface.set_vmcr(vmcr::VENG0 | vmcr::VENG1 | split);
            for intid in SGIS.into_iter().chain([PPI_LINE, PPI_PHYSICAL]) {
                let edge = intid < 16;
                irqs.insert(
                    (cpu, intid),
                    Irq {
                        group1: true,
                        edge,
                        ..Irq::default()
                    },
                );
            }
        }
        for intid in SPIS.chain(SPIS_PHYSICAL.filter(|_| case.fallback)) {
            irqs.insert(
                (0, intid),
                Irq {
                    group1: true,
                    ..Irq::default()
                },
            );
        }
        let cpu = Cpu {
            online: true,
            pmr: 0xff,
            groups: [true; 2],
            running: Vec::new(),
            ended: Vec::new(),
        };
        let reference = Reference {
            irqs,
            cpus: std::vec![cpu; case.vcpus],
            groups: [false; 2],
            fallback: case.fallback,
        };
        let mut world = Self {
            case,
            gic,
            cpus,
            reference,
            physically_active: BTreeSet::new(),
            kicks: Kicks::NONE,
        };
        // Mostly enabled, so that interrupts are delivered.
        let all: Vec<(usize, u32)> = world.reference.irqs.keys().copied().collect();
        world.groups(3);
        for (n, (cpu, intid)) in all.into_iter().enumerate() {
            world.priority(cpu, intid, 0x40 + 8 * (n as u8 % 16));
            if n % 7 != 0 {
                world.enable(cpu, intid, true);
            }
        }
        world
    }

    fn write_bit(&mut self, cpu: usize, intid: u32, base: u32) -> Kicks {
        let (offset, bit) = (base + intid / 32 * 4, 1u64 << (intid % 32));
        if intid < 32 {
            self.gic.redist_write(cpu, 0x1_0000 + offset, 4, bit)
        } else {
            self.gic.dist_write(offset, 4, bit)
        }
    }

    fn enable(&mut self, cpu: usize, intid: u32, on: bool) {
        self.reference.irq(cpu, intid).enabled = on;
        let kicks = self.write_bit(cpu, intid, if on { 0x100 } else { 0x180 });
        self.kicks |= kicks;
    }

    fn priority(&mut self, cpu: usize, intid: u32, priority: u8) {
        let priority = priority & 0xf8;
        self.reference.irq(cpu, intid).priority = priority;
        self.kicks |= if intid < 32 {
            self.gic.redist_write(cpu, 0x1_0400 + intid, 1, priority.into())
        } else {
            self.gic.dist_write(0x400 + intid, 1, priority.into())
        };
    }

    fn groups(&mut self, value: u32) {
        self.reference.groups = [value & 1 != 0, value & 2 != 0];
        self.kicks |= self.gic.dist_write(0, 4, value.into());
    }

    fn line(&mut self, cpu: usize, intid: u32, high: bool) {
        let irq = self.reference.irq(cpu, intid);
        irq.latch |= irq.edge && high && !irq.line;
        irq.line = high;
        self.kicks |= if intid < 32 {
            self.gic.set_ppi_line(cpu, intid, high)
        } else {
            self.gic.set_line(intid, high)
        };
    }

    fn arrive(&mut self, cpu: usize, intid: u32) {
        let Some(cpu) = self.reference.target(cpu, intid) else {
            return;
        };
        if !self.reference.cpus[cpu].online || !self.physically_active.insert(key(cpu, intid)) {
            return;
        }
        let irq = self.reference.irq(cpu, intid);
        (irq.latch, irq.phys_pending) = (true, true);
        self.kicks |= self.gic.inject_physical(cpu, intid);
    }

    /// Collects the physical deactivations of every CPU: once each, and only of active interrupts.
    fn deactivated(&mut self) {
        for cpu in 0..self.cpus.len() {
            for intid in core::mem::take(&mut self.cpus[cpu].deactivated) {
                assert!(
                    self.physically_active.remove(&key(cpu, intid)),
                    "{intid} deactivated twice"
                );
            }
        }
    }

    /// Delivers kicks and maintenance interrupts until there is none.
    fn settle(&mut self) {
        for _ in 0..100 {
            let mut quiet = true;
            for cpu in 0..self.cpus.len() {
                if self.kicks.contains(cpu) {
                    assert!(
                        self.reference.cpus[cpu].online,
                        "kick for a CPU that is not there"
                    );
                    self.kicks = self.kicks.without(cpu)
                        | self.cpus[cpu].with_shadow(|list| self.gic.flush(cpu, list));
                    quiet = false;
                }
                if self.cpus[cpu].maintenance() {
                    self.kicks |= self.cpus[cpu].with_shadow(|list| self.gic.sync(cpu, list));
                    quiet = false;
                }
            }
            if quiet {
                self.deactivated();
                return self.check_places();
            }
        }
        panic!("a storm of maintenance interrupts");
    }

    /// Checks that no SPI is in the list registers of two CPUs, and that physical interrupts not yet
    /// acknowledged by root are still active.
    fn check_places(&self) {
        let mut seen = BTreeSet::new();
        for cpu in &self.cpus {
            for lr in cpu.valid().iter().filter(|lr| lr.intid() >= 32) {
                assert!(seen.insert(lr.intid()), "{lr:?} twice");
            }
        }
        for (&at, irq) in &self.reference.irqs {
            if irq.phys_pending {
                assert!(
                    self.physically_active.contains(&at),
                    "{at:?} was deactivated too early"
                );
            }
        }
    }

    fn check_registers(&mut self) {
        for cpu in 0..self.cpus.len() {
            if self.reference.cpus[cpu].online {
                self.kicks |= self.cpus[cpu].with_shadow(|list| self.gic.sync(cpu, list));
            }
        }
        self.settle();
        for index in 0..3 {
            for cpu in 0..if index == 0 { self.cpus.len() } else { 1 } {
                let (pending, active) = self.reference.words(cpu, index);
                let read = |gic: &mut Vgic, base: u32| match index {
                    0 => gic.redist_read(cpu, 0x1_0000 + base, 4) as u32,
                    _ => gic.dist_read(base + 4 * index, 4) as u32,
                };
                let found = (read(&mut self.gic, 0x200), read(&mut self.gic, 0x300));
                assert_eq!(
                    found,
                    (pending, active),
                    "pending, active of bank {index}, CPU {cpu}"
                );
            }
        }
        for at in &self.physically_active {
            let irq = &self.reference.irqs[at];
            assert!(irq.latch || irq.active, "{at:?} stays active physically");
        }
    }

    fn ack(&mut self, cpu: usize) -> u32 {
        let allowed = self.reference.deliverable(cpu);
        let intid = self.cpus[cpu].ack();
        if intid == SPURIOUS {
            assert!(
                allowed.is_empty(),
                "CPU {cpu} should acknowledge one of {allowed:?}"
            );
        } else {
            assert!(
                allowed.contains(&intid),
                "CPU {cpu} acknowledged {intid}, not one of {allowed:?}"
            );
            self.reference.ack(cpu, intid);
        }
        intid
    }

    /// The guest ends the interrupt that it acknowledged last.
    fn eoi(&mut self, cpu: usize) -> Option<u32> {
        let (intid, _) = self.reference.cpus[cpu].running.pop()?;
        self.cpus[cpu].eoi(intid);
        if self.case.split_eoi {
            self.reference.cpus[cpu].ended.push(intid);
        } else {
            self.reference.irq(cpu, intid).active = false;
        }
        Some(intid)
    }

    /// The guest deactivates one of those it has ended, with `EOImode` 1.
    fn dir(&mut self, cpu: usize, choice: usize) {
        let count = self.reference.cpus[cpu].ended.len();
        if count == 0 {
            return;
        }
        let intid = self.reference.cpus[cpu].ended.remove(choice % count);
        if !self.cpus[cpu].dir(intid) {
            self.kicks |= self.cpus[cpu].with_shadow(|list| self.gic.deactivate(cpu, intid, list));
        }
        self.reference.irq(cpu, intid).active = false;
    }

    fn set_pending(&mut self, cpu: usize, intid: u32, on: bool) {
        let irq = self.reference.irq(cpu, intid);
        irq.latch = on;
        irq.phys_pending &= on;
        let kicks = self.write_bit(cpu, intid, if on { 0x200 } else { 0x280 });
        self.kicks |= kicks;
    }

    fn set_active(&mut self, cpu: usize, intid: u32, on: bool) {
        if !self.case.touches_active {
            return;
        }
        let running = self
            .reference
            .cpus
            .iter()
            .any(|c| c.running.iter().any(|(running, _)| *running == intid) || c.ended.contains(&intid));
        // Acknowledged by a handler: cleared under it, it could be acknowledged a second time before it is
        // ended, and the end of the first would end the second. True on hardware, but not worth a reference.
        if running {
            return;
        }
        self.reference.irq(cpu, intid).active = on;
        let kicks = self.write_bit(cpu, intid, if on { 0x300 } else { 0x380 });
        self.kicks |= kicks;
    }

    fn park(&mut self, cpu: usize) {
        if !self.case.hotplug || self.case.touches_active {
            return;
        }
        if self.reference.cpus[cpu].online {
            if self.reference.cpus.iter().filter(|cpu| cpu.online).count() == 1 {
                return;
            }
            self.kicks |= self.cpus[cpu].with_shadow(|list| self.gic.park(cpu, list));
            self.kicks = self.kicks.without(cpu);
            self.reference.cpus[cpu].online = false;
            self.reference.cpus[cpu].running.clear();
            self.reference.cpus[cpu].ended.clear();
            self.cpus[cpu].running.clear();
            for ((owner, intid), irq) in &mut self.reference.irqs {
                if irq.active && irq.holder == cpu && (*intid >= 32 || *owner == cpu) {
                    irq.active = false;
                }
                if *owner == cpu && *intid == PPI_PHYSICAL && irq.phys_pending {
                    (irq.latch, irq.phys_pending) = (false, false);
                }
            }
        } else {
            self.reference.cpus[cpu].online = true;
            self.kicks |= self.cpus[cpu].with_shadow(|list| self.gic.unpark(cpu, list));
        }
    }

    /// One random step.
    fn step(&mut self, [kind, a, b, c]: [u8; 4]) {
        let cpu = a as usize % self.cpus.len();
        let online = self.reference.cpus[cpu].online;
        let all: Vec<(usize, u32)> = self.reference.irqs.keys().copied().collect();
        let (owner, intid) = all[b as usize % all.len()];
        let physical = intid == PPI_PHYSICAL || SPIS_PHYSICAL.contains(&intid);
        match kind % 32 {
            0..8 if online => {
                self.ack(cpu);
            }
            8..12 if online => {
                self.eoi(cpu);
            }
            12..14 if online => self.dir(cpu, c as usize),
            14..19 if physical => self.arrive(owner, intid),
            14..19 if intid < 16 => {
                self.reference.irq(owner, intid).latch = true;
                self.kicks |= self.gic.send_sgi(cpu, &sgi_to(intid, owner as u32));
            }
            14..19 => self.line(owner, intid, c & 1 != 0),
            19 => self.enable(owner, intid, c & 3 != 0),
            20 => self.priority(owner, intid, c),
            21 => self.set_pending(owner, intid, c & 1 != 0),
            22 => self.set_active(owner, intid, c & 1 != 0),
            23 if intid >= 32 => {
                let router = match c % 8 {
                    7 => 1 << 31,
                    6 => 0xff,
                    n => u64::from(n) % self.cpus.len() as u64,
                };
                self.reference.irq(0, intid).router = router;
                self.kicks |= self.gic.dist_write(0x6000 + 8 * intid, 8, router);
            }
            24 if intid >= 16 && !physical => {
                self.reference.irq(owner, intid).edge = c & 1 != 0;
                let offset = 0xc00 + intid / 16 * 4;
                let old = if intid < 32 {
                    self.gic.redist_read(owner, 0x1_0000 + offset, 4)
                } else {
                    self.gic.dist_read(offset, 4)
                };
                let shift = intid % 16 * 2 + 1;
                let value = old & !(1 << shift) | u64::from(c & 1) << shift;
                self.kicks |= if intid < 32 {
                    self.gic.redist_write(owner, 0x1_0000 + offset, 4, value)
                } else {
                    self.gic.dist_write(offset, 4, value)
                };
            }
            25 => {
                let group1 = c & 3 != 0;
                self.reference.irq(owner, intid).group1 = group1;
                let offset = 0x080 + intid / 32 * 4;
                let bit = 1 << (intid % 32);
                let set = |old: u64| if group1 { old | bit } else { old & !bit };
                self.kicks |= if intid < 32 {
                    let old = self.gic.redist_read(owner, 0x1_0000 + offset, 4);
                    self.gic.redist_write(owner, 0x1_0000 + offset, 4, set(old))
                } else {
                    let old = self.gic.dist_read(offset, 4);
                    self.gic.dist_write(offset, 4, set(old))
                };
            }
            26 => self.groups(if c & 1 != 0 { 3 } else { u32::from(c >> 1) & 3 }),
            27 if online => {
                let groups = if c & 1 != 0 {
                    [true; 2]
                } else {
                    [c & 2 != 0, c & 4 != 0]
                };
                self.reference.cpus[cpu].groups = groups;
                let split = if self.case.split_eoi { vmcr::VEOIM } else { 0 };
                self.cpus[cpu].set_vmcr(u64::from(groups[0]) | u64::from(groups[1]) << 1 | split);
            }
            28 if online => {
                let pmr = if c & 1 != 0 { 0xff } else { c };
                self.reference.cpus[cpu].pmr = pmr;
                self.cpus[cpu].pmr = pmr;
            }
            29 => self.park(cpu),
            30 => self.check_registers(),
            _ => {}
        }
    }

    /// The guest enables everything and handles all interrupts; then none is left in any list register or
    /// ready set.
    fn drain(&mut self) {
        for cpu in 0..self.cpus.len() {
            if !self.reference.cpus[cpu].online {
                self.park(cpu);
            }
            self.reference.cpus[cpu].pmr = 0xff;
            self.cpus[cpu].pmr = 0xff;
            self.step([27, cpu as u8, 0, 1]);
        }
        self.groups(3);
        let all: Vec<(usize, u32)> = self.reference.irqs.keys().copied().collect();
        for &(owner, intid) in &all {
            self.enable(owner, intid, true);
            if !SGIS.contains(&intid) && intid != PPI_PHYSICAL && !SPIS_PHYSICAL.contains(&intid) {
                self.line(owner, intid, false);
            }
            if intid >= 32 {
                self.reference.irq(0, intid).router = 0;
                self.kicks |= self.gic.dist_write(0x6000 + 8 * intid, 8, 0);
            }
        }
        self.settle();
        // Twice: what was pending on a CPU that went offline is delivered on the CPU it moved to.
        for _ in 0..2 {
            for cpu in 0..self.cpus.len() {
                while self.eoi(cpu).is_some() {
                    self.settle();
                }
                while !self.reference.cpus[cpu].ended.is_empty() {
                    self.dir(cpu, 0);
                    self.settle();
                }
            }
            for &(owner, intid) in &all {
                // Interrupts made active by a register write.
                if self.reference.irq(owner, intid).active {
                    self.set_active(owner, intid, false);
                }
            }
            self.settle();
            for cpu in 0..self.cpus.len() {
                for _ in 0..200 {
                    if self.ack(cpu) == SPURIOUS {
                        break;
                    }
                    self.settle();
                    self.eoi(cpu);
                    self.settle();
                    self.dir(cpu, 0);
                    self.settle();
                }
            }
        }
        self.check_registers();
        assert!(self.physically_active.is_empty());
        for cpu in 0..self.cpus.len() {
            self.kicks |= self.cpus[cpu].with_shadow(|list| self.gic.sync(cpu, list));
            assert!(self.cpus[cpu].valid().is_empty());
        }
        for irq in self.reference.irqs.values() {
            assert!(!irq.active && !irq.pending(), "{irq:?}");
        }
    }
}

/// Returns the number of cases: `usual`, or `PROPTEST_CASES`.
pub fn count(usual: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|count| count.parse().ok());
    asked.unwrap_or(usual)
}

fn cases() -> impl Strategy<Value = Case> {
    (
        1usize..4,
        prop_oneof![Just(1usize), Just(2), Just(4), Just(16)],
        any::<[bool; 4]>(),
    )
        .prop_map(
            |(vcpus, lrs, [split_eoi, fallback, touches_active, hotplug])| Case {
                vcpus,
                lrs,
                split_eoi,
                fallback,
                touches_active: touches_active && (split_eoi || lrs == 16),
                hotplug,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: count(1500), failure_persistence: None, ..ProptestConfig::default() })]

    // torture a13, d6
    #[test]
    #[cfg_attr(miri, ignore = "slow, and nothing here is unsafe")]
    fn equals_the_architecture(case in cases(), ops in prop::collection::vec(any::<[u8; 4]>(), 1..300)) {
        let mut world = World::new(case);
        world.settle();
        for op in ops {
            world.step(op);
            world.settle();
        }
        world.drain();
    }
}
