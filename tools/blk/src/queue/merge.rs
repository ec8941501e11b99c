//! [`MergePool`]: buffer lists of operations that carry several requests.

use ringvirtio::buffers::IoList;

/// The lists. One in use is taken out of `free`; the last one released is the first one used again, so they
/// are as few, and grow as little, as the traffic needs.
#[derive(Default)]
pub struct MergePool {
    lists: Vec<IoList>,
    free: Vec<u16>,
}

impl MergePool {
    /// Returns an empty list and its number.
    pub fn acquire(&mut self) -> Option<(u16, &mut IoList)> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.lists.push(IoList::default());
            self.free.reserve(self.lists.len());
            // Fewer than heads: each is of two or more.
            self.lists.len() as u16 - 1
        });
        let list = self.lists.get_mut(usize::from(index))?;
        list.clear();
        Some((index, list))
    }

    /// Releases a list, for use again.
    pub fn release(&mut self, index: u16) {
        self.free.push(index);
    }
}
