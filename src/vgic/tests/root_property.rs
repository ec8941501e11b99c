//! Random root kernels on a physical GIC that runs its state machine, against the reference: root observes
//! what it would observe without EL2, except for interrupts whose cause ends after EL2 acknowledged them,
//! which may still be delivered.

extern crate std;
use super::machine::Machine;
use super::property::count;
use super::reference::{Cpu, Irq, Reference, key};
use super::sgi_to;
use crate::vgic::Kicks;
use crate::vgic::fake::{FakeCpu, SPURIOUS};
use crate::vgic::{PhysicalGic, RootConfig, RootGic, vmcr};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

const SGIS: [u32; 2] = [1, 14];
const PPIS: [u32; 2] = [27, 30];
const SPIS: std::ops::Range<u32> = 33..40;
const SOFT: u32 = 50;
/// EL2's own: root's writes must not reach them.
const RESERVED: [u32; 5] = [25, 26, 28, 41, 60];

#[derive(Clone, Debug)]
struct Case {
    cpus: usize,
    lrs: usize,
    split_eoi: bool,
    touches_active: bool,
    hotplug: bool,
}

struct World {
    case: Case,
    root: RootGic,
    machine: Machine,
    cpus: Vec<FakeCpu>,
    reference: Reference,
    /// Interrupts EL2 may deliver although they are not pending any more, or once more than needed.
    excused: BTreeSet<(usize, u32)>,
    kicks: Kicks,
}

impl World {
    fn new(case: Case) -> Self {
        let affinities: Vec<u32> = (0..case.cpus as u32).collect();
        let mut machine = Machine::new(case.cpus);
        for cpu in 0..case.cpus {
            machine.redist_write32(cpu, 0x1_0100, 1 << 25 | 1 << 7);
        }
        machine.dist_write32(0x104, 1 << (41 - 32));
        let config = RootConfig {
            affinities: &affinities,
            reserved: &RESERVED,
            soft: &[SOFT],
        };
        let mut root = RootGic::new(&config, &mut machine).unwrap();
        let mut cpus: Vec<FakeCpu> = (0..case.cpus).map(|_| FakeCpu::new(case.lrs)).collect();
        let split = if case.split_eoi { vmcr::VEOIM } else { 0 };
        let mut irqs = BTreeMap::new();
        let irq = Irq {
            group1: true,
            ..Irq::default()
        };
        for (cpu, interface) in cpus.iter_mut().enumerate() {
            let _ = interface.with_shadow(|list| root.unpark(cpu, list, &mut machine));
            interface.set_vmcr(vmcr::VENG0 | vmcr::VENG1 | split);
            irqs.extend(SGIS.map(|intid| ((cpu, intid), Irq { edge: true, ..irq })));
            irqs.extend(PPIS.map(|intid| ((cpu, intid), irq)));
        }
        irqs.extend(SPIS.chain([SOFT]).map(|intid| ((0, intid), irq)));
        let cpu = Cpu {
            online: true,
            pmr: 0xff,
            groups: [true; 2],
            running: Vec::new(),
            ended: Vec::new(),
        };
        let reference = Reference {
            irqs,
            cpus: std::vec![cpu; case.cpus],
            groups: [true; 2],
            fallback: true,
        };
        let kicks = root.dist_write(0, 4, 3, &mut machine);
        let mut world = Self {
            case,
            root,
            machine,
            cpus,
            reference,
            excused: BTreeSet::new(),
            kicks,
        };
        let all: Vec<(usize, u32)> = world.reference.irqs.keys().copied().collect();
        for (n, (cpu, intid)) in all.into_iter().enumerate() {
            world.priority(cpu, intid, 0x40 + 8 * (n as u8 % 16));
            world.enable(cpu, intid, n % 7 != 0);
        }
        world
    }

    fn write(&mut self, cpu: usize, intid: u32, offset: u32, width: u32, value: u64) {
        let kicks = if intid < 32 {
            self.root
                .redist_write(cpu, 0x1_0000 + offset, width, value, &mut self.machine)
        } else {
            self.root.dist_write(offset, width, value, &mut self.machine)
        };
        self.kicks |= kicks;
    }

    /// Writes the bit of an interrupt, and sometimes those of EL2's interrupts along with it.
    fn write_bit(&mut self, cpu: usize, intid: u32, base: u32) {
        let reserved = RESERVED.iter().filter(|&&other| other / 32 == intid / 32);
        let bits = reserved.fold(1 << (intid % 32), |bits, &other| bits | 1u64 << (other % 32));
        self.write(cpu, intid, base + intid / 32 * 4, 4, bits);
    }

    fn enable(&mut self, cpu: usize, intid: u32, on: bool) {
        self.reference.irq(cpu, intid).enabled = on;
        self.write_bit(cpu, intid, if on { 0x100 } else { 0x180 });
    }

