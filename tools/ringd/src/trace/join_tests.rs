//! What [`super::join`] makes of what can happen.

use ringvirtio::trace::Kind;
use ringvisor::abi::counters::Exit;

use super::super::{Event, Source, Step, Trace};
use super::{Point, join};

const GUEST: Source = Source::Cpu(2);
const ROOT: Source = Source::Cpu(0);
const THREAD: Source = Source::Thread(0);
const SPI: u32 = 48;

/// A trace of disk 0 of zone 1, queue 0: stamp, who, what, head.
fn trace(events: &[(u64, Source, Step, u32)]) -> Trace {
    let events = events.iter().map(|&(stamp, source, step, value)| Event {
        stamp,
        source,
        step,
        zone: 1,
        slot: 0,
        queue: 0,
        value,
    });
    let mut trace = Trace {
        frequency: 1_000_000_000,
        cpus: 4,
        events: events.collect(),
        ..Trace::default()
    };
    trace.sort();
    trace
}

fn daemon(stamp: u64, kind: Kind, head: u32) -> (u64, Source, Step, u32) {
    (stamp, THREAD, Step::Daemon(kind), head)
}

#[test]
fn one_request_passes_every_point() {
    let joined = join(&trace(&[
        (10, GUEST, Step::Notify, 0),
        (11, GUEST, Step::Ring, 0),
        (12, GUEST, Step::EventInterrupt, 0),
        (10, GUEST, Step::Exit(Exit::Permission, 3), 0),
        daemon(20, Kind::Wake, 0),
        daemon(21, Kind::Service, 0),
        daemon(22, Kind::Popped, 7),
        daemon(23, Kind::Submitted, 7),
        daemon(30, Kind::Completed, 7),
        daemon(31, Kind::Used, 7),
        daemon(32, Kind::Raise, 0),
        (33, ROOT, Step::Doorbell, 0),
        (35, GUEST, Step::Inject(SPI), 0),
        (40, GUEST, Step::Acknowledge, 0),
    ]));
    assert_eq!((joined.requests.len(), joined.unfinished), (1, 0));
    let request = joined.requests[0];
    assert_eq!((request.zone, request.slot, request.head), (1, 0, 7));
    let stamps: Vec<u64> = request.points().map(|(_, stamp)| stamp).collect();
    assert_eq!(stamps, [10, 11, 12, 20, 22, 23, 30, 31, 32, 33, 35, 40]);
    assert_eq!(request.ticks(), 30);
}

#[test]
fn a_batch_shares_notification_and_interrupt_and_later_requests_do_not() {
    let joined = join(&trace(&[
        (10, GUEST, Step::Notify, 0),
        (11, GUEST, Step::Ring, 0),
        // The pending bit was set: no entry.
        (12, GUEST, Step::Notify, 0),
        daemon(20, Kind::Service, 0),
        daemon(21, Kind::Popped, 1),
        daemon(22, Kind::Popped, 2),
        // Notified after the look at the queue: for the next one.
        (23, GUEST, Step::Notify, 0),
        daemon(24, Kind::Submitted, 1),
        daemon(25, Kind::Submitted, 2),
        daemon(26, Kind::Completed, 2),
        daemon(27, Kind::Completed, 1),
        daemon(28, Kind::Used, 2),
        daemon(29, Kind::Used, 1),
        daemon(30, Kind::Raise, 0),
        daemon(31, Kind::Service, 0),
        daemon(32, Kind::Popped, 3),
        (33, ROOT, Step::Doorbell, 0),
        daemon(34, Kind::Completed, 3),
        daemon(35, Kind::Used, 3),
        daemon(36, Kind::Raise, 0),
        // The acknowledgement cannot be of the second interrupt: its doorbell comes later.
        (40, GUEST, Step::Acknowledge, 0),
        (41, ROOT, Step::Doorbell, 0),
        (50, GUEST, Step::Acknowledge, 0),
    ]));
    assert_eq!((joined.requests.len(), joined.unfinished), (3, 0));
    let of = |head: u16| {
        *joined
            .requests
            .iter()
            .find(|request| request.head == head)
            .unwrap()
    };
    for head in [1, 2] {
        assert_eq!(of(head).get(Point::Notify), Some(10));
        assert_eq!(of(head).get(Point::Raise), Some(30));
        assert_eq!(of(head).get(Point::Acknowledge), Some(40));
        // The daemon did not sleep, and the line was up: neither wake-up nor injection.
        assert_eq!(of(head).get(Point::Wake), None);
        assert_eq!(of(head).get(Point::Inject), None);
    }
    assert_eq!(of(3).get(Point::Notify), Some(23));
    assert_eq!(of(3).get(Point::Doorbell), Some(41));
    assert_eq!(of(3).get(Point::Acknowledge), Some(50));
}

