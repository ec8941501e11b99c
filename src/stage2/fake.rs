//! Page frames in a map, for tests; the number of allocations can be limited.

extern crate std;

use std::collections::BTreeMap;

use super::TableMemory;
use crate::addr::{PAGE_SIZE, Pa};

/// Frames from 0x1000_0000 upwards.
#[derive(Default, Debug)]
pub struct FakeFrames {
    tables: BTreeMap<u64, [u64; 1]>,
    entries: BTreeMap<(u64, usize), u64>,
    next: u64,
    /// Frames in use.
    pub used: usize,
    /// Allocations that still succeed; `None` for no limit.
    pub budget: Option<usize>,
}

impl TableMemory for FakeFrames {
    fn alloc(&mut self, pages: usize) -> Option<Pa> {
        if let Some(budget) = &mut self.budget {
            *budget = budget.checked_sub(1)?;
        }
        let size = pages as u64 * PAGE_SIZE;
        let start = (0x1000_0000 + self.next).next_multiple_of(size);
        self.next = start + size - 0x1000_0000;
        for page in 0..pages as u64 {
            self.tables.insert(start + page * PAGE_SIZE, [0]);
        }
        self.used += pages;
        Some(Pa(start))
    }

    fn free(&mut self, table: Pa, pages: usize) {
        for page in 0..pages as u64 {
            let at = table.0 + page * PAGE_SIZE;
            assert!(self.tables.remove(&at).is_some(), "freed twice: {at:#x}");
            self.entries.retain(|(table, _), _| *table != at);
        }
        self.used -= pages;
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        assert!(
            self.tables.contains_key(&table.0),
            "read of a freed table {table}"
        );
        self.entries.get(&(table.0, index)).copied().unwrap_or(0)
    }

    fn write(&mut self, table: Pa, index: usize, entry: u64) {
        assert!(
            self.tables.contains_key(&table.0),
            "write to a freed table {table}"
        );
        self.entries.insert((table.0, index), entry);
    }
}
