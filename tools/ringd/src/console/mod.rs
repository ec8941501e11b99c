//! A zone's consoles: the guest's output, kept and followed, and its users' input.
//!
//! One is the UART: EL2 holds it and a byte ring each way. The others are ports of the zone's console device.
//! The reactor moves output from the ring into the [`Scrollback`] ([`Console::pump`],
//! [`Console::pump_port`]); any number of readers follow it at their own pace ([`Console::read`]),
//! and none of them can slow the guest or the reactor down. Input goes straight into the ring.

mod marks;
pub mod scrollback;
mod tail;

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use ringvisor::ring::ZoneWindow;
use ringvisor::ring::console::{InputProducer, OutputConsumer};

use crate::hv::Hypervisor;
use marks::Marks;
use scrollback::{Chunk, Scrollback};
pub use tail::Tail;

/// Bytes copied at once.
const STEP: usize = 4096;

/// A zone's console.
#[derive(Default)]
pub struct Console {
    /// Innermost lock, held for a copy at a time.
    state: Mutex<State>,
    changed: Condvar,
    /// The zone whose ring takes input, if any. Held while input is written, so that none gets into the ring
    /// of a later zone with the same number.
    input: Mutex<Option<(u8, InputProducer)>>,
    /// Where input of a port goes.
    port: Mutex<Option<PortEnd>>,
}

/// What goes to a port of a console device.
pub enum PortInput<'a> {
    /// What is typed.
    Bytes(&'a [u8]),
    /// The size of the terminal.
    Size(ringconsole::Size),
}

