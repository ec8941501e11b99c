//! A CPU's registers. An access to one that does not exist, or that EL2 has denied itself, panics; so does a
//! change of stage 2 while a buffer is still written, and a SIMD instruction in streaming mode.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::Cell;

use super::state::{BRANCH_RECORDS, Machine, OTHERS, PREDICATES, Row, STATE, Trap, VECTORS, ZA, name};
use crate::cpu_state::Registers;
use crate::cpu_state::id::{DFR0, PFR0, PFR1};
use crate::cpu_state::registers::{self as r, debug};

/// What a hostile owner writes everywhere.
pub const PATTERN: u64 = 0x5ec2_e75e_c2e7_5ecf;

/// Counters of the PMU (PMCR_EL0.N).
const COUNTERS: u64 = 6;

/// The enable bit of PMBLIMITR_EL1, TRBLIMITR_EL1.
const ENABLE: u64 = 1;

/// A fault in the sequence that the tests must notice.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// A register is not written.
    Unwritten(u16),
    /// A bit of a control register has the other value.
    Flipped(u16, u32),
}

pub struct Model {
    machine: Machine,
    fault: Fault,
    /// The registers that were written.
    pub written: BTreeSet<u16>,
    values: BTreeMap<u16, u64>,
    /// EL1 has sampled, or traced, and not all is in memory yet.
    sampled: bool,
    traced: bool,
    /// A write has not been followed by an ISB.
    unsynchronised: Cell<bool>,
}

impl Model {
    pub fn new(machine: &Machine) -> Self {
        Self {
            machine: machine.clone(),
            fault: Fault::None,
            written: BTreeSet::new(),
            values: BTreeMap::new(),
            sampled: false,
            traced: false,
            unsynchronised: Cell::new(false),
        }
    }

    pub fn with_fault(machine: &Machine, fault: Fault) -> Self {
        Self {
            fault,
            ..Self::new(machine)
        }
    }

    pub fn value(&self, register: u16) -> u64 {
        self.values.get(&register).copied().unwrap_or(0)
    }

    fn set(&mut self, register: u16, value: u64) {
        self.values.insert(register, value);
    }

    /// Sets everything that exists, as firmware may have left it. Buffers are off.
    pub fn fill(&mut self, junk: u64) {
        for row in STATE.iter().filter(|row| self.machine.exists(row)) {
            self.values.insert(row.register, junk);
        }
        for (register, _) in OTHERS {
            if self.exists(*register) && !(self.machine.buffers_kept && is_buffer(*register)) {
                self.values.insert(*register, junk);
            }
        }
        for buffer in [r::PMBLIMITR_EL1, r::TRBLIMITR_EL1] {
            self.values.remove(&buffer);
        }
    }

    /// Returns all registers of EL2.
    pub fn el2_registers(&self) -> Vec<(u16, u64)> {
        let of_el2 = |register: u16| register >> 11 & 7 == 4 && register != r::VDISR_EL2;
        let all = self.values.iter().map(|(register, value)| (*register, *value));
        all.filter(|(register, _)| of_el2(*register)).collect()
    }

    fn exists(&self, register: u16) -> bool {
        if let Some(row) = STATE.iter().find(|row| row.register == register) {
            return self.machine.exists(row);
        }
        // These need two features.
        if register == r::MPAMHCR_EL2 && self.machine.mpamidr >> 17 & 1 == 0
            || register == r::HAFGRTR_EL2 && !self.machine.has_fgt()
        {
            return false;
        }
        if let Some((_, fields)) = OTHERS.iter().find(|(other, _)| *other == register) {
            return fields.is_empty() || fields.iter().any(|field| self.machine.has(*field));
        }
        for number in 0..16 {
            for (op2, shift) in [(4, 12), (5, 12), (6, 20), (7, 20)] {
                if register == debug(number, op2) {
                    return self.machine.id[DFR0] >> shift & 0xf >= number.into();
                }
            }
        }
        panic!("{} is not in the model", name(register));
    }

