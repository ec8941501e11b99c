//! Network devices in `ringctl top`: rates between two reports.

use crate::device::report::{DeviceStats, QueueStats, rise};

/// The columns of the table: heading, width, whether it is right-aligned.
pub const COLUMNS: [(&str, u16, bool); 9] = [
    ("ZONE", 8, false),
    ("NET", 5, false),
    ("RECV/s", 7, true),
    ("SEND/s", 7, true),
    ("R MB/s", 6, true),
    ("S MB/s", 6, true),
    ("DROP/s", 6, true),
    ("STALL/s", 7, true),
    ("IRQ/s", 6, true),
];

/// A network device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetRow {
    /// Its zone.
    pub zone: String,
    /// Its name in a Linux guest.
    pub name: String,
    /// Packets received and sent by the guest per second, MB received and sent, packets dropped, times that a
    /// queue waited for buffers of the driver or for room in the port, interrupts.
    pub numbers: [f64; 7],
}

impl NetRow {
    /// Returns the rows of all devices from the report `before` and the one `now`; `rate` turns counts into
    /// rates per second.
    pub fn all(before: &[DeviceStats], now: &[DeviceStats], rate: impl Fn(u64) -> f64) -> Vec<Self> {
        let row = |(place, device): (usize, &DeviceStats)| {
            let earlier = now.iter().take(place).filter(|other| other.zone == device.zone);
            let old = before
                .iter()
                .find(|old| (&old.zone, old.slot) == (&device.zone, device.slot));
            Self {
                zone: device.zone.clone(),
                name: format!("eth{}", earlier.count()),
                numbers: numbers(old, device, &rate),
            }
        };
        now.iter().enumerate().map(row).collect()
    }

    /// Returns the cells of the row; `number` formats a number.
    pub fn cells(&self, number: fn(f64) -> String) -> Vec<String> {
        let mut cells = vec![self.zone.clone(), self.name.clone()];
        cells.extend(self.numbers.map(number));
        cells
    }
}

fn numbers(old: Option<&DeviceStats>, now: &DeviceStats, rate: impl Fn(u64) -> f64) -> [f64; 7] {
    let counter = |queue: &QueueStats, matches: &dyn Fn(&str) -> bool| -> u64 {
        let named = queue.counters.iter().filter(|(name, _)| matches(name));
        named.map(|(_, count)| count).sum()
    };
    // Queues that receive are even, those that transmit odd; the last one, for commands, has no packets.
    let risen = |of: &dyn Fn(usize) -> bool, matches: &dyn Fn(&str) -> bool| -> u64 {
        let queues = now.queues.iter().filter(|queue| of(queue.queue));
        queues
            .map(|queue| {
                let before = old.and_then(|old| old.queues.iter().find(|old| old.queue == queue.queue));
                rise(
                    before.map_or(0, |before| counter(before, matches)),
                    counter(queue, matches),
                )
            })
            .sum()
    };
    let (receive, transmit, any) = (|queue| queue % 2 == 0, |queue| queue % 2 == 1, |_| true);
    let is = |wanted: &'static str| move |name: &str| name == wanted;
    [
        rate(risen(&receive, &is("packets"))),
        rate(risen(&transmit, &is("packets"))),
        rate(risen(&receive, &is("bytes"))) / 1e6,
        rate(risen(&transmit, &is("bytes"))) / 1e6,
        rate(risen(&any, &|name| name.starts_with("dropped_"))),
        rate(risen(&any, &|name| name == "no_buffers" || name == "no_room")),
        rate(rise(old.map_or(0, |old| old.interrupts), now.interrupts)),
    ]
}

#[cfg(test)]
mod tests {
    use super::NetRow;
    use crate::device::report::{DeviceStats, QueueStats};

    #[test]
    fn rates_by_direction() {
        let queue = |queue, packets: u64, dropped| QueueStats {
            queue,
            counters: [
                ("packets".to_owned(), packets),
                ("bytes".to_owned(), packets * 1000),
                ("dropped_filtered".to_owned(), dropped),
                ("no_buffers".to_owned(), 1),
            ]
            .into(),
            ..QueueStats::default()
        };
        let device = |zone: &str, slot, n: u64| DeviceStats {
            zone: zone.into(),
            slot,
            interrupts: 7 * n,
            queues: vec![queue(0, 100 * n, 0), queue(1, 300 * n, 2 * n), queue(2, 0, 0)],
            ..DeviceStats::default()
        };
        let devices = |n: u64| [device("a", 1, n), device("b", 1, n), device("a", 2, n)];
        let rows = NetRow::all(&devices(1), &devices(3), |count| count as f64 / 2.0);
        let names: Vec<_> = rows.iter().map(|row| (&*row.zone, &*row.name)).collect();
        assert_eq!(names, [("a", "eth0"), ("b", "eth0"), ("a", "eth1")]);
        assert_eq!(rows[0].numbers, [100.0, 300.0, 0.1, 0.3, 2.0, 0.0, 7.0]);
        // A device that was not there before.
        assert_eq!(
            NetRow::all(&[], &devices(1), |count| count as f64)[0].numbers[5],
            3.0
        );
    }
}
