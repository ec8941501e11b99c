//! The device sides of the virtqueues: packets to the driver, packets from it, commands.

mod control;
mod receive;
mod transmit;
mod window;

pub use control::ControlQueue;
pub use receive::ReceiveQueue;
pub use transmit::TransmitQueue;
