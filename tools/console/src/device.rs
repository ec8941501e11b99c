//! [`Console`]: the device: its ports, their sizes, and the messages to its driver (5.3.6.2).
//!
//! Messages that are to be sent are bits in the ports' memory, so the next daemon sends what this one has
//! not. One that was sent when a daemon is killed may be sent again, which changes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use ringvirtio::virtio::feature;
use ringvirtio::{QueueHandler, QueueSetup, SetupError};

use crate::config::{self, CONFIG_LEN, Role};
use crate::memory::{PortMemory, Word};
use crate::port::{Port, Size};
use crate::stats::ConsoleStats;
use crate::virtio::{
    VIRTIO_CONSOLE_CONSOLE_PORT, VIRTIO_CONSOLE_DEVICE_ADD, VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_CONSOLE_PORT_OPEN, VIRTIO_CONSOLE_PORT_READY, VIRTIO_CONSOLE_RESIZE,
};

/// A queue with its counters, or why there is none.
pub type MadeQueue = Result<(Box<dyn QueueHandler>, Arc<ConsoleStats>), SetupError>;

/// Called when the configuration space has changed; must not block.
pub type OnResize = Box<dyn Fn() + Send>;

/// Messages in the order in which a port's are sent.
const MESSAGES: [u16; 4] = [
    VIRTIO_CONSOLE_DEVICE_ADD,
    VIRTIO_CONSOLE_CONSOLE_PORT,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_RESIZE,
];

/// Longest message: that of a size.
pub(crate) const MESSAGE_MAX: usize = 12;
/// Shortest message.
pub(crate) const MESSAGE_MIN: usize = 8;

/// A message to the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    /// Number of the port.
    port: usize,
    event: u16,
    bytes: [u8; MESSAGE_MAX],
    len: usize,
}

impl Message {
    fn new(port: usize, event: u16, size: Size) -> Self {
        let [i, j, k, l] = (port as u32).to_le_bytes();
        let [e, f] = event.to_le_bytes();
        let [a, b] = size.columns.to_le_bytes();
        let [c, d] = size.rows.to_le_bytes();
        let (value, len) = match event {
            VIRTIO_CONSOLE_RESIZE => (0, MESSAGE_MAX),
            VIRTIO_CONSOLE_DEVICE_ADD => (0, MESSAGE_MIN),
            _ => (1, MESSAGE_MIN),
        };
        Self {
            port,
            event,
            bytes: [i, j, k, l, e, f, value, 0, a, b, c, d],
            len,
        }
    }

    /// Returns it as the driver reads it.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A console device.
pub struct Console {
    name: String,
    ports: Vec<Arc<Port>>,
    /// Features of the driver, once it has set up a queue.
    features: Mutex<u64>,
    on_resize: Mutex<Option<OnResize>>,
}

impl Console {
    /// Returns a device with a port for each of these memories, of which there is one at least.
    #[must_use]
    pub fn new(name: String, memories: Vec<Arc<PortMemory>>) -> Arc<Self> {
        Arc::new(Self {
            name,
            ports: memories
                .into_iter()
                .map(|memory| Arc::new(Port::new(memory)))
                .collect(),
            features: Mutex::new(0),
            on_resize: Mutex::new(None),
        })
    }

    /// Returns what log lines call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its ports.
    #[must_use]
    pub fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    /// Returns the features that it offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        config::features(self.ports.len())
    }

    /// Returns the configuration space, with the size of the first port.
    #[must_use]
    pub fn space(&self) -> [u8; CONFIG_LEN] {
        let size = self.ports.first().map_or_else(Size::default, |port| port.size());
        config::space(size, self.ports.len())
    }

    /// Calls `notify` whenever the configuration space has changed.
    pub fn on_resize(&self, notify: OnResize) {
        *self.on_resize.lock().unwrap_or_else(PoisonError::into_inner) = Some(notify);
    }