/// Passes input to a port. Returns how many bytes it has taken, `None` if there is no device any more.
pub type PortEnd = Box<dyn Fn(PortInput<'_>) -> Option<usize> + Send>;

#[derive(Default)]
struct State {
    kept: Scrollback,
    marks: Marks,
    output: OutputConsumer,
    closed: bool,
}

impl State {
    /// Adds text of the daemon's own; the guest's output continues at `guest` behind it.
    fn insert(&mut self, text: &str, guest: u64) {
        let begin = self.kept.end();
        self.kept.push(text.as_bytes());
        self.marks.insert(begin, self.kept.end(), guest);
        self.marks.forget(self.kept.start());
    }
}

impl Console {
    /// Moves the output in the zone's ring to the scroll-back. Called by the reactor; also once after the
    /// zone's end.
    pub fn pump(&self, window: &ZoneWindow) {
        let mut buffer = [0; STEP];
        let mut state = self.state.lock();
        loop {
            let read = state.output.read(&window.output(), &mut buffer);
            if read.dropped > 0 {
                let note = format!(
                    "\r\n[ringd: {} bytes of console output were lost here]\r\n",
                    read.dropped
                );
                let guest = state.output.position().saturating_sub(read.len as u64);
                state.insert(&note, guest);
            }
            state.kept.push(buffer.get(..read.len).unwrap_or_default());
            if read.len == 0 {
                break;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Moves the output in a port's ring to the scroll-back. Called by the reactor, and when a daemon begins.
    pub fn pump_port(&self, port: &ringconsole::Port) {
        let mut buffer = [0; STEP];
        let mut state = self.state.lock();
        loop {
            let position = state.output.position();
            let read = port.read_output(position, &mut buffer);
            if read.dropped > 0 {
                let note = format!("\r\n[ringd: {} bytes of output were lost here]\r\n", read.dropped);
                state.insert(&note, position.saturating_add(read.dropped));
            }
            state.kept.push(buffer.get(..read.len).unwrap_or_default());
            state.output = OutputConsumer::starting_at(read.next);
            if read.len == 0 {
                break;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Adds a text line of the daemon's own.
    pub fn note(&self, text: &str) {
        let mut state = self.state.lock();
        let guest = state.output.position();
        state.insert(&format!("\r\n[ringd: {text}]\r\n"), guest);
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the output: no more will come.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Whether no more will come.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Returns the newest output, for the next daemon.
    pub fn tail(&self) -> Tail {
        let state = self.state.lock();
        Tail::of(&state.kept, &state.marks)
    }

    /// Returns the console of a zone that an earlier daemon ended: no more comes.
    pub fn ended(tail: Tail) -> Self {
        let (kept, marks) = tail.into_parts();
        let state = State {
            kept,
            marks,
            closed: true,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            ..Self::default()
        }
    }

    /// Returns the position of the oldest byte kept.
    pub fn start(&self) -> u64 {
        self.state.lock().kept.start()
    }

    /// Returns how many bytes the guest had printed at a position; another daemon finds the place by
    /// [`Self::position_of`].
    pub fn guest_position(&self, position: u64) -> u64 {
        self.state.lock().marks.guest(position)
    }

    /// Returns the position at which a reader continues who has seen `guest` bytes of the guest's output.
    pub fn position_of(&self, guest: u64) -> u64 {
        let state = self.state.lock();
        state
            .marks
            .position(guest)
            .clamp(state.kept.start(), state.kept.end())
    }

    /// Waits until there are bytes at or behind `position`, then returns up to 4 KiB of them. Returns `None`
    /// after the end, and an empty chunk after `timeout`.
    pub fn read(&self, position: u64, timeout: Duration) -> Option<Chunk> {
        let mut state = self.state.lock();
        if state.kept.end() <= position && !state.closed {
            self.changed.wait_for(&mut state, timeout);
        }
        let chunk = state.kept.read(position, STEP);
        (!chunk.bytes.is_empty() || !state.closed).then_some(chunk)
    }

    /// Directs input to this zone's ring from now on.
    pub fn open_input(&self, hv: &dyn Hypervisor, zone: u8) {
        let producer = hv
            .shared()
            .window(zone)
            .map(|window| (zone, InputProducer::attach(&window.input())));
        *self.input.lock() = producer;
    }

    /// Directs input to a port from now on.
    pub fn open_port(&self, end: PortEnd) {
        *self.port.lock() = Some(end);
    }

    /// Refuses input from now on.
    pub fn close_input(&self) {
        *self.input.lock() = None;
        *self.port.lock() = None;
    }

    /// Puts as much of `bytes` into a port's input as there is room for and returns how many; `None` if the
    /// zone has ended.
    pub fn type_into_port(&self, bytes: &[u8]) -> Option<usize> {
        self.port.lock().as_ref()?(PortInput::Bytes(bytes))
    }

    /// A terminal that shows the console has this size. Returns whether the guest can see it.
    pub fn resize(&self, size: ringconsole::Size) -> bool {
        let port = self.port.lock();
        port.as_ref()
            .is_some_and(|port| port(PortInput::Size(size)).is_some())
    }

    /// Puts as much of `bytes` into the zone's input as there is room for and returns how many; `None` if the
    /// zone has ended.
    pub fn type_in(&self, hv: &dyn Hypervisor, bytes: &[u8]) -> Option<usize> {
        let mut input = self.input.lock();
        let Some((zone, producer)) = input.as_mut() else {
            drop(input);
            return self.type_into_port(bytes);
        };
        let taken = producer.write(&hv.shared().window(*zone)?.input(), bytes);
        if taken > 0 {
            hv.console_input(*zone);
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Console;
    use crate::hv::Hypervisor;
    use crate::hv::SharedPage;
    use crate::hv::fake::FakeEl2;
    use ringvisor::ring::console::{InputConsumer, OutputProducer};

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn output_is_kept_and_followed_to_its_end() {
        let page = SharedPage::private().unwrap();
        let window = page.window(1).unwrap();
        let console = Console::default();
        let mut guest = OutputProducer::new();
        assert_eq!(console.read(0, NOW).unwrap().bytes, b"");
        guest.write(&window.output(), b"hello ");
        console.pump(window);
        guest.write(&window.output(), b"world");
        console.pump(window);
        let chunk = console.read(0, NOW).unwrap();
        assert_eq!(
            (chunk.bytes.as_slice(), chunk.next, chunk.skipped),
            (&b"hello world"[..], 11, 0)
        );
        console.close();
        assert_eq!(console.read(0, NOW).unwrap().bytes.len(), 11);
        assert_eq!(console.read(11, NOW), None);
    }

    #[test]
    fn lost_output_is_reported() {
        let page = SharedPage::private().unwrap();
        let window = page.window(1).unwrap();
        let console = Console::default();
        let mut guest = OutputProducer::new();
        for _ in 0..17 {
            guest.write(&window.output(), &[b'x'; 4096]);
        }
        console.pump(window);
        let text = String::from_utf8(console.read(0, NOW).unwrap().bytes).unwrap();
        assert!(
            text.contains("[ringd: 4096 bytes of console output were lost here]"),
            "{text}"
        );
    }

    #[test]
    fn a_reader_continues_at_the_next_daemon() {
        let page = SharedPage::private().unwrap();
        let window = page.window(1).unwrap();
        let (first, mut guest) = (Console::default(), OutputProducer::new());
        guest.write(&window.output(), b"one ");
        first.pump(window);
        first.note("rebooting");
        guest.write(&window.output(), b"two ");
        first.pump(window);
        let seen = first.read(0, NOW).unwrap().next;
        assert_eq!(first.guest_position(seen), 8);

        // Nothing was lost.
        guest.write(&window.output(), b"three");
        let second = Console::default();
        second.pump(window);
        let text = |console: &Console, guest| {
            let bytes = console.read(console.position_of(guest), NOW).unwrap().bytes;
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(text(&second, 8), "three");
        // What is said at that place comes, too.
        second.note("taken over");
        assert_eq!(text(&second, 13), "\r\n[ringd: taken over]\r\n");

        // The ring has lost what was seen, and later what was not.
        for _ in 0..17 {
            guest.write(&window.output(), &[b'x'; 4096]);
        }
        let third = Console::default();
        third.pump(window);
        let lost = 13 + 4096;
        assert!(text(&third, lost).starts_with("xxx"));
        assert!(text(&third, 13).starts_with("\r\n[ringd: 4109 bytes of console output were lost here]"));
    }

    #[test]
    fn a_reader_is_woken() {
        let page = SharedPage::private().unwrap();
        let console = Console::default();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| console.read(0, Duration::from_secs(20)).map(|chunk| chunk.bytes));
            std::thread::sleep(Duration::from_millis(20));
            OutputProducer::new().write(&page.window(1).unwrap().output(), b"!");
            console.pump(page.window(1).unwrap());
            assert_eq!(reader.join().unwrap(), Some(b"!".to_vec()));
        });
    }

    #[test]
    fn input_stops_where_the_ring_is_full_and_when_the_zone_is_over() {
        let el2 = FakeEl2::new(1).unwrap();
        let console = Console::default();
        assert_eq!(console.type_in(&el2, b"early"), None);
        console.open_input(&el2, 2);
        assert_eq!(console.type_in(&el2, b"ls\r"), Some(3));
        let ring = el2.shared().window(2).unwrap().input();
        assert_eq!(InputConsumer::new().pop(&ring), Some(b'l'));
        assert_eq!(console.type_in(&el2, &[b'y'; 5000]), Some(4096 - 2));
        assert_eq!(console.type_in(&el2, b"z"), Some(0));
        assert_eq!(el2.console_inputs(), 2);
        console.close_input();
        assert_eq!(console.type_in(&el2, b"late"), None);
    }
}
