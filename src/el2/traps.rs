//! Exceptions from lower levels: decodes them, hands them to the CPU's owner, and does what is the same for
//! root and zones: register access, the faulting address, injecting external aborts and undefined
//! instructions.

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable};
use log::warn;
use ringvisor::abi::counters::Exit;
use ringvisor::addr::{Ipa, Va};
use ringvisor::syndrome::{
    self, Access, DataAbort, Fault, InstructionAbort, Register, Syndrome, SysAccess, SysReg,
};
use ringvisor::vgic::{SgiRegister, SgiRequest};

use super::arch::frame::TrapFrame;
use super::arch::{self, features, sysreg, vcpu};
use super::current::Current;
use super::owner::{AfterCall, Crash, Owner, TrapOutcome};
use super::{cpu, interrupts, run, stats};

const ICC_SGI1R: SysReg = SysReg::new(3, 0, 12, 11, 5);
const ICC_ASGI1R: SysReg = SysReg::new(3, 0, 12, 11, 6);
const ICC_SGI0R: SysReg = SysReg::new(3, 0, 12, 11, 7);
const ICC_DIR: SysReg = SysReg::new(3, 0, 12, 11, 1);
const ACTLR: SysReg = SysReg::new(3, 0, 1, 0, 1);

/// Returns a general register's value; register 31 is zero.
fn get(frame: &TrapFrame, register: Register) -> u64 {
    register
        .index()
        .and_then(|index| frame.x.get(index))
        .copied()
        .unwrap_or(0)
}

/// Sets a general register; register 31 discards the value.
fn set(frame: &mut TrapFrame, register: Register, value: u64) {
    if let Some(slot) = register.index().and_then(|index| frame.x.get_mut(index)) {
        *slot = value;
    }
}

/// Advances the lower level past the instruction that trapped.
fn skip(frame: &mut TrapFrame, esr: u64) {
    frame.elr = frame.elr.wrapping_add(syndrome::instruction_length(esr));
    frame.spsr = syndrome::spsr_after_instruction(frame.spsr);
}

/// Returns the owner of the vCPU that trapped. A CPU that runs a vCPU has one.
#[inline]
fn owner() -> Current {
    match Current::running_on(cpu::this()) {
        Some(owner) => owner,
        None => run::idle(),
    }
}

/// Handles a synchronous exception of a lower level.
// SAFETY: the only definition of the symbol that `arch::entry` declares, with its signature.
#[unsafe(no_mangle)]
pub extern "C" fn lower_sync(frame: &mut TrapFrame) {
    stats::enter();
    let owner = owner();
    let esr = ESR_EL2.get();
    let syndrome = Syndrome::decode(esr);
    let exit = exit_of(&syndrome);
    match syndrome {
        Syndrome::DataAbort(abort) => data_abort(owner, frame, esr, &abort),
        Syndrome::InstructionAbort(abort) => instruction_abort(owner, frame, esr, &abort),
        Syndrome::Hvc(_) => call(owner, frame),
        Syndrome::Smc(_) => {
            // The preferred return address of a trapped SMC, unlike an HVC's, is the instruction itself.
            skip(frame, esr);
            call(owner, frame);
        }
        Syndrome::Sys(access) => system_register(owner, frame, esr, &access),
        Syndrome::Wfx(_) => skip(frame, esr),
        other => {
            log::debug!("{other:?} at {:#x}: undefined", frame.elr);
            inject_undefined(frame);
        }
    }
    stats::leave(exit, run::before_entry(owner));
}

