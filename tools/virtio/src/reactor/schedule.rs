//! [`Schedule`]: what a reactor has to do next for which of its queues.
//!
//! A queue's state is the set of lists that it is on. Lists hold each queue once at most, and none that was
//! removed.

/// A queue's index in the reactor's table, reused after its removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueIndex(pub u32);

/// The lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// To be serviced in this round.
    Ready,
    /// Serviced in this round, with requests left: to be serviced in the next.
    Deferred,
    /// Something completed, or a callback waits: to be published, and checked for quiescence.
    Dirty,
    /// Waits for the deadline of a rate limit.
    Deadline,
    /// Its notifications are disabled: its available ring is polled.
    Polled,
    /// Something was published whose interrupt is not decided.
    InterruptPending,
}

impl List {
    const COUNT: usize = 6;

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The lists of a reactor's queues.
#[derive(Default)]
pub struct Schedule {
    /// Of each queue, the lists that it is on, by [`List::bit`].
    states: Vec<u8>,
    lists: [Vec<QueueIndex>; List::COUNT],
}

impl Schedule {
    #[inline]
    fn list(&self, list: List) -> &[QueueIndex] {
        self.lists.get(list as usize).map_or(&[], Vec::as_slice)
    }

    /// Makes room for a queue, which is on no list.
    pub fn add(&mut self, queue: QueueIndex) {
        let len = queue.0 as usize + 1;
        if self.states.len() < len {
            self.states.resize(len, 0);
        }
    }

    /// Takes a queue off all lists.
    pub fn remove(&mut self, queue: QueueIndex) {
        self.lists
            .iter_mut()
            .for_each(|list| list.retain(|other| *other != queue));
        if let Some(state) = self.states.get_mut(queue.0 as usize) {
            *state = 0;
        }
    }

    /// Puts a queue on a list, unless it is on it.
    #[inline]
    pub fn insert(&mut self, list: List, queue: QueueIndex) {
        if let (Some(entries), Some(state)) = (
            self.lists.get_mut(list as usize),
            self.states.get_mut(queue.0 as usize),
        ) && *state & list.bit() == 0
        {
            *state |= list.bit();
            entries.push(queue);
        }
    }

    /// Takes the queue off a list that was put on it last.
    #[inline]
    pub fn pop(&mut self, list: List) -> Option<QueueIndex> {
        let queue = self.lists.get_mut(list as usize)?.pop()?;
        clear(&mut self.states, list, queue);
        Some(queue)
    }

    /// Takes those queues off a list of which `keep` does not hold.
    pub fn retain(&mut self, list: List, mut keep: impl FnMut(QueueIndex) -> bool) {
        let (states, entries) = (&mut self.states, self.lists.get_mut(list as usize));
        if let Some(entries) = entries {
            entries.retain(|&queue| {
                let keep = keep(queue);
                if !keep {
                    clear(states, list, queue);
                }
                keep
            });
        }
    }

    /// Puts those queues of `list` on the ready list of which `which` holds; they stay on `list`.
    pub fn make_ready(&mut self, list: List, mut which: impl FnMut(QueueIndex) -> bool) {
        let mut index = 0;
        while let Some(queue) = self.get(list, index) {
            if which(queue) {
                self.insert(List::Ready, queue);
            }
            index += 1;
        }
    }

    /// Moves the queues whose deadlines have passed to the ready list, and forgets those that have none any
    /// more.
    pub fn expire(&mut self, now: u64, deadline: impl Fn(QueueIndex) -> Option<u64>) {
        self.make_ready(List::Deadline, |queue| {
            deadline(queue).is_some_and(|at| at <= now)
        });
        self.retain(List::Deadline, |queue| deadline(queue).is_some_and(|at| at > now));
    }

    /// Moves the deferred queues to the ready list: the next round begins.
    #[inline]
    pub fn end_round(&mut self) {
        while let Some(queue) = self.pop(List::Deferred) {
            self.insert(List::Ready, queue);
        }
    }

    /// Returns the queue at a position of a list.
    #[inline]
    pub fn get(&self, list: List, index: usize) -> Option<QueueIndex> {
        self.list(list).get(index).copied()
    }

