//! Exceptions from lower levels: decode, hand to root or zone, and what both need: register access, injection of
//! aborts and undefined instructions, the faulting address.

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable};
use log::warn;
use ringvisor::abi::counters::Exit;
use ringvisor::addr::{Ipa, Va};
use ringvisor::syndrome::{
    self, Access, DataAbort, Fault, InstructionAbort, Register, Syndrome, SysAccess, SysReg, Width,
};
use ringvisor::vgic::{SgiRegister, SgiRequest};

use super::arch::vectors::TrapFrame;
use super::arch::{self, sysreg};
use super::{cpu, gic, root, stats};

/// What became of a trapped access.
pub enum Outcome {
    /// A load's value; for a store, anything.
    Done(u64),
    /// Leave the program counter on the instruction: it is tried again.
    Again,
    /// Nothing answers there.
    Abort,
}

const ICC_SGI1R: SysReg = SysReg::new(3, 0, 12, 11, 5);
const ICC_ASGI1R: SysReg = SysReg::new(3, 0, 12, 11, 6);
const ICC_SGI0R: SysReg = SysReg::new(3, 0, 12, 11, 7);
const ICC_DIR: SysReg = SysReg::new(3, 0, 12, 11, 1);

/// A general register's value; register 31 is zero.
pub fn get(frame: &TrapFrame, register: Register) -> u64 {
    register
        .index()
        .and_then(|index| frame.x.get(index))
        .copied()
        .unwrap_or(0)
}

/// Sets a general register; register 31 swallows it.
pub fn set(frame: &mut TrapFrame, register: Register, value: u64) {
    if let Some(slot) = register.index().and_then(|index| frame.x.get_mut(index)) {
        *slot = value;
    }
}

fn skip(frame: &mut TrapFrame, esr: u64) {
    frame.elr = frame.elr.wrapping_add(syndrome::instruction_length(esr));
}

/// A synchronous exception of a lower level.
pub extern "C" fn lower_sync(frame: &mut TrapFrame) {
    stats::enter();
    let esr = ESR_EL2.get();
    let syndrome = Syndrome::decode(esr);
    let exit = reason(&syndrome);
    match syndrome {
        Syndrome::DataAbort(abort) => data_abort(frame, esr, &abort),
        Syndrome::InstructionAbort(abort) => instruction_abort(frame, esr, &abort),
        Syndrome::Hvc(_) => call(frame),
        Syndrome::Smc(_) => {
            // A trapped SMC, unlike an HVC, has not been executed.
            skip(frame, esr);
            call(frame);
        }
        Syndrome::Sys(access) => system_register(frame, esr, &access),
        Syndrome::Wfx(_) => skip(frame, esr),
        other => {
            log::debug!("{other:?} at {:#x}: undefined", frame.elr);
            inject_undefined(frame);
        }
    }
    stats::leave(exit, cpu::before_return());
}

/// As what an exception is counted.
fn reason(syndrome: &Syndrome) -> Exit {
    match syndrome {
        Syndrome::DataAbort(abort) if matches!(abort.fault, Fault::Permission) => Exit::Permission,
        Syndrome::DataAbort(abort) if abort.write => Exit::Write,
        Syndrome::DataAbort(_) => Exit::Read,
        Syndrome::Hvc(_) => Exit::Hvc,
        Syndrome::Smc(_) => Exit::Smc,
        Syndrome::Sys(_) => Exit::Sysreg,
        Syndrome::Wfx(_) => Exit::Wfx,
        _ => Exit::Other,
    }
}

/// A physical interrupt while a lower level ran.
pub extern "C" fn lower_irq(_frame: &mut TrapFrame) {
    stats::enter();
    gic::handle_interrupts();
    stats::leave(Exit::Irq, cpu::before_return());
}

/// An SError while a lower level ran: it is the lower level's own doing, or the machine is broken.
pub extern "C" fn lower_serror(frame: &mut TrapFrame) {
    stats::enter();
    let esr = ESR_EL2.get();
    match cpu::this_zone() {
        Some(zone) => zone.crash(cpu::this().vcpu(), esr, frame.elr, FAR_EL2.get()),
        None => warn!("SError in root at {:#x}, ESR {esr:#x}", frame.elr),
    }
    stats::leave(Exit::Other, cpu::before_return());
}

fn call(frame: &mut TrapFrame) {
    match cpu::this_zone() {
        Some(zone) => zone.call(frame),
        None => root::call(frame),
    }
}

/// The intermediate physical address of a stage-2 fault, or `None` if the guest's own tables have changed
/// meanwhile, so that the access is to be tried again.
///
/// HPFAR_EL2 is unknown for a permission fault outside a stage-1 walk (Arm ARM D24.2.59).
fn fault_address(hpfar_valid: bool) -> Option<Ipa> {
    let far = FAR_EL2.get();
    if hpfar_valid {
        let page = (HPFAR_EL2.get() & 0x0000_0fff_ffff_fff0) << 8;
        Some(Ipa(page | far & 0xfff))
    } else {
        arch::at_s1e1r(Va(far)).ok().map(|pa| Ipa(pa.0))
    }
}

