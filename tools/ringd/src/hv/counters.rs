//! EL2's counters and trace buffers, read from BAR 0 without an exit.

use ringvisor::abi::counters::{self, CPU_WORDS, CpuCounters, DEVICE_WORDS, DeviceCounters, word};
use ringvisor::abi::trace::{self, RECORD_SIZE};
use zerocopy::transmute;

use super::Hypervisor;

impl dyn Hypervisor + '_ {
    /// Returns the counters of the CPU at this place in the information page; zeroes if there is none.
    pub fn cpu_counters(&self, index: usize) -> CpuCounters {
        let words: [u64; CPU_WORDS] = self.words(counters::cpu(index));
        transmute!(words)
    }

    /// Returns the counters of a device.
    pub fn device_counters(&self, zone: u8, slot: u8) -> DeviceCounters {
        let words: [u64; DEVICE_WORDS] = self.words(counters::device(zone, slot.into()));
        transmute!(words)
    }

    fn words<const N: usize>(&self, offset: Option<usize>) -> [u64; N] {
        std::array::from_fn(|index| offset.map_or(0, |offset| self.bar_word(offset + index * 8)))
    }

    /// Returns the number of records that a CPU has ever written to its trace buffer.
    pub fn trace_head(&self, cpu: usize) -> u64 {
        counters::cpu(cpu).map_or(0, |offset| self.bar_word(offset + word::TRACE_HEAD * 8))
    }

    /// Appends a CPU's trace records from number `from` on to `into`; `capacity` is the information page's.
    /// Returns the number to continue with, and how many had been overwritten.
    pub fn read_trace(&self, cpu: usize, capacity: u64, from: u64, into: &mut Vec<(u64, u64)>) -> (u64, u64) {
        let head = self.trace_head(cpu);
        let first = from.max(head.saturating_sub(capacity));
        let Some(rings) = usize::try_from(capacity).ok().filter(|capacity| *capacity > 0) else {
            return (head, 0);
        };
        let begin = into.len();
        for number in first..head {
            let place = cpu * rings + (number % capacity) as usize;
            let at = trace::OFFSET + place * RECORD_SIZE;
            into.push((self.bar_word(at), self.bar_word(at + 8)));
        }
        let intact = trace::first_intact(self.trace_head(cpu), capacity);
        let bad = intact.saturating_sub(first).min(head.saturating_sub(first));
        into.drain(begin..begin + bad as usize);
        (head, first.saturating_sub(from) + bad)
    }
}

#[cfg(test)]
mod tests {
    use ringvisor::abi::counters::word;
    use ringvisor::abi::trace::RECORD_SIZE;
    use ringvisor::abi::{counters, trace};

    use crate::hv::Hypervisor;
    use crate::hv::fake::FakeEl2;

    #[test]
    fn counters_are_at_their_places() {
        let el2 = FakeEl2::new(2).unwrap();
        let second = counters::cpu(1).unwrap();
        el2.set_bar_word(second + (word::EXITS + counters::Exit::Irq as usize) * 8, 7);
        el2.set_bar_word(second + word::LONGEST * 8, 99);
        el2.set_bar_word(counters::device(3, 2).unwrap() + 16, 5);
        let hv: &dyn Hypervisor = &el2;
        let counters = hv.cpu_counters(1);
        assert_eq!((counters.exits[6], counters.longest), (7, 99));
        assert_eq!(hv.cpu_counters(0).exits, [0; counters::MAX_EXITS]);
        assert_eq!(hv.cpu_counters(1000).longest, 0);
        assert_eq!(hv.device_counters(3, 2).doorbells, 5);
    }

    #[test]
    fn the_trace_is_read_from_where_it_ended_and_losses_are_counted() {
        let el2 = FakeEl2::new(2).unwrap();
        let head = |number| el2.set_bar_word(counters::cpu(1).unwrap() + word::TRACE_HEAD * 8, number);
        let put = |number: u64| {
            let at = trace::OFFSET + (4 + number as usize % 4) * RECORD_SIZE;
            el2.set_bar_word(at, number);
            el2.set_bar_word(at + 8, number + 100);
            head(number + 1);
        };
        let hv: &dyn Hypervisor = &el2;
        let mut records = Vec::new();
        put(0);
        put(1);
        assert_eq!(hv.read_trace(1, 4, 0, &mut records), (2, 0));
        assert_eq!(records, [(0, 100), (1, 101)]);
        (2..9).for_each(put);
        records.clear();
        // Of the four that are there, the oldest may be on its way to be overwritten.
        assert_eq!(hv.read_trace(1, 4, 2, &mut records), (9, 4));
        assert_eq!(records, [(6, 106), (7, 107), (8, 108)]);
        assert_eq!(hv.read_trace(1, 0, 9, &mut records), (9, 0));
        assert_eq!(hv.read_trace(0, 4, 0, &mut records), (0, 0));
    }
}