/// Returns the exit counter charged for this exception.
fn exit_of(syndrome: &Syndrome) -> Exit {
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

/// Handles a physical interrupt that arrived while a lower level ran.
// SAFETY: the only definition of the symbol that `arch::entry` declares, with its signature.
#[unsafe(no_mangle)]
pub extern "C" fn lower_irq(_frame: &mut TrapFrame) {
    stats::enter();
    interrupts::handle();
    stats::leave(Exit::Irq, run::before_entry(owner()));
}

/// Handles an SError that was taken while a lower level ran: the lower level caused it, or the machine is
/// broken. One that is pending when a CPU changes its owner is taken before ([`vcpu::quiesce`]). Root takes
/// it as a virtual SError, which its kernel knows how to handle.
// SAFETY: the only definition of the symbol that `arch::entry` declares, with its signature.
#[unsafe(no_mangle)]
pub extern "C" fn lower_serror(frame: &mut TrapFrame) {
    stats::enter();
    let owner = owner();
    let esr = ESR_EL2.get();
    if !crash(owner, frame, esr) {
        warn!("SError in root at {:#x}, ESR {esr:#x}", frame.elr);
        vcpu::inject_serror(esr);
    }
    stats::leave(Exit::Other, run::before_entry(owner));
}

/// Ends the owner's zone because the vCPU cannot continue. Returns false for root.
#[cold]
#[inline(never)]
fn crash(owner: Current, frame: &TrapFrame, esr: u64) -> bool {
    let crash = Crash {
        esr,
        elr: frame.elr,
        far: FAR_EL2.get(),
    };
    owner.crash(cpu::this().vcpu(), &crash)
}

fn call(owner: Current, frame: &mut TrapFrame) {
    if owner.call(cpu::this().vcpu(), frame) == AfterCall::Leave {
        run::leave(owner);
    }
}

/// Returns the intermediate physical address of a stage-2 fault, or `None` if the guest's stage 1 no longer
/// translates the address, so that the access is to be executed again.
///
/// HPFAR_EL2 is UNKNOWN for a permission fault outside a stage-1 walk (Arm ARM D24.2.59).
fn fault_address(hpfar_valid: bool) -> Option<Ipa> {
    let far = FAR_EL2.get();
    if hpfar_valid {
        let page = (HPFAR_EL2.get() & 0x0000_0fff_ffff_fff0) << 8;
        Some(Ipa(page | far & 0xfff))
    } else {
        arch::at_s1e1r(Va(far)).ok().map(|pa| Ipa(pa.0))
    }
}

/// Emulates a load or store that stage 2 did not permit, or injects an external abort.
fn data_abort(owner: Current, frame: &mut TrapFrame, esr: u64, abort: &DataAbort) {
    let Some(ipa) = fault_address(abort.hpfar_valid) else {
        return;
    };
    let Some(access) = abort.access else {
        // A device's page may have been unmapped for a moment (`Zone::device_config`): then it is mapped
        // again by now.
        if abort.fault == Fault::Translation && owner.is_mapped_for_reads(ipa) {
            return;
        }
        return inject_external_abort(owner, frame, esr, ipa);
    };
    match stage2_fault(owner, frame, ipa, &access, abort.write) {
        TrapOutcome::Done(value) => {
            if !abort.write {
                set(frame, access.register, access.loaded(value));
            }
            skip(frame, esr);
        }
        TrapOutcome::Retry => {}
        TrapOutcome::Abort => inject_external_abort(owner, frame, esr, ipa),
    }
}

/// Has the owner emulate a load or store with a valid syndrome. Its own function so that a debugger can stop
/// here.
#[inline(never)]
fn stage2_fault(owner: Current, frame: &TrapFrame, ipa: Ipa, access: &Access, write: bool) -> TrapOutcome {
    let stored = write.then(|| access.stored(get(frame, access.register)));
    if !ipa.is_aligned(access.width.bytes()) {
        return TrapOutcome::Abort;
    }
    owner.access(ipa, access.width, stored)
}

/// Injects an external abort for a fetch from where no memory is. If the fetch is that of the handler which
/// would take the abort, a guest would take it forever: its zone crashes instead.
fn instruction_abort(owner: Current, frame: &mut TrapFrame, esr: u64, abort: &InstructionAbort) {
    let Some(ipa) = fault_address(abort.hpfar_valid) else {
        return;
    };
    if frame.elr != synchronous_handler(frame) || !crash(owner, frame, esr) {
        inject_external_abort(owner, frame, esr, ipa);
    }
}

/// Returns where EL1 handles a synchronous exception that is taken now.
fn synchronous_handler(frame: &TrapFrame) -> u64 {
    sysreg::read!("vbar_el1").wrapping_add(syndrome::synchronous_vector(frame.spsr))
}

/// Injects a synchronous external abort: nothing is at `ipa`, or the syndrome does not describe the access.
fn inject_external_abort(owner: Current, frame: &mut TrapFrame, esr: u64, ipa: Ipa) {
    owner.count_abort(ipa, frame.elr);
    let from_el0 = frame.spsr & 0xf == 0;
    inject(frame, syndrome::external_abort_esr(esr, from_el0), FAR_EL2.get());
}

fn inject_undefined(frame: &mut TrapFrame) {
    inject(frame, syndrome::UNDEFINED_ESR, sysreg::read!("far_el1"));
}

/// Makes the lower level take a synchronous exception to EL1 (Arm ARM, AArch64.TakeException).
fn inject(frame: &mut TrapFrame, esr: u64, far: u64) {
    sysreg::write!("esr_el1", esr);
    sysreg::write!("far_el1", far);
    sysreg::write!("elr_el1", frame.elr);
    sysreg::write!("spsr_el1", frame.spsr);
    frame.elr = synchronous_handler(frame);
    frame.spsr = syndrome::exception_pstate(frame.spsr, &features::exception_controls());
}

/// Emulates an MSR or SYS instruction that traps, or injects an undefined instruction exception.
fn system_register(owner: Current, frame: &mut TrapFrame, esr: u64, access: &SysAccess) {
    let value = get(frame, access.register);
    let sgi = match access.reg {
        ICC_SGI1R => Some(SgiRegister::Sgi1r),
        ICC_SGI0R => Some(SgiRegister::Sgi0r),
        ICC_ASGI1R => Some(SgiRegister::Asgi1r),
        _ => None,
    };
    match (sgi, access.read) {
        (Some(register), false) => {
            owner.send_sgi(cpu::this().vcpu(), &SgiRequest::decode(register, value));
        }
        (None, false) if access.reg == ICC_DIR => {
            owner.deactivate(cpu::this().vcpu(), value as u32 & 0xff_ffff);
        }
        // It traps only while this vCPU is the only one of its zone that is on: no other CPU caches its
        // translations.
        (None, false) if access.reg.is_tlbi_el1() => {
            arch::tlbi_el1(access.reg.crm, access.reg.op2, value);
            cpu::this().count_tlbi();
        }
        (None, true) if let Some(register) = access.reg.id_register() => {
            set(
                frame,
                access.register,
                features::id_register(owner.kind(), register),
            );
        }
        // Traps for everyone. Root's drivers of one CPU's or cluster's own registers find them empty.
        (None, read) if access.reg == ACTLR || owner.is_root() && access.reg.is_implementation_defined() => {
            if read {
                set(frame, access.register, 0);
            }
        }
        _ => {
            log::debug!("system register {:?} at {:#x}: undefined", access.reg, frame.elr);
            return inject_undefined(frame);
        }
    }
    skip(frame, esr);
}