    fn priority(&mut self, cpu: usize, intid: u32, priority: u8) {
        self.reference.irq(cpu, intid).priority = priority & 0xf8;
        self.write(cpu, intid, 0x400 + intid, 1, priority.into());
    }

    /// Returns whether EL2 has acknowledged the interrupt for root, and root has not yet.
    fn held(&mut self, cpu: usize, intid: u32) -> bool {
        self.machine.is_active(cpu, intid) && !self.reference.irq(cpu, intid).active
    }

    fn line(&mut self, cpu: usize, intid: u32, high: bool) {
        if self.held(cpu, intid) {
            self.excused.insert(key(cpu, intid));
        }
        let irq = self.reference.irq(cpu, intid);
        irq.latch |= irq.edge && high && !irq.line;
        irq.line = high;
        if intid == SOFT {
            self.kicks |= self.root.set_line(intid, high);
        } else {
            self.machine.set_line(cpu, intid, high);
        }
    }

    fn set_pending(&mut self, cpu: usize, intid: u32, on: bool) {
        if self.held(cpu, intid) && on {
            self.excused.insert(key(cpu, intid));
        }
        if !on {
            self.excused.remove(&key(cpu, intid));
        }
        self.reference.irq(cpu, intid).latch = on;
        self.write_bit(cpu, intid, if on { 0x200 } else { 0x280 });
    }

    fn set_active(&mut self, cpu: usize, intid: u32, on: bool) {
        let taken = self
            .reference
            .cpus
            .iter()
            .any(|c| c.running.iter().any(|(running, _)| *running == intid) || c.ended.contains(&intid));
        if !self.case.touches_active || taken || self.held(cpu, intid) {
            return;
        }
        self.reference.irq(cpu, intid).active = on;
        self.write_bit(cpu, intid, if on { 0x300 } else { 0x380 });
    }

    fn deactivated(&mut self) {
        for cpu in 0..self.cpus.len() {
            for intid in core::mem::take(&mut self.cpus[cpu].deactivated) {
                self.machine.deactivate(cpu, intid);
            }
        }
    }

    /// Physical interrupts, kicks and maintenance interrupts, until there is none.
    fn settle(&mut self) {
        for _ in 0..200 {
            let mut quiet = true;
            self.deactivated();
            for cpu in 0..self.cpus.len() {
                if self.reference.cpus[cpu].online {
                    while let Some(intid) = self.machine.ack(cpu) {
                        let (kicks, taken) = self.root.inject_physical(cpu, intid);
                        assert!(taken || intid == 41 || intid == 25 || intid == 7);
                        self.kicks |= kicks;
                        quiet = false;
                    }
                }
                if self.kicks.contains(cpu) {
                    assert!(
                        self.reference.cpus[cpu].online,
                        "kick for a CPU that is not there"
                    );
                    self.kicks = self.kicks.without(cpu)
                        | self.cpus[cpu].with_shadow(|list| self.root.flush(cpu, list));
                    quiet = false;
                }
                if self.cpus[cpu].maintenance() {
                    self.sync(cpu);
                    quiet = false;
                }
            }
            if quiet {
                return;
            }
        }
        panic!("it does not settle");
    }

    fn sync(&mut self, cpu: usize) {
        // The lines of PPIs as EL2 sees them.
        self.cpus[cpu].low = PPIS
            .into_iter()
            .filter(|intid| self.machine.banks[cpu].line >> intid & 1 == 0)
            .collect();
        self.kicks |= self.cpus[cpu].with_shadow(|list| self.root.sync(cpu, list));
        for intid in PPIS {
            // Acknowledged for a level that has dropped, though software had set it pending, too.
            let irq = self.reference.irq(cpu, intid);
            if !irq.line && !irq.edge && irq.latch {
                self.excused.insert((cpu, intid));
                irq.latch = false;
            }
        }
    }

    fn ack(&mut self, cpu: usize) -> u32 {
        let allowed = self.reference.deliverable(cpu);
        let intid = self.cpus[cpu].ack();
        if intid == SPURIOUS {
            let missed: Vec<&u32> = allowed
                .iter()
                .filter(|&&intid| !self.excused.contains(&key(cpu, intid)))
                .collect();
            assert!(
                missed.is_empty(),
                "CPU {cpu} should acknowledge one of {missed:?}"
            );
            return intid;
        }
        let urgent = allowed
            .first()
            .map(|&other| self.reference.irq(cpu, other).priority);
        let priority = self.reference.irq(cpu, intid).priority;
        if !allowed.contains(&intid) {
            assert!(
                self.excused.contains(&key(cpu, intid)),
                "CPU {cpu} acknowledged {intid}, not one of {allowed:?}"
            );
            assert!(
                !self.reference.irq(cpu, intid).active,
                "{intid} acknowledged twice"
            );
            assert!(urgent.is_none_or(|urgent| priority <= urgent));
        }
        self.reference.ack(cpu, intid);
        // A further edge or software's bit may be pending physically.
        let bank = self.machine.bank_of(cpu, intid);
        if bank.latch >> (intid % 32) & 1 == 0 {
            self.excused.remove(&key(cpu, intid));
        }
        intid
    }

