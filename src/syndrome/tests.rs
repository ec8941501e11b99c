//! Syndromes as the architecture encodes them.

use super::{
    Access, DataAbort, ExceptionControls, Fault, IL, Register, Syndrome, SysReg, UNDEFINED_ESR, Wfx, Width,
    exception_pstate, external_abort_esr, instruction_length, spsr_after_instruction, synchronous_vector,
};

fn esr(ec: u8, iss: u64) -> u64 {
    u64::from(ec) << 26 | IL | iss
}

fn data_abort(iss: u64) -> DataAbort {
    match Syndrome::decode(esr(0x24, iss)) {
        Syndrome::DataAbort(abort) => abort,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_word_store_on_a_read_only_page() {
    // str w3, [x]: ISV, SAS 2, SRT 3, WnR, permission fault level 3.
    let abort = data_abort(1 << 24 | 2 << 22 | 3 << 16 | 1 << 6 | 0x0f);
    let access = abort.access.unwrap();
    assert_eq!(access.width, Width::Word);
    assert_eq!(access.register.index(), Some(3));
    assert!(abort.write && abort.far_valid && !abort.hpfar_valid);
    assert_eq!(abort.fault, Fault::Permission);
    assert_eq!(access.stored(0xffff_ffff_1234_5678), 0x1234_5678);
}

// torture a3
#[test]
fn without_isv_there_is_no_access() {
    let abort = data_abort(2 << 22 | 3 << 16 | 1 << 6 | 0x07);
    assert_eq!(abort.access, None);
    assert_eq!(abort.fault, Fault::Translation);
    assert!(abort.hpfar_valid);
}

// torture a3, a4
#[test]
fn walks_and_cache_maintenance_are_never_an_access() {
    assert_eq!(data_abort(1 << 24 | 1 << 7 | 0x0f).access, None);
    assert_eq!(data_abort(1 << 24 | 1 << 8 | 0x0f).access, None);
    assert!(
        data_abort(1 << 7 | 0x0f).hpfar_valid,
        "a permission fault on a walk has HPFAR_EL2"
    );
}

// torture a4
#[test]
fn hpfar_is_not_used_where_it_is_unknown() {
    assert!(!data_abort(0x0e).hpfar_valid);
    assert!(!data_abort(0x21).hpfar_valid);
    assert!(!data_abort(0x10).hpfar_valid);
    assert!(data_abort(0x0a).hpfar_valid);
}

#[test]
fn loads_extend_as_the_instruction_says() {
    let base = Access {
        width: Width::Byte,
        register: Register::from_field(0),
        sign_extend: true,
        sixty_four: true,
        acquire_release: false,
    };
    assert_eq!(base.loaded(0x1_80), 0xffff_ffff_ffff_ff80);
    assert_eq!(
        Access {
            sixty_four: false,
            ..base
        }
        .loaded(0x80),
        0xffff_ff80
    );
    assert_eq!(
        Access {
            sign_extend: false,
            ..base
        }
        .loaded(0x1_80),
        0x80
    );
    assert_eq!(
        Access {
            width: Width::Double,
            ..base
        }
        .loaded(u64::MAX),
        u64::MAX
    );
    assert_eq!(
        Access {
            width: Width::Word,
            ..base
        }
        .loaded(0x8000_0000),
        0xffff_ffff_8000_0000
    );
    assert_eq!(
        Access {
            width: Width::Half,
            ..base
        }
        .loaded(0x7fff),
        0x7fff
    );
}

#[test]
fn register_31_is_the_zero_register() {
    assert_eq!(Register::from_field(31).index(), None);
    assert_eq!(Register::from_field(0x3e).index(), Some(30));
}

#[test]
fn tlb_maintenance_of_el1() {
    for (crn, crm, op2, name) in [
        (8, 3, 0, "VMALLE1IS"),
        (8, 7, 1, "VAE1"),
        (8, 1, 2, "ASIDE1OS"),
        (8, 6, 7, "RVAALE1"),
        (9, 3, 1, "VAE1ISNXS"),
    ] {
        assert!(SysReg::new(1, 0, crn, crm, op2).is_tlbi_el1(), "{name}");
    }
    for (reg, name) in [
        (SysReg::new(1, 4, 8, 7, 4), "TLBI ALLE1, which is EL2's"),
        (SysReg::new(1, 0, 7, 8, 0), "AT S1E1R"),
        (SysReg::new(1, 0, 7, 14, 2), "DC CISW"),
        (SysReg::new(3, 0, 8, 7, 1), "a register"),
    ] {
        assert!(!reg.is_tlbi_el1(), "{name}");
    }
}

#[test]
fn system_registers_by_name() {
    // mrs x5, ICC_SRE_EL1 (S3_0_C12_C12_5), read.
    let iss = 3 << 20 | 5 << 17 | 12 << 10 | 5 << 5 | 12 << 1 | 1;
    let Syndrome::Sys(access) = Syndrome::decode(esr(0x18, iss)) else {
        panic!()
    };
    assert_eq!(access.reg, SysReg::new(3, 0, 12, 12, 5));
    assert_eq!(access.register.index(), Some(5));
    assert!(access.read);
}

#[test]
fn hvc_smc_and_wfx() {
    assert_eq!(Syndrome::decode(esr(0x16, 0xbeef)), Syndrome::Hvc(0xbeef));
    assert_eq!(Syndrome::decode(esr(0x17, 0)), Syndrome::Smc(0));
    assert_eq!(Syndrome::decode(esr(0x01, 0)), Syndrome::Wfx(Wfx::Wfi));
    assert_eq!(Syndrome::decode(esr(0x01, 1)), Syndrome::Wfx(Wfx::Wfe));
    assert_eq!(
        Syndrome::decode(esr(0x3c, 7)),
        Syndrome::Other { class: 0x3c, iss: 7 }
    );
    assert_eq!(Syndrome::decode(0), Syndrome::Unknown);
    assert_eq!(instruction_length(IL), 4);
    assert_eq!(instruction_length(0), 2);
}

#[test]
fn injected_aborts_say_where_they_come_from() {
    let cause = esr(0x24, 1 << 24 | 2 << 22 | 1 << 6 | 0x0f);
    assert_eq!(external_abort_esr(cause, false), 0x25 << 26 | IL | 1 << 6 | 0x10);
    assert_eq!(external_abort_esr(cause, true), 0x24 << 26 | IL | 1 << 6 | 0x10);
    assert_eq!(external_abort_esr(esr(0x20, 0x0f), false), 0x21 << 26 | IL | 0x10);
    assert_eq!(UNDEFINED_ESR, IL);
}

#[test]
fn vectors() {
    assert_eq!(synchronous_vector(0b0101), 0x200);
    assert_eq!(synchronous_vector(0b0100), 0);
    assert_eq!(synchronous_vector(0b0000), 0x400);
    assert_eq!(synchronous_vector(0b1_0000), 0x600);
}

#[test]
fn a_skipped_instruction_ends_a_step_and_a_branch_target() {
    // EL1h with NZCV, PAN and DIT; a step is active, BTYPE is 3.
    let kept = 0xf << 28 | 1 << 22 | 1 << 24 | 0x3c5;
    assert_eq!(spsr_after_instruction(kept | 1 << 21 | 3 << 10), kept);
    assert_eq!(spsr_after_instruction(kept), kept);
}

#[test]
fn a_skipped_instruction_advances_an_it_block() {
    // EL0 in T32; IT[7:5] is the condition, here EQ (0); bits 4 to 0 shift.
    let spsr = |it: u64| 0b11_0000 | (it & 3) << 25 | (it >> 2) << 10;
    for (before, after) in [
        (0b000_01000, 0), // the last of its block
        (0b000_00100, 0b000_01000),
        (0b000_10110, 0b000_01100),
        (0b101_00011, 0b101_00110),
        (0, 0),
    ] {
        let (before, after): (u64, u64) = (before, after);
        let expected = if before & 7 == 0 { 0 } else { after };
        assert_eq!(
            spsr_after_instruction(spsr(before)),
            spsr(expected),
            "IT {before:#010b}"
        );
        assert_eq!(
            spsr_after_instruction(spsr(before) | 1 << 21),
            spsr(expected),
            "step"
        );
    }
}

#[test]
fn pstate_of_an_injected_exception() {
    const EL1H: u64 = 0x3c5;
    let plain = ExceptionControls {
        sctlr: 1 << 23,
        pan: true,
        tags: false,
        exception_lock: false,
    };
    // BTYPE, SS, IL, UAO and TCO do not survive; NZCV, PAN and DIT do.
    let flags = 0xf << 28 | 1 << 22 | 1 << 24;
    assert_eq!(
        exception_pstate(5 | 3 << 10 | 7 << 20 | 0xf << 28 | 3 << 24, &plain),
        EL1H | flags
    );
    assert_eq!(exception_pstate(0, &plain), EL1H);
    assert_eq!(
        exception_pstate(0, &ExceptionControls { sctlr: 0, ..plain }),
        EL1H | 1 << 22
    );
    let ssbs = ExceptionControls {
        sctlr: 1 << 44 | 1 << 23,
        ..plain
    };
    assert_eq!(exception_pstate(0, &ssbs), EL1H | 1 << 12);
    assert_eq!(
        exception_pstate(0, &ExceptionControls { tags: true, ..plain }),
        EL1H | 1 << 25
    );
    // From AArch32, IT and DIT have other places.
    assert_eq!(exception_pstate(0x10 | 3 << 25 | 1 << 21, &plain), EL1H | 1 << 24);
    // PSTATE.EXLOCK, from EL1 alone.
    let locked = ExceptionControls {
        exception_lock: true,
        ..plain
    };
    assert_eq!(exception_pstate(5, &locked), EL1H | 1 << 34);
    assert_eq!(exception_pstate(0, &locked), EL1H);
    assert_eq!(exception_pstate(0x10, &locked), EL1H);
}

#[test]
fn identification_and_implementation_defined_registers() {
    assert_eq!(SysReg::new(3, 0, 0, 4, 1).id_register(), Some(33));
    assert_eq!(SysReg::new(3, 0, 0, 7, 7).id_register(), Some(63));
    for other in [
        (3, 0, 0, 0, 5),
        (3, 1, 0, 4, 1),
        (3, 0, 0, 8, 0),
        (2, 0, 0, 4, 1),
        (3, 0, 1, 4, 1),
    ] {
        let (op0, op1, crn, crm, op2) = other;
        assert_eq!(
            SysReg::new(op0, op1, crn, crm, op2).id_register(),
            None,
            "{other:?}"
        );
    }
    assert!(SysReg::new(3, 1, 15, 2, 0).is_implementation_defined());
    assert!(SysReg::new(1, 0, 15, 4, 0).is_implementation_defined());
    assert!(SysReg::new(3, 1, 11, 0, 2).is_implementation_defined());
    assert!(!SysReg::new(3, 0, 12, 11, 5).is_implementation_defined());
    assert!(!SysReg::new(2, 0, 15, 0, 0).is_implementation_defined());
}

#[test]
fn decoding_is_total() {
    for ec in 0..64u8 {
        for shift in 0..25 {
            let _ = Syndrome::decode(esr(ec, 1 << shift));
        }
        let _ = Syndrome::decode(!(0x3f << 26) | u64::from(ec) << 26);
    }
}