    fn traps(&self, trap: Trap) -> bool {
        let (Trap::Set(control, bit) | Trap::Clear(control, bit)) = trap;
        let set = self.value(control) >> bit & 1 != 0;
        self.exists(control) && set == matches!(trap, Trap::Set(..))
    }

    /// Returns whether EL1 or EL0 may write it now.
    pub fn is_usable(&self, row: &Row) -> bool {
        let kept = self.machine.buffers_kept && is_buffer(row.register);
        self.machine.exists(row) && !kept && !self.is_trapped(row)
    }

    /// Returns whether EL2 traps it, whether or not it exists.
    pub fn is_trapped(&self, row: &Row) -> bool {
        row.traps.iter().any(|trap| self.traps(*trap))
    }

    /// An owner writes its pattern wherever it may, and leaves profiling and tracing running.
    pub fn run_hostile_owner(&mut self, rows: &[&Row]) {
        for row in rows {
            self.values.insert(row.register, PATTERN);
        }
        self.sampled = self.value(r::PMBLIMITR_EL1) & self.value(r::PMSCR_EL1) & ENABLE != 0;
        self.traced = self.value(r::TRBLIMITR_EL1) & self.value(r::TRFCR_EL1) & ENABLE != 0;
    }

    pub fn holds_pattern(&self, row: &Row) -> bool {
        self.value(row.register) == PATTERN
    }

    /// Checks that nothing of the last owner's accesses memory.
    pub fn assert_nothing_runs(&self) {
        assert!(
            !self.sampled && self.value(r::PMBLIMITR_EL1) & ENABLE == 0,
            "SPE runs"
        );
        assert!(
            !self.traced && self.value(r::TRBLIMITR_EL1) & ENABLE == 0,
            "TRBE runs"
        );
        assert!(!self.unsynchronised.get(), "the last write is not synchronised");
    }

    /// Checks an access from EL2.
    fn check(&self, register: u16) {
        assert!(
            self.exists(register),
            "{}: {} does not exist",
            self.machine.name,
            name(register)
        );
        if self.machine.buffers_kept {
            let identifies = matches!(register, r::PMBIDR_EL1 | r::TRBIDR_EL1);
            assert!(
                identifies || !is_buffer(register),
                "{} traps to firmware",
                name(register)
            );
        }
        // CPTR_EL2 applies to EL2, too.
        let denied = match register {
            r::ZCR_EL1 | r::ZCR_EL2 => 8,
            r::SMCR_EL1 | r::SMCR_EL2 | r::SVCR | r::SMPRI_EL1 => 12,
            r::FPCR | r::FPSR => 10,
            _ => return,
        };
        assert!(
            self.value(r::CPTR_EL2) >> denied & 1 == 0,
            "{} traps at EL2",
            name(register)
        );
    }
}

/// Registers of SPE and TRBE, which firmware may keep.
fn is_buffer(register: u16) -> bool {
    // S3_0_C9_C9 to C11, PMSCR_EL2.
    (r::PMSCR_EL1..=r::TRBIDR_EL1).contains(&register) || register == r::PMSCR_EL2
}

impl Registers for Model {
    fn read<const REGISTER: u16>(&self) -> u64 {
        self.check(REGISTER);
        match REGISTER {
            r::PMCR_EL0 => self.value(REGISTER) & !(0x1f << 11) | COUNTERS << 11,
            r::PMBIDR_EL1 | r::TRBIDR_EL1 => u64::from(self.machine.buffers_kept) << 4,
            r::PMSIDR_EL1 => self.machine.pmsidr,
            r::MPAMIDR_EL1 => self.machine.mpamidr,
            r::MIDR_EL1 => 0x411f_d070,
            _ => self.value(REGISTER),
        }
    }

