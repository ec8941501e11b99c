//! The PL031 real-time clock of a guest (Arm DDI 0224): [`Rtc`].
//!
//! Time is a base plus the caller's monotonic seconds; a guest that sets the clock changes its own base. The
//! match interrupt is due at [`Rtc::due`], when the caller's timer should call [`Rtc::poll`]; without a timer
//! the interrupt comes with the guest's next access.

use crate::primecell;
use crate::syndrome::Width;

/// Register offsets, named as in the manual.
pub mod registers {
    /// Data: seconds, read-only.
    pub const DR: u16 = 0x000;
    /// Match.
    pub const MR: u16 = 0x004;
    /// Load: sets the clock.
    pub const LR: u16 = 0x008;
    /// Control: bit 0, start, always reads 1.
    pub const CR: u16 = 0x00c;
    /// Interrupt mask; 1 enables.
    pub const IMSC: u16 = 0x010;
    /// Raw interrupt status, read-only.
    pub const RIS: u16 = 0x014;
    /// Masked interrupt status, read-only.
    pub const MIS: u16 = 0x018;
    /// Interrupt clear, write-only.
    pub const ICR: u16 = 0x01c;
}

use registers as reg;

/// PeriphID0-3: part 0x031, designer Arm, the revision of QEMU's.
const PERIPH_ID: [u8; 4] = [0x31, 0x10, 0x14, 0x00];

/// State of the device.
#[derive(Clone, Debug)]
pub struct Rtc {
    /// Seconds since 1970 at monotonic second 0, modulo 2^32.
    base: u32,
    load: u32,
    matching: u32,
    /// Monotonic second of the match, if one is set.
    due: Option<u64>,
    raw: bool,
    mask: bool,
}

impl Rtc {
    /// Returns a clock that reads `epoch_seconds` (since 1970) at monotonic second `now`.
    pub const fn new(epoch_seconds: u64, now: u64) -> Self {
        let base = (epoch_seconds as u32).wrapping_sub(now as u32);
        Self {
            base,
            load: 0,
            matching: 0,
            due: None,
            raw: false,
            mask: false,
        }
    }

    /// Resets the device: the clock continues, no match is set.
    pub const fn reset(&mut self) {
        self.matching = 0;
        self.due = None;
        self.raw = false;
        self.mask = false;
    }

    /// Returns the level of the interrupt output RTCINTR.
    pub const fn line(&self) -> bool {
        self.raw && self.mask
    }

    /// Returns the monotonic second at which [`Self::poll`] raises the interrupt.
    pub const fn due(&self) -> Option<u64> {
        self.due
    }

    /// Raises the match interrupt if it is due at `now`.
    pub fn poll(&mut self, now: u64) {
        if self.due.is_some_and(|due| now >= due) {
            self.due = None;
            self.raw = true;
        }
    }

    const fn seconds(&self, now: u64) -> u32 {
        self.base.wrapping_add(now as u32)
    }

    fn set_match(&mut self, now: u64) {
        let wait = self.matching.wrapping_sub(self.seconds(now));
        self.due = Some(now.saturating_add(wait.into()));
        self.poll(now);
    }

    /// Executes a load of `width` at `offset` in the page. Undefined offsets read as zero.
    pub fn read(&mut self, offset: u16, width: Width, now: u64) -> u32 {
        if width == Width::Double {
            return 0;
        }
        self.poll(now);
        let value = match offset {
            reg::DR => self.seconds(now),
            reg::MR => self.matching,
            reg::LR => self.load,
            reg::CR => 1,
            reg::IMSC => self.mask.into(),
            reg::RIS => self.raw.into(),
            reg::MIS => self.line().into(),
            _ => primecell::identification(PERIPH_ID, offset),
        };
        value & width.mask() as u32
    }

