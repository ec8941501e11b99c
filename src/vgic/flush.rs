//! Keeping the list registers of a virtual CPU and the state of its interrupts in agreement. Everything here, in `fill`
//! and in `park` runs on the physical CPU whose list registers it touches, with its guest stopped at EL2.
//!
//! One pass (`service`) does, in this order: fold what the guest did to each list register back (acknowledged, ended),
//! write into it what happened to its interrupt meanwhile (raised again, line dropped, disabled, moved), then fill free
//! list registers by priority, and last choose the maintenance interrupts (`fill`).

use super::bank::{Bank, bits, split};
use super::fill::Class;
use super::lr::{ListRegisters, Lr, hcr, vmcr};
use super::{Kicks, NONE, Slot, VCpu, Vgic};

impl Vgic {
    /// Brings the list registers up to date if anything changed. EL2 calls it after a change that kicked `vcpu`.
    pub fn flush(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        match self.vcpus.get(vcpu) {
            Some(cpu) if cpu.dirty => self.service(vcpu, lrs),
            _ => Kicks::NONE,
        }
    }

    /// Takes over what the guest did since the last look, and flushes. EL2 calls it on a maintenance interrupt and
    /// before it emulates an access to the distributor or a redistributor.
    pub fn sync(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let kicks = self.resample(vcpu, lrs);
        kicks.without(vcpu) | self.service(vcpu, lrs)
    }

