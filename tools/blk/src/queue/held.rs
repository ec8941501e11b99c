//! [`Held`]: requests that failed and wait to be retried ([`OnError::Stop`](crate::control::OnError::Stop)).

/// While there are any, the queue is stopped. They stay in the in-flight log.
pub struct Held {
    pub heads: Vec<u16>,
    /// They are to be retried at the next service.
    pub retry: bool,
}

impl Held {
    pub fn new(size: usize) -> Self {
        Self {
            heads: Vec::with_capacity(size),
            retry: false,
        }
    }
}