    /// Executes a store at `offset` in the page. Only 32-bit stores to registers have an effect.
    pub fn write(&mut self, offset: u16, width: Width, value: u64, now: u64) {
        if width != Width::Word {
            return;
        }
        self.poll(now);
        let value = value as u32;
        match offset {
            reg::MR => {
                self.matching = value;
                self.set_match(now);
            }
            reg::LR => {
                self.load = value;
                self.base = value.wrapping_sub(now as u32);
                if self.due.is_some() {
                    self.set_match(now);
                }
            }
            reg::IMSC => self.mask = value & 1 != 0,
            reg::ICR if value & 1 != 0 => self.raw = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rtc;
    use super::registers as reg;
    use crate::syndrome::Width;

    fn read(rtc: &mut Rtc, offset: u16, now: u64) -> u32 {
        rtc.read(offset, Width::Word, now)
    }

    fn write(rtc: &mut Rtc, offset: u16, value: u32, now: u64) {
        rtc.write(offset, Width::Word, value.into(), now);
    }

    #[test]
    fn it_shows_the_time() {
        let mut rtc = Rtc::new(1_800_000_000, 77);
        assert_eq!(read(&mut rtc, reg::DR, 77), 1_800_000_000);
        assert_eq!(read(&mut rtc, reg::DR, 177), 1_800_000_100);
        write(&mut rtc, reg::LR, 5, 200);
        assert_eq!(read(&mut rtc, reg::LR, 300), 5);
        assert_eq!(read(&mut rtc, reg::DR, 300), 105);
        assert_eq!(read(&mut rtc, reg::CR, 0), 1);
    }

    #[test]
    fn the_match_interrupt() {
        let mut rtc = Rtc::new(1000, 0);
        write(&mut rtc, reg::IMSC, 1, 0);
        write(&mut rtc, reg::MR, 1010, 0);
        assert_eq!(rtc.due(), Some(10));
        assert_eq!(read(&mut rtc, reg::RIS, 9), 0);
        rtc.poll(10);
        assert!(rtc.line());
        assert_eq!(read(&mut rtc, reg::MIS, 10), 1);
        write(&mut rtc, reg::IMSC, 0, 10);
        assert!(!rtc.line());
        assert_eq!(read(&mut rtc, reg::RIS, 10), 1);
        write(&mut rtc, reg::ICR, 1, 10);
        write(&mut rtc, reg::IMSC, 1, 10);
        assert!(!rtc.line());
        assert_eq!(rtc.due(), None, "once");
    }

    #[test]
    fn setting_the_clock_moves_the_match() {
        let mut rtc = Rtc::new(1000, 0);
        write(&mut rtc, reg::MR, 1100, 0);
        write(&mut rtc, reg::LR, 1099, 5);
        assert_eq!(rtc.due(), Some(6));
        write(&mut rtc, reg::LR, 1100, 5);
        assert_eq!(
            read(&mut rtc, reg::RIS, 5),
            1,
            "a match at the current time is raised at once"
        );
    }

    #[test]
    fn seconds_wrap_at_32_bits() {
        let mut rtc = Rtc::new(u64::from(u32::MAX), 0);
        assert_eq!(read(&mut rtc, reg::DR, 1), 0);
        assert_eq!(read(&mut rtc, reg::DR, u64::MAX), u32::MAX - 1);
        write(&mut rtc, reg::MR, 0, u64::MAX);
        rtc.poll(u64::MAX);
    }

    #[test]
    fn identification_and_other_accesses() {
        let mut rtc = Rtc::new(0, 0);
        let id = (0..4).fold(0, |id, n| {
            id | read(&mut rtc, 0xfe0 + 4 * n, 0) << (8 * u32::from(n))
        });
        assert_eq!(id, 0x0014_1031);
        for offset in (0..0x1000).step_by(if cfg!(miri) { 61 } else { 1 }) {
            for width in Width::ALL {
                if offset % 4 != 0 || width != Width::Word {
                    rtc.write(offset, width, u64::MAX, 0);
                }
            }
        }
        for offset in [reg::MR, reg::LR, reg::IMSC, reg::RIS] {
            assert_eq!(read(&mut rtc, offset, 0), 0);
        }
    }
}