    /// Sets the size of a port, if it is another one. The device's queues must be scheduled then. Returns
    /// whether it was another.
    pub fn set_size(&self, port: usize, size: Size) -> bool {
        let Some(found) = self.ports.get(port).filter(|found| found.size() != size) else {
            return false;
        };
        found.set_size(size);
        self.want(port, VIRTIO_CONSOLE_RESIZE);
        if port == 0
            && let Some(notify) = &*self.on_resize.lock().unwrap_or_else(PoisonError::into_inner)
        {
            notify();
        }
        true
    }

    /// Returns the number of the group in which its queues are woken ([`ringvirtio::poll`]).
    pub(crate) fn group(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// A driver has set up a queue. Once it is that of messages, there are none after a reset, and after a
    /// take-over those that the last daemon has not sent.
    pub(crate) fn negotiated(&self, setup: &QueueSetup, role: Role) {
        let mut features = self.features.lock().unwrap_or_else(PoisonError::into_inner);
        *features = setup.features;
        if role != Role::ControlReceive {
            return;
        }
        let epoch = setup.epoch.wrapping_add(1);
        let Some(first) = self.ports.first() else { return };
        if first.memory().get(Word::Epoch) != epoch {
            self.ports
                .iter()
                .for_each(|port| port.memory().advance(Word::Messages, 0));
            first.memory().advance(Word::Epoch, epoch);
        }
    }

    /// A message to the driver is to be sent, if it has control queues.
    fn want(&self, port: usize, event: u16) {
        let features = self.features.lock().unwrap_or_else(PoisonError::into_inner);
        if *features & feature(VIRTIO_CONSOLE_F_MULTIPORT) == 0 {
            return;
        }
        if let Some(port) = self.ports.get(port) {
            let messages = port.memory().get(Word::Messages);
            port.memory().advance(Word::Messages, messages | bit(event));
        }
    }

    /// Returns the next message to the driver.
    pub(crate) fn next_message(&self) -> Option<Message> {
        self.ports.iter().enumerate().find_map(|(number, port)| {
            let messages = port.memory().get(Word::Messages);
            let mut in_order = MESSAGES.into_iter();
            let event = in_order.find(|event| messages & bit(*event) != 0)?;
            Some(Message::new(number, event, port.size()))
        })
    }

    /// A message was sent.
    pub(crate) fn sent(&self, message: &Message) {
        // Sizes are set by other threads.
        let _features = self.features.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(port) = self.ports.get(message.port) else {
            return;
        };
        let is_old = *message != Message::new(message.port, message.event, port.size());
        if !is_old {
            let messages = port.memory().get(Word::Messages);
            port.memory()
                .advance(Word::Messages, messages & !bit(message.event));
        }
    }

    /// The driver has sent a message. Returns whether it means something.
    pub(crate) fn received(&self, message: [u8; MESSAGE_MIN]) -> bool {
        let [a, b, c, d, e, f, g, h] = message;
        let (id, event, value) = (
            u32::from_le_bytes([a, b, c, d]),
            u16::from_le_bytes([e, f]),
            u16::from_le_bytes([g, h]),
        );
        let port = usize::try_from(id).unwrap_or(usize::MAX);
        match (event, value) {
            (VIRTIO_CONSOLE_DEVICE_READY, 1) => {
                (0..self.ports.len()).for_each(|port| self.want(port, VIRTIO_CONSOLE_DEVICE_ADD));
                true
            }
            (VIRTIO_CONSOLE_PORT_READY, 1) if port < self.ports.len() => {
                for event in [
                    VIRTIO_CONSOLE_CONSOLE_PORT,
                    VIRTIO_CONSOLE_PORT_OPEN,
                    VIRTIO_CONSOLE_RESIZE,
                ] {
                    self.want(port, event);
                }
                true
            }
            // It opens ports and closes them: their output is read in any case.
            (VIRTIO_CONSOLE_PORT_OPEN, _) => port < self.ports.len(),
            // It could not set itself, or a port, up.
            (VIRTIO_CONSOLE_DEVICE_READY | VIRTIO_CONSOLE_PORT_READY, 0) => true,
            _ => false,
        }
    }
}

const fn bit(event: u16) -> u64 {
    1 << event
}