    fn eoi(&mut self, cpu: usize) -> bool {
        let Some((intid, _)) = self.reference.cpus[cpu].running.pop() else {
            return false;
        };
        self.cpus[cpu].eoi(intid);
        if self.case.split_eoi {
            self.reference.cpus[cpu].ended.push(intid);
        } else {
            self.reference.irq(cpu, intid).active = false;
        }
        true
    }

    fn dir(&mut self, cpu: usize, choice: usize) -> bool {
        let count = self.reference.cpus[cpu].ended.len();
        if count == 0 {
            return false;
        }
        let intid = self.reference.cpus[cpu].ended.remove(choice % count);
        if !self.cpus[cpu].dir(intid) {
            self.sync(cpu);
            self.kicks |= self.cpus[cpu].with_shadow(|list| self.root.deactivate(cpu, intid, list));
        }
        self.reference.irq(cpu, intid).active = false;
        true
    }

    fn park(&mut self, cpu: usize) {
        if !self.case.hotplug || self.case.touches_active {
            return;
        }
        if !self.reference.cpus[cpu].online {
            self.reference.cpus[cpu].online = true;
            self.kicks |= self.cpus[cpu].with_shadow(|list| self.root.unpark(cpu, list, &mut self.machine));
            return;
        }
        if self.reference.cpus.iter().filter(|cpu| cpu.online).count() == 1 {
            return;
        }
        self.sync(cpu);
        self.settle();
        for ((owner, intid), irq) in &mut self.reference.irqs {
            let mine = *owner == cpu || *intid >= 32;
            if irq.active && irq.holder == cpu && mine {
                irq.active = false;
            } else if *owner == cpu && PPIS.contains(intid) && self.machine.is_active(cpu, *intid) {
                // Returned to the hardware: pending if its line is high, or was made pending once more.
                irq.latch = self.machine.banks[cpu].latch >> intid & 1 != 0;
                self.excused.remove(&(cpu, *intid));
            }
        }
        self.kicks |= self.cpus[cpu].with_shadow(|list| self.root.park(cpu, list, &mut self.machine));
        self.kicks = self.kicks.without(cpu);
        let gone = &mut self.reference.cpus[cpu];
        gone.online = false;
        gone.running.clear();
        gone.ended.clear();
        self.cpus[cpu].running.clear();
        self.deactivated();
        assert_eq!(self.machine.banks[cpu].active & !(1 << 25 | 1 << 7), 0);
        for intid in SPIS {
            assert_ne!(self.machine.routes[&intid], cpu as u64);
        }
    }

    fn check(&mut self) {
        for cpu in 0..self.cpus.len() {
            if self.reference.cpus[cpu].online {
                self.sync(cpu);
            }
        }
        self.settle();
        for cpu in 0..self.cpus.len() {
            for index in 0..2u32 {
                if !self.reference.cpus[cpu].online || index == 1 && cpu != 0 {
                    continue;
                }
                let excused = self
                    .excused
                    .iter()
                    .filter(|(owner, intid)| intid / 32 == index && (*owner == cpu || index == 1));
                let mask = !excused.fold(0, |mask, (_, intid)| mask | 1u32 << (intid % 32));
                let (pending, active) = self.reference.words(cpu, index);
                let mut read = |base: u32| match index {
                    0 => self.root.redist_read(cpu, 0x1_0000 + base, 4, &mut self.machine) as u32,
                    _ => self.root.dist_read(base + 4, 4, &mut self.machine) as u32,
                };
                assert_eq!(
                    read(0x200) & mask,
                    pending & mask,
                    "pending, bank {index}, CPU {cpu}"
                );
                assert_eq!(
                    read(0x300) & mask,
                    active & mask,
                    "active, bank {index}, CPU {cpu}"
                );
            }
        }
        // Physical enables follow root's, and EL2's are as they were.
        for (&(cpu, intid), irq) in &self.reference.irqs {
            let physical = SPIS.contains(&intid) || PPIS.contains(&intid) && self.reference.cpus[cpu].online;
            if physical {
                let bank = self.machine.bank_of(cpu, intid);
                assert_eq!(bank.enabled >> (intid % 32) & 1 != 0, irq.enabled, "{intid}");
            }
        }
        for cpu in 0..self.cpus.len() {
            let bank = &self.machine.banks[cpu];
            assert_eq!(bank.enabled & !(1 << 27 | 1 << 30), 1 << 25 | 1 << 7);
            assert_eq!((bank.pending_only_of_el2(), bank.active & 1 << 25), (0, 0));
        }
        assert_eq!(self.machine.bank_of(0, 41).enabled >> (41 - 32) & 1, 1);
    }