    fn write<const REGISTER: u16>(&mut self, value: u64) {
        self.check(REGISTER);
        self.written.insert(REGISTER);
        self.unsynchronised.set(true);
        let value = match self.fault {
            Fault::Unwritten(register) if register == REGISTER => return,
            // The traps of writes are those of reads here, but for the identification of branch records.
            Fault::Flipped(register, bit) if register == REGISTER => value ^ 1 << bit,
            _ => value,
        };
        match REGISTER {
            r::PMINTENCLR_EL1 => self.set(r::PMINTENSET_EL1, 0),
            r::PMCNTENCLR_EL0 => self.set(r::PMCNTENSET_EL0, 0),
            r::PMOVSCLR_EL0 => self.set(r::PMOVSSET_EL0, 0),
            r::PMXEVTYPER_EL0 if self.value(r::PMSELR_EL0) == 0 => self.set(r::PMEVTYPER0_EL0, value),
            r::PMXEVTYPER_EL0 => {}
            r::PMCR_EL0 => {
                self.set(REGISTER, value);
                if value & 2 != 0 {
                    self.set(r::PMEVCNTR0_EL0, 0);
                }
                if value & 4 != 0 {
                    self.set(r::PMCCNTR_EL0, 0);
                }
            }
            r::SVCR => {
                self.set(REGISTER, value);
                if value & 2 == 0 {
                    self.set(ZA, 0);
                }
            }
            // Stage 2 and the control of the buffers.
            r::VTTBR_EL2 | r::MDCR_EL2 => {
                self.set(REGISTER, value);
                let writes = self.sampled
                    || self.traced
                    || (self.value(r::PMBLIMITR_EL1) | self.value(r::TRBLIMITR_EL1)) & ENABLE != 0;
                assert!(!writes, "{} changes while a buffer is on", name(REGISTER));
            }
            r::PMBLIMITR_EL1 => {
                assert!(
                    !self.sampled,
                    "the profiling buffer is turned off before it is written"
                );
                self.set(REGISTER, value);
            }
            r::TRBLIMITR_EL1 => {
                assert!(
                    !self.traced,
                    "the trace buffer is turned off before it is written"
                );
                self.set(REGISTER, value);
            }
            _ => self.set(REGISTER, value),
        }
    }

    fn id(&self, register: usize) -> u64 {
        self.machine.id[register]
    }

    fn isb(&mut self) {
        self.unsynchronised.set(false);
    }

    fn drain_profiling_buffer(&mut self) {
        assert!(self.machine.has((DFR0, 32, 1)), "PSB CSYNC without SPE");
        // What is sampled meanwhile would not be covered.
        if self.value(r::PMSCR_EL1) == 0 && !self.unsynchronised.get() {
            self.sampled = false;
        }
    }

    fn drain_trace_buffer(&mut self) {
        assert!(self.machine.has((DFR0, 44, 1)), "TSB CSYNC without TRBE");
        if self.value(r::TRFCR_EL1) == 0 && !self.unsynchronised.get() {
            self.traced = false;
        }
    }

    fn invalidate_branch_records(&mut self) {
        assert!(self.machine.has((DFR0, 52, 1)), "BRB IALL without BRBE");
        if self.value(r::BRBCR_EL1) == 0 && !self.unsynchronised.get() {
            self.values.insert(BRANCH_RECORDS, 0);
        }
    }

    fn zero_breakpoints(&mut self, breakpoints: u64, watchpoints: u64) {
        for (last, op2) in [
            (breakpoints, 4),
            (breakpoints, 5),
            (watchpoints, 6),
            (watchpoints, 7),
        ] {
            for number in 0..=last {
                self.check(debug(number as u16, op2));
                self.set(debug(number as u16, op2), 0);
            }
        }
    }

    fn zero_vectors(&mut self, sve: bool) {
        assert!(self.machine.has((PFR0, 16, 0)), "SIMD without SIMD registers");
        assert!(!sve || self.machine.has((PFR0, 32, 1)), "SVE without SVE");
        assert!(self.value(r::CPTR_EL2) >> 10 & 1 == 0, "SIMD traps at EL2");
        let streaming = self.machine.has((PFR1, 24, 1)) && self.value(r::SVCR) & 1 != 0;
        assert!(!streaming, "SIMD in streaming mode");
        self.values.insert(VECTORS, 0);
        if sve {
            assert!(self.value(r::CPTR_EL2) >> 8 & 1 == 0, "SVE traps at EL2");
            self.values.insert(PREDICATES, 0);
        }
    }
}