/// Traps on device pages end here: the register access is decoded from the syndrome and emulated.
fn data_abort(frame: &mut TrapFrame, esr: u64, abort: &DataAbort) {
    let Some(ipa) = fault_address(abort.hpfar_valid) else {
        return;
    };
    let Some(access) = abort.access else {
        // A register page may have been away for a moment (`Zone::device_config`): then it is there again by now.
        let shown = || cpu::this_zone().is_some_and(|zone| zone.shows(ipa));
        if abort.fault == Fault::Translation && shown() {
            return;
        }
        return wild(frame, esr, ipa);
    };
    match stage2_fault(frame, ipa, &access, abort.write) {
        Outcome::Done(value) => {
            if !abort.write {
                set(frame, access.register, access.loaded(value));
            }
            skip(frame, esr);
        }
        Outcome::Again => {}
        Outcome::Abort => wild(frame, esr, ipa),
    }
}

/// A load or store that stage 2 does not let through, with a valid syndrome.
#[inline(never)]
fn stage2_fault(frame: &TrapFrame, ipa: Ipa, access: &Access, write: bool) -> Outcome {
    let stored = write.then(|| access.stored(get(frame, access.register)));
    if !ipa.is_aligned(access.width.bytes()) {
        return Outcome::Abort;
    }
    match cpu::this_zone() {
        Some(zone) => zone.access(ipa, access.width, stored),
        None => root::access(ipa, access.width, stored),
    }
}

/// A fetch from where no memory is. If it is the fetch of the very handler that the abort would be delivered to, the
/// guest would take that abort for ever: it is lost.
fn instruction_abort(frame: &mut TrapFrame, esr: u64, abort: &InstructionAbort) {
    let Some(ipa) = fault_address(abort.hpfar_valid) else {
        return;
    };
    match cpu::this_zone() {
        Some(zone) if frame.elr == synchronous_handler(frame) => {
            zone.crash(cpu::this().vcpu(), esr, frame.elr, FAR_EL2.get());
        }
        _ => wild(frame, esr, ipa),
    }
}

/// Where EL1 handles a synchronous exception taken now.
fn synchronous_handler(frame: &TrapFrame) -> u64 {
    sysreg::read!("vbar_el1").wrapping_add(syndrome::synchronous_vector(frame.spsr))
}

/// Nothing answers at `ipa`, or the instruction is not known: an external abort into the zone.
fn wild(frame: &mut TrapFrame, esr: u64, ipa: Ipa) {
    match cpu::this_zone() {
        Some(zone) => zone.count_abort(ipa, frame.elr),
        None => root::count_abort(ipa, frame.elr),
    }
    let from_el0 = frame.spsr & 0xf == 0;
    inject(frame, syndrome::external_abort_esr(esr, from_el0), FAR_EL2.get());
}

fn inject_undefined(frame: &mut TrapFrame) {
    inject(frame, syndrome::UNDEFINED_ESR, sysreg::read!("far_el1"));
}

/// Takes a synchronous exception to EL1 on behalf of the zone (Arm ARM, AArch64.TakeException).
fn inject(frame: &mut TrapFrame, esr: u64, far: u64) {
    const EL1H_MASKED: u64 = 0x3c5;
    const PAN: u64 = 1 << 22;
    const KEPT: u64 = 0xf << 28 | PAN | 1 << 24 | 1 << 25; // NZCV, PAN, DIT, TCO
    const SCTLR_SPAN: u64 = 1 << 23;
    const SCTLR_DSSBS: u64 = 1 << 44;
    sysreg::write!("esr_el1", esr);
    sysreg::write!("far_el1", far);
    sysreg::write!("elr_el1", frame.elr);
    sysreg::write!("spsr_el1", frame.spsr);
    let sctlr = sysreg::read!("sctlr_el1");
    let mut pstate = frame.spsr & KEPT | EL1H_MASKED;
    let has_pan = sysreg::read!("id_aa64mmfr1_el1") >> 20 & 0xf != 0;
    if has_pan && sctlr & SCTLR_SPAN == 0 {
        pstate |= PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        pstate |= 1 << 12;
    }
    frame.elr = synchronous_handler(frame);
    frame.spsr = pstate;
}

fn system_register(frame: &mut TrapFrame, esr: u64, access: &SysAccess) {
    let value = get(frame, access.register);
    let sgi = match access.reg {
        ICC_SGI1R => Some(SgiRegister::Sgi1r),
        ICC_SGI0R => Some(SgiRegister::Sgi0r),
        ICC_ASGI1R => Some(SgiRegister::Asgi1r),
        _ => None,
    };
    match (sgi, access.read) {
        (Some(register), false) => {
            let request = SgiRequest::decode(register, value);
            match cpu::this_zone() {
                Some(zone) => zone.send_sgi(cpu::this().vcpu(), &request),
                None => root::send_sgi(cpu::this(), &request),
            }
        }
        (None, false) if access.reg == ICC_DIR => {
            let intid = value as u32 & 0xff_ffff;
            match cpu::this_zone() {
                Some(zone) => zone.deactivate(cpu::this().vcpu(), intid),
                None => root::deactivate(cpu::this(), intid),
            }
        }
        // By a vCPU that was its zone's first and has turned on no other: no other CPU has anything to drop.
        (None, false) if access.reg.is_tlbi_el1() => {
            arch::tlbi_el1(access.reg.crm, access.reg.op2, value);
            cpu::this().tlbi_trapped();
        }
        _ => {
            log::debug!("system register {:?} at {:#x}: undefined", access.reg, frame.elr);
            return inject_undefined(frame);
        }
    }
    skip(frame, esr);
}

/// Bytes of an access, for interfaces that count them.
pub fn bytes(width: Width) -> u32 {
    width.bytes() as u32
}
