//! EL2's log, read from BAR 0 without an exit.

use ringvisor::abi::log;

use super::Hypervisor;

impl dyn Hypervisor + '_ {
    /// Returns the lines of EL2's log, oldest first, also those from before a reset of the machine. `None` if
    /// EL2 shows none. Control characters are replaced: names of zones are in it.
    #[must_use]
    pub fn log(&self) -> Option<String> {
        let copy: Vec<u8> = (0..log::SIZE)
            .step_by(8)
            .flat_map(|at| self.bar_word(log::OFFSET + at).to_le_bytes())
            .collect();
        let lines = log::intact(&copy, self.bar_word(log::OFFSET + log::WRITTEN))?;
        let text = String::from_utf8_lossy(&lines).replace("\r\n", "\n");
        Some(text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"))
    }
}

#[cfg(test)]
mod tests {
    use ringvisor::abi::log;

    use crate::hv::Hypervisor;
    use crate::hv::fake::FakeEl2;

    #[test]
    fn lines_are_shown_without_control_characters() {
        let el2 = FakeEl2::new(1).unwrap();
        let hv: &dyn Hypervisor = &el2;
        assert_eq!(hv.log(), None);
        let text = b"[EL2 1] one\r\n[EL2 2] \x1b[2Jtwo\r\n";
        el2.set_bar_word(log::OFFSET, u64::from_le_bytes(*b"RVEL2LOG"));
        el2.set_bar_word(log::OFFSET + log::WRITTEN, text.len() as u64);
        for (index, chunk) in text.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let at = log::OFFSET + log::SIZE - log::CAPACITY + index * 8;
            el2.set_bar_word(at, u64::from_le_bytes(word));
        }
        assert_eq!(hv.log().unwrap(), "[EL2 1] one\n[EL2 2] \u{fffd}[2Jtwo\n");
    }
}