    /// Physical PPIs that arrived, whose line has dropped before the guest took them, are not pending any more: a guest
    /// that polls its timer sees it go.
    fn resample(&mut self, vcpu: usize, lrs: &impl ListRegisters) -> Kicks {
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return Kicks::NONE;
        };
        let (private, used) = (&mut cpu.private, cpu.used);
        let gone = bits(private.arrived & !private.edge & !private.resident)
            .filter(|&intid| !lrs.line(intid))
            .fold(0, |mask, intid| mask | 1 << intid);
        private.latch &= !gone;
        private.arrived &= !gone;
        for i in bits(used) {
            if let Some(slot) = cpu.slots.get_mut(i as usize)
                && slot.live_pending
                && slot.intid < 32
                && cpu.private.edge & 1 << slot.intid == 0
                && !lrs.line(slot.intid)
            {
                slot.drop_pending = true;
            }
        }
        self.refresh_bank(vcpu, 0, gone)
    }

    /// Executes a trapped write of `intid` to `ICC_DIR_EL1` by `vcpu`.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = self.sync(vcpu, lrs);
        let (index, mask) = split(intid);
        if self.bank(vcpu, index).is_some_and(|bank| bank.active & mask != 0) {
            kicks |= self.clear_active(vcpu, index, mask);
            kicks |= self.flush(vcpu, lrs);
        }
        kicks.without(vcpu)
    }

    pub(super) fn service(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = Kicks::NONE;
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return kicks;
        };
        if cpu.evicted {
            kicks |= self.count_ends(vcpu, lrs);
        }
        let used = self.vcpus.get(vcpu).map_or(0, |cpu| cpu.used);
        for i in bits(used) {
            kicks |= self.reconcile(vcpu, i as usize, lrs);
        }
        kicks |= self.fill(vcpu, lrs);
        self.choose_maintenance(vcpu, lrs);
        for cpu in &mut self.vcpus {
            cpu.awaits = cpu.awaits.without(vcpu);
        }
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.dirty = false;
        }
        kicks.without(vcpu)
    }

    /// Deactivates as many active interrupts without a list register as the guest ended.
    fn count_ends(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = Kicks::NONE;
        let ended = hcr::eoi_count(lrs.hcr());
        if ended == 0 {
            return kicks;
        }
        // Setting it again clears the count.
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.hcr = 0;
        }
        if lrs.vmcr() & vmcr::VEOIM != 0 {
            return kicks;
        }
        for _ in 0..ended {
            let Some(rank) = self.best(vcpu, 0, |class| class == Class::Active) else {
                break;
            };
            let (index, mask) = split(rank.intid);
            kicks |= self.clear_active(vcpu, index, mask);
        }
        kicks
    }

    /// Folds one list register back and rewrites it as the interrupt's state now wants it.
    fn reconcile(&mut self, vcpu: usize, i: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let groups = self.groups;
        let Some(mut slot) = self.vcpus.get(vcpu).and_then(|cpu| cpu.slots.get(i)).copied() else {
            return Kicks::NONE;
        };
        let intid = slot.intid;
        let (index, mask) = split(intid);
        let here = self.target(vcpu, intid) == vcpu;
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return Kicks::NONE;
        };
        let lr = Lr(lrs.read(i));

        // What the guest did at the CPU interface: ended it, ...
        if slot.live_active && !lr.active() || slot.live_pending && lr.inactive() {
            if !lr.hw() {
                lrs.deactivate(intid);
            }
            bank.live &= !mask;
            (slot.live_active, slot.live_pending) = (false, false);
        }
        // ... or acknowledged it.
        slot.live_active |= slot.live_pending && !lr.pending();
        slot.live_pending &= lr.pending();
        slot.latched &= lr.pending();

        // What its writes to the registers ask for.
        if slot.drop_pending && slot.live_pending || slot.drop_active && slot.live_active {
            lrs.deactivate(intid);
            bank.live &= !mask;
            (slot.live_active, slot.live_pending) = (false, false);
        }
        slot.latched &= !slot.drop_pending;
        let pending = lr.pending() && !slot.drop_pending;
        let active = lr.active() && !slot.drop_active || slot.set_active;
        (slot.drop_pending, slot.drop_active, slot.set_active) = (false, false, false);
        if lr.active() {
            bank.activate(intid % 32, lr.priority(), lr.group1());
        }
        bank.active = bank.active & !mask | if active { mask } else { 0 };
        if !pending && !active {
            return self.free(vcpu, i, lr, lrs);
        }

        // What happened to it meanwhile.
        let wish = wish(bank, &mut slot, groups, here);
        if let Some(place) = self.vcpus.get_mut(vcpu).and_then(|cpu| cpu.slots.get_mut(i)) {
            *place = slot;
        }
        if wish.inactive() {
            self.unload(vcpu, i, lrs);
            return self.refresh(vcpu, intid);
        }
        if wish != lr {
            lrs.write(i, wish.0);
        }
        Kicks::NONE
    }

    /// The interrupt in a list register is done.
    fn free(&mut self, vcpu: usize, i: usize, lr: Lr, lrs: &mut impl ListRegisters) -> Kicks {
        if !lr.inactive() || lr.eoi() {
            lrs.write(i, 0);
        }
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return Kicks::NONE;
        };
        cpu.used &= !(1 << i);
        let Some(intid) = cpu.slots.get(i).map(|slot| slot.intid) else {
            return Kicks::NONE;
        };
        let (index, mask) = split(intid);
        if let Some(bank) = self.bank_mut(vcpu, index) {
            bank.resident &= !mask;
            bank.active &= !mask;
        }
        self.set_home(intid, usize::from(NONE));
        self.refresh(vcpu, intid)
    }

    /// Takes an interrupt, which has just been reconciled, out of its list register: its state goes back to the bank.
    /// The caller refreshes it. An active one keeps this CPU as its home.
    pub(super) fn unload(&mut self, vcpu: usize, i: usize, lrs: &mut impl ListRegisters) -> Option<u32> {
        lrs.write(i, 0);
        let cpu = self.vcpus.get_mut(vcpu)?;
        cpu.used &= !(1 << i);
        let mut slot = *cpu.slots.get(i)?;
        let (index, mask) = split(slot.intid);
        let bank = self.bank_mut(vcpu, index)?;
        bank.resident &= !mask;
        give_back(bank, &mut slot);
        if bank.active & mask == 0 {
            self.set_home(slot.intid, usize::from(NONE));
        } else if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.list(index, mask);
        }
        Some(slot.intid)
    }

    /// Puts `intid` into the free list register `i`.
    pub(super) fn load(&mut self, vcpu: usize, i: usize, intid: u32, lrs: &mut impl ListRegisters) {
        let (index, mask) = split(intid);
        let groups = self.groups;
        let here = self.target(vcpu, intid) == vcpu;
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return;
        };
        let active = bank.active & mask != 0;
        let live_active = active && bank.live & !bank.arrived & mask != 0;
        let mut slot = Slot {
            intid,
            live_active,
            ..Slot::default()
        };
        bank.resident |= mask;
        let lr = wish(bank, &mut slot, groups, here);
        lrs.write(i, lr.0);
        self.set_home(intid, vcpu);
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.unlist(index, mask);
            cpu.used |= 1 << i;
            if let Some(place) = cpu.slots.get_mut(i) {
                *place = slot;
            }
        }
    }

    /// The interrupts of a bank in `mask` are not active any more.
    pub(super) fn clear_active(&mut self, vcpu: usize, index: usize, mask: u32) -> Kicks {
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return Kicks::NONE;
        };
        bank.active &= !mask;
        let resident = bank.resident & mask;
        for bit in bits(resident) {
            if let Some(slot) = self.resident_slot(vcpu, index as u32 * 32 + bit) {
                slot.drop_active = true;
                slot.set_active = false;
            }
        }
        self.refresh_bank(vcpu, index, mask)
    }

    /// The slot of an interrupt that is in a list register, of whichever virtual CPU.
    pub(super) fn resident_slot(&mut self, vcpu: usize, intid: u32) -> Option<&mut Slot> {
        let home = self.home(vcpu, intid);
        self.vcpus
            .get_mut(home)
            .and_then(|cpu: &mut VCpu| cpu.slot_of(intid))
    }
}

