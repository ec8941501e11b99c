//! Software-generated interrupts: decodes a guest's write to `ICC_SGI1R_EL1`, `ICC_SGI0R_EL1` or
//! `ICC_ASGI1R_EL1`. The write traps (`HCR_EL2.IMO`/`FMO`); `Vgic::send_sgi` executes it.

/// Which of the three registers was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgiRegister {
    /// `ICC_SGI1R_EL1`: reaches SGIs of either group.
    Sgi1r,
    /// `ICC_SGI0R_EL1`: reaches SGIs of group 0 only.
    Sgi0r,
    /// `ICC_ASGI1R_EL1`: with one security state, reaches SGIs of group 0 only.
    Asgi1r,
}

/// A decoded write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SgiRequest {
    /// The SGI, 0 to 15.
    pub intid: u32,
    /// Whether the register can generate SGIs of group 1.
    pub group1: bool,
    target: Target,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    /// `IRM` 1: all CPUs but the sender.
    Others,
    /// The CPUs of one cluster whose `Aff0` is `16 * range` plus a set bit of `list`.
    List { cluster: u32, range: u8, list: u16 },
}

impl SgiRequest {
    /// Decodes `value`, written to `register` (IHI 0069, 12.2.10, "ICC_SGI1R_EL1"). Every value is valid.
    pub const fn decode(register: SgiRegister, value: u64) -> Self {
        let target = if value & 1 << 40 != 0 {
            Target::Others
        } else {
            let (aff3, aff2, aff1) = (value >> 48 & 0xff, value >> 32 & 0xff, value >> 16 & 0xff);
            Target::List {
                cluster: (aff3 << 16 | aff2 << 8 | aff1) as u32,
                range: (value >> 44 & 0xf) as u8,
                list: value as u16,
            }
        };
        Self {
            intid: (value >> 24 & 0xf) as u32,
            group1: matches!(register, SgiRegister::Sgi1r),
            target,
        }
    }

    /// Returns whether the CPU with `affinity` (Aff3.Aff2.Aff1.Aff0, one byte each) is a target; `is_sender`:
    /// it wrote the register.
    pub const fn targets(&self, affinity: u32, is_sender: bool) -> bool {
        match self.target {
            Target::Others => !is_sender,
            Target::List { cluster, range, list } => {
                let aff0 = affinity & 0xff;
                affinity >> 8 == cluster && aff0 >> 4 == range as u32 && list >> (aff0 & 0xf) & 1 != 0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SgiRegister, SgiRequest};

    #[test]
    fn a_target_list_names_cpus_of_one_cluster() {
        let value = 3 << 48 | 2 << 32 | 1 << 16 | 7 << 24 | 0b101;
        let request = SgiRequest::decode(SgiRegister::Sgi1r, value);
        assert_eq!((request.intid, request.group1), (7, true));
        assert!(request.targets(0x0302_0100, false) && request.targets(0x0302_0102, true));
        assert!(!request.targets(0x0302_0101, false));
        assert!(!request.targets(0x0302_0000, false) && !request.targets(0x0002_0100, false));
    }

    #[test]
    fn the_range_selector_moves_the_list() {
        let request = SgiRequest::decode(SgiRegister::Sgi0r, 1 << 44 | 1 << 1);
        assert!(!request.group1);
        assert!(request.targets(17, false) && !request.targets(1, false) && !request.targets(33, false));
    }

    #[test]
    fn irm_means_all_but_self() {
        let request = SgiRequest::decode(SgiRegister::Asgi1r, 1 << 40 | 0xffff);
        assert!(request.targets(0xff, false) && !request.targets(0, true));
    }
}