    fn step(&mut self, [kind, a, b, c]: [u8; 4]) {
        let cpu = a as usize % self.cpus.len();
        let online = self.reference.cpus[cpu].online;
        let all: Vec<(usize, u32)> = self.reference.irqs.keys().copied().collect();
        let (owner, intid) = all[b as usize % all.len()];
        let reachable = intid >= 32 || self.reference.cpus[owner].online;
        match kind % 32 {
            0..8 if online => {
                self.ack(cpu);
            }
            8..12 if online => {
                self.eoi(cpu);
            }
            12..14 if online => {
                self.dir(cpu, c as usize);
            }
            14..20 if intid < 16 && !online => {}
            14..20 if intid < 16 => {
                self.reference.irq(owner, intid).latch = true;
                self.kicks |= self.root.send_sgi(cpu, &sgi_to(intid, owner as u32));
            }
            14..20 => self.line(owner, intid, c & 1 != 0),
            20 if reachable => self.enable(owner, intid, c & 3 != 0),
            21 if reachable => self.priority(owner, intid, c),
            22 if reachable => self.set_pending(owner, intid, c & 1 != 0),
            23 if reachable => self.set_active(owner, intid, c & 1 != 0),
            24 if intid >= 32 => {
                let router = match c % 8 {
                    7 => 1 << 31,
                    6 => 0xff,
                    n => u64::from(n) % self.cpus.len() as u64,
                };
                self.reference.irq(0, intid).router = router;
                self.write(0, intid, 0x6000 + 8 * intid, 8, router);
            }
            25 => {
                self.reference.groups = [c & 2 != 0, c & 1 != 0];
                let value = u64::from(c & 2 != 0) | u64::from(c & 1 != 0) << 1;
                self.kicks |= self.root.dist_write(0, 4, value, &mut self.machine);
            }
            26 if SPIS.contains(&intid) && !self.held(0, intid) => {
                let config = c & 1 != 0;
                self.reference.irq(0, intid).edge = config;
                let offset = 0xc00 + intid / 16 * 4;
                let old = self.root.dist_read(offset, 4, &mut self.machine);
                let shift = intid % 16 * 2 + 1;
                self.write(
                    0,
                    intid,
                    offset,
                    4,
                    old & !(1 << shift) | u64::from(config) << shift,
                );
            }
            27 => self.park(cpu),
            28 => self.check(),
            _ => {}
        }
    }

    fn drain(&mut self) {
        for cpu in 0..self.cpus.len() {
            if !self.reference.cpus[cpu].online {
                self.park(cpu);
            }
        }
        self.step([25, 0, 0, 3]);
        let all: Vec<(usize, u32)> = self.reference.irqs.keys().copied().collect();
        for &(cpu, intid) in &all {
            self.enable(cpu, intid, true);
            if intid >= 16 {
                self.line(cpu, intid, false);
            }
            self.set_active(cpu, intid, false);
        }
        self.settle();
        for _ in 0..3 {
            for cpu in 0..self.cpus.len() {
                loop {
                    let taken = self.ack(cpu) != SPURIOUS;
                    self.settle();
                    let ended = self.eoi(cpu);
                    self.settle();
                    let done = self.dir(cpu, 0);
                    self.settle();
                    if !(taken || ended || done) {
                        break;
                    }
                }
            }
            for &(cpu, intid) in &all {
                if self.reference.irq(cpu, intid).active {
                    self.set_active(cpu, intid, false);
                }
            }
            self.settle();
        }
        self.check();
        for bank in &self.machine.banks {
            assert_eq!(bank.active & !(1 << 25), 0, "nothing stays active physically");
        }
        for cpu in &self.cpus {
            assert!(cpu.find(SOFT).is_none());
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    (
        1usize..4,
        prop_oneof![Just(1usize), Just(2), Just(4), Just(16)],
        any::<[bool; 3]>(),
    )
        .prop_map(|(cpus, lrs, [split_eoi, touches_active, hotplug])| Case {
            cpus,
            lrs,
            split_eoi,
            touches_active: touches_active && (split_eoi || lrs == 16),
            hotplug,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: count(400), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "slow, and nothing here is unsafe")]
    fn root_sees_the_machine(case in cases(), ops in prop::collection::vec(any::<[u8; 4]>(), 1..300)) {
        let mut world = World::new(case);
        world.settle();
        for op in ops {
            world.step(op);
            world.settle();
        }
        world.drain();
    }
}