/// The list register the interrupt of `slot` should have, given what its bank says: its active state there, and what
/// became pending outside. Moves the latch between bank and slot accordingly. An inactive result means that it should
/// have none. `here` tells whether the interrupt, when pending, goes to this CPU.
fn wish(bank: &mut Bank, slot: &mut Slot, groups: u32, here: bool) -> Lr {
    let (_, mask) = split(slot.intid);
    let active = bank.active & mask != 0;
    let level = bank.line & !bank.edge & mask != 0;
    let wanted = (slot.latched || level || bank.latch & mask != 0) && bank.deliverable(groups) & mask != 0;
    let (priority, group1) = bank.rank(slot.intid % 32);
    let moved = (priority, group1) != (bank.priority(slot.intid % 32), bank.group & mask != 0);
    // While the active state is physical, or of another rank, its end has to be seen before the next can come.
    let pending = wanted && here && !(active && slot.live_active || moved);
    if pending && bank.latch & mask != 0 {
        slot.latched = true;
        slot.live_pending |= bank.arrived & mask != 0;
        bank.latch &= !mask;
        bank.arrived &= !mask;
    } else if !pending {
        give_back(bank, slot);
    }
    let lr = Lr::new(slot.intid, priority, group1)
        .with_pending(pending)
        .with_active(active);
    let later = active && wanted && !pending;
    let live = slot.live_pending || slot.live_active;
    if live && !later && !(pending && active) {
        lr.with_hw(slot.intid)
    } else {
        lr.with_eoi(pending && level || later || live)
    }
}

/// The pending state a slot carries goes back to the latch.
pub(super) fn give_back(bank: &mut Bank, slot: &mut Slot) {
    let (_, mask) = split(slot.intid);
    if core::mem::take(&mut slot.latched) {
        bank.latch |= mask;
    }
    if core::mem::take(&mut slot.live_pending) {
        bank.arrived |= mask;
    }
}