#[test]
fn without_notification_and_without_interrupt() {
    let joined = join(&trace(&[
        // A wake-up before the notification is not this request's.
        daemon(1, Kind::Wake, 0),
        (2, GUEST, Step::Notify, 0),
        daemon(3, Kind::Service, 0),
        daemon(4, Kind::Popped, 1),
        daemon(5, Kind::Completed, 1),
        daemon(6, Kind::Used, 1),
        daemon(7, Kind::Suppressed, 0),
        daemon(8, Kind::Service, 0),
        daemon(9, Kind::Popped, 1),
        daemon(10, Kind::Completed, 1),
        daemon(11, Kind::Used, 1),
        daemon(12, Kind::Suppressed, 0),
    ]));
    let points: Vec<Vec<Point>> = joined
        .requests
        .iter()
        .map(|request| request.points().map(|(point, _)| point).collect())
        .collect();
    let inside = [Point::Popped, Point::Completed, Point::Used];
    let mut with = vec![Point::Notify];
    with.extend(inside);
    assert_eq!(points, [with, inside.to_vec()]);
}

#[test]
fn incomplete_requests_are_left_out() {
    let joined = join(&trace(&[
        // Popped before the recording began.
        daemon(1, Kind::Completed, 1),
        daemon(2, Kind::Used, 1),
        daemon(3, Kind::Raise, 0),
        (4, ROOT, Step::Doorbell, 0),
        (5, GUEST, Step::Acknowledge, 0),
        // In each stage at its end.
        daemon(10, Kind::Service, 0),
        daemon(11, Kind::Popped, 2),
        daemon(11, Kind::Popped, 3),
        daemon(11, Kind::Popped, 4),
        daemon(12, Kind::Used, 3),
        daemon(13, Kind::Raise, 0),
        daemon(14, Kind::Used, 4),
    ]));
    assert_eq!((joined.requests.len(), joined.unfinished), (0, 3));
}

#[test]
fn devices_and_queues_are_distinguished() {
    let mut both = trace(&[]);
    for slot in [0, 1] {
        for (offset, source, step, value) in [
            (0, GUEST, Step::Notify, 0),
            (10, THREAD, Step::Daemon(Kind::Service), 0),
            (20, THREAD, Step::Daemon(Kind::Popped), 5),
            (30, THREAD, Step::Daemon(Kind::Used), 5),
            (40, THREAD, Step::Daemon(Kind::Raise), 0),
            (50, ROOT, Step::Doorbell, 0),
            (60, GUEST, Step::Acknowledge, 0),
        ] {
            both.events.push(Event {
                stamp: 100 + offset + u64::from(slot),
                source,
                step,
                zone: 1,
                slot,
                queue: 3,
                value,
            });
        }
    }
    both.sort();
    let joined = join(&both);
    assert_eq!(joined.requests.len(), 2);
    for request in joined.requests {
        let base = 100 + u64::from(request.slot);
        assert_eq!(request.get(Point::Notify), Some(base));
        assert_eq!(request.get(Point::Acknowledge), Some(base + 60));
        assert_eq!(request.queue, 3);
    }
}