    /// Returns the queues on a list.
    #[inline]
    pub fn iter(&self, list: List) -> impl Iterator<Item = QueueIndex> {
        self.list(list).iter().copied()
    }

    /// Returns how many queues are on a list.
    #[inline]
    pub fn len(&self, list: List) -> usize {
        self.list(list).len()
    }

    /// Returns whether no queue is on a list.
    #[inline]
    pub fn is_empty(&self, list: List) -> bool {
        self.list(list).is_empty()
    }
}

#[inline]
fn clear(states: &mut [u8], list: List, queue: QueueIndex) {
    if let Some(state) = states.get_mut(queue.0 as usize) {
        *state &= !list.bit();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{List, QueueIndex, Schedule};

    const ALL: [List; List::COUNT] = [
        List::Ready,
        List::Deferred,
        List::Dirty,
        List::Deadline,
        List::Polled,
        List::InterruptPending,
    ];

    fn slots(schedule: &Schedule, list: List) -> Vec<u32> {
        schedule.iter(list).map(|queue| queue.0).collect()
    }

    fn of(count: u32) -> Schedule {
        let mut schedule = Schedule::default();
        (0..count).for_each(|queue| schedule.add(QueueIndex(queue)));
        schedule
    }

    #[test]
    fn a_queue_is_on_a_list_once_and_on_several() {
        let mut schedule = of(3);
        for queue in [1, 2, 1, 2] {
            schedule.insert(List::Ready, QueueIndex(queue));
        }
        schedule.insert(List::Dirty, QueueIndex(1));
        assert_eq!(slots(&schedule, List::Ready), [1, 2]);
        assert_eq!(schedule.pop(List::Ready), Some(QueueIndex(2)));
        schedule.insert(List::Ready, QueueIndex(2));
        assert_eq!(slots(&schedule, List::Ready), [1, 2]);
        schedule.remove(QueueIndex(1));
        assert!(schedule.is_empty(List::Dirty));
        assert_eq!(slots(&schedule, List::Ready), [2]);
        // Its queue is used again.
        schedule.add(QueueIndex(1));
        schedule.insert(List::Dirty, QueueIndex(1));
        assert_eq!(schedule.pop(List::Dirty), Some(QueueIndex(1)));
        assert_eq!(schedule.pop(List::Dirty), None);
    }

    #[test]
    fn a_deferred_queue_is_ready_in_the_next_round() {
        let mut schedule = of(2);
        schedule.insert(List::Ready, QueueIndex(0));
        while let Some(queue) = schedule.pop(List::Ready) {
            schedule.insert(List::Deferred, queue);
        }
        schedule.end_round();
        assert_eq!(
            (slots(&schedule, List::Ready), schedule.len(List::Deferred)),
            (vec![0], 0)
        );
    }

    #[test]
    fn deadlines_expire_or_are_forgotten() {
        let mut schedule = of(3);
        (0..3).for_each(|queue| schedule.insert(List::Deadline, QueueIndex(queue)));
        schedule.expire(10, |queue| {
            [Some(10), Some(11), None]
                .into_iter()
                .nth(queue.0 as usize)
                .flatten()
        });
        assert_eq!(slots(&schedule, List::Ready), [0]);
        assert_eq!(slots(&schedule, List::Deadline), [1]);
    }

    proptest! {
        // Whatever is done to it, a list holds no queue twice and none that was removed, and its states
        // agree.
        #[test]
        fn lists_and_states_agree(
            steps in proptest::collection::vec((0_u8..4, 0_usize..6, 0_u32..4), 0..100),
            keep in any::<u32>(),
        ) {
            let mut schedule = of(4);
            for (step, list, queue) in steps {
                let list = ALL[list];
                match step {
                    0 => schedule.insert(list, QueueIndex(queue)),
                    1 => drop(schedule.pop(list)),
                    2 => schedule.retain(list, |queue| keep >> queue.0 & 1 == 0),
                    _ => schedule.remove(QueueIndex(queue)),
                }
                for list in ALL {
                    for queue in 0..4 {
                        let count = slots(&schedule, list).iter().filter(|&&other| other == queue).count();
                        let state = schedule.states[queue as usize] & list.bit() != 0;
                        prop_assert_eq!(count, usize::from(state));
                    }
                }
            }
        }
    }
}
