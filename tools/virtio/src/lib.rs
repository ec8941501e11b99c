//! The device side of virtio: guest memory, split virtqueues, the in-flight log and the reactor that drives them.
//!
//! Knows no device. A device is a package of its own that implements [`QueueHandler`] on top of a [`VirtQueue`], and
//! [`Backend`] if it has I/O of its own. Nothing here knows of EL2 either: the daemon in root Linux uses it with
//! guest RAM in huge pages and `/dev/uioN` as the event source; tests use anonymous memory and an `eventfd`.
//!
//! # Contract with a device
//! ```text
//! pub trait QueueHandler: Send {                 // the device side of one virtqueue, driven by one reactor thread
//!     fn queue(&self) -> &VirtQueue;
//!     fn queue_mut(&mut self) -> &mut VirtQueue;
//!     fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()>;      // once, before the first `service`
//!     fn detach(&mut self, cx: &mut Context<'_>);                        // once, with nothing in flight
//!     fn service(&mut self, cx: &mut Context<'_>);                       // pops at most one round, starts requests
//!     fn complete(&mut self, tag: u64, result: i32, cx: &mut Context<'_>);
//!     fn abandon(&mut self, cx: &mut Context<'_>) -> bool;               // a queue that leaves: forget what waits
//!     fn retry(&mut self);                                               // the next `service` retries failed requests
//! }
//!
//! pub trait Backend: Any {                       // what a reactor owns for one kind of device, made on first use
//!     fn submit(&mut self, waiter: &mut Waiter); // once a round
//!     fn reap(&mut self, done: &mut Vec<Completion>);
//!     fn has_completions(&self) -> bool;         // no system call: asked while busy polling
//!     fn is_busy(&self) -> bool;                 // has work for the reactor's own thread: it must not sleep
//!     fn arm(&mut self) -> bool;                 // before sleeping; true: something completed meanwhile
//! }
//!
//! impl Context<'_> { pub fn backend<B: Backend + Default>(&mut self) -> (&mut B, &mut Waiter); }
//!
//! pub struct QueueSetup { ram, ring: RingAddresses, features, inflight: InflightArea, epoch, notify_driver, needs_reset }
//! impl VirtQueue {
//!     pub fn new(setup: QueueSetup) -> Result<Self, SetupError>;
//!     // popping                                   // completing
//!     pub fn begin_service(&mut self) -> bool;     pub fn complete(&mut self, head: u16, used_len: u32);
//!     pub fn begin_round(&mut self);               pub fn publish(&mut self) -> usize;
//!     pub fn has_next(&mut self) -> bool;          pub fn signal_overdue(&mut self);
//!     pub fn peek(&mut self) -> Result<u16, QueueFault>;
//!     pub fn walk(&self, head, &mut Buffers, &mut Buffers) -> Result<(), QueueFault>;
//!     pub fn accept(&mut self, head: u16);         pub fn fail(&mut self, fault: QueueFault);
//! }
//! handle.add(Box::new(handler)) -> QueueId        // ReactorHandle and Commands
//! ```
