//! The architecture's interrupt state machine, eager and without list registers: the reference of the
//! property tests (IHI 0069, chapter 4, "Handling interrupts").

extern crate std;
use std::collections::BTreeMap;
use std::vec::Vec;

/// One interrupt.
#[derive(Clone, Copy, Default, Debug)]
pub struct Irq {
    pub enabled: bool,
    pub group1: bool,
    pub priority: u8,
    pub edge: bool,
    pub line: bool,
    /// Pending by an edge, software, or a physical interrupt.
    pub latch: bool,
    /// The latch was set by a physical interrupt, which must be active.
    pub phys_pending: bool,
    pub active: bool,
    /// The CPU that acknowledged it.
    pub holder: usize,
    pub router: u64,
}

impl Irq {
    pub fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

/// One CPU interface.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub online: bool,
    pub pmr: u8,
    /// Groups 0 and 1.
    pub groups: [bool; 2],
    /// Acknowledged and not ended: INTID and priority.
    pub running: Vec<(u32, u8)>,
    /// `EOImode` 1: ended and not deactivated.
    pub ended: Vec<u32>,
}

/// The whole GIC. Private interrupts are keyed by CPU, SPIs by CPU 0.
pub struct Reference {
    pub irqs: BTreeMap<(usize, u32), Irq>,
    pub cpus: Vec<Cpu>,
    pub groups: [bool; 2],
    pub fallback: bool,
}

pub fn key(cpu: usize, intid: u32) -> (usize, u32) {
    (if intid < 32 { cpu } else { 0 }, intid)
}

impl Reference {
    pub fn irq(&mut self, cpu: usize, intid: u32) -> &mut Irq {
        self.irqs.get_mut(&key(cpu, intid)).unwrap()
    }

    pub fn target(&self, cpu: usize, intid: u32) -> Option<usize> {
        if intid < 32 {
            return Some(cpu);
        }
        let router = self.irqs[&(0, intid)].router;
        let first_online = self.cpus.iter().position(|cpu| cpu.online);
        if router >> 31 & 1 != 0 {
            return first_online.or(Some(0));
        }
        let named = Some(router as usize).filter(|&cpu| cpu < self.cpus.len());
        match named {
            Some(cpu) if self.cpus[cpu].online || !self.fallback => Some(cpu),
            _ if self.fallback => first_online,
            _ => None,
        }
    }

    /// Returns the most urgent interrupts that `cpu` could acknowledge now, all of one priority.
    pub fn deliverable(&self, cpu: usize) -> Vec<u32> {
        let interface = &self.cpus[cpu];
        let candidates: Vec<(u8, u32)> = self
            .irqs
            .iter()
            .filter(|((owner, intid), irq)| {
                let group = usize::from(irq.group1);
                (*intid >= 32 || *owner == cpu)
                    && self.target(cpu, *intid) == Some(cpu)
                    && irq.pending()
                    && irq.enabled
                    && !irq.active
                    && self.groups[group]
                    && interface.groups[group]
            })
            .map(|((_, intid), irq)| (irq.priority, *intid))
            .collect();
        let running = interface.running.last().map_or(0xff, |(_, priority)| *priority);
        let Some(best) = candidates.iter().map(|(priority, _)| *priority).min() else {
            return Vec::new();
        };
        if best >= interface.pmr || best >= running {
            return Vec::new();
        }
        candidates
            .into_iter()
            .filter(|(priority, _)| *priority == best)
            .map(|(_, intid)| intid)
            .collect()
    }

    pub fn ack(&mut self, cpu: usize, intid: u32) {
        let irq = self.irq(cpu, intid);
        irq.active = true;
        irq.latch = false;
        irq.phys_pending = false;
        irq.holder = cpu;
        let priority = irq.priority;
        self.cpus[cpu].running.push((intid, priority));
    }

    /// Returns registers as a guest reads them: pending and active of 32 interrupts.
    pub fn words(&self, cpu: usize, index: u32) -> (u32, u32) {
        let mut words = (0, 0);
        for ((owner, intid), irq) in &self.irqs {
            if intid / 32 == index && (*owner == cpu || index > 0) {
                words.0 |= u32::from(irq.pending()) << (intid % 32);
                words.1 |= u32::from(irq.active) << (intid % 32);
            }
        }
        words
    }
}
