//! The messages of the vhost-user protocol that the front end sends, as bytes, and its replies, which are
//! untrusted.
//!
//! The `vhost` crate's front end checks each message against what was negotiated over the same object, so it
//! cannot continue a connection that another process has negotiated.

/// Bytes of a message's header.
pub const HEADER: usize = 12;
/// Most bytes of a reply's payload: `struct vring_addr` is the largest that this front end could get.
pub const PAYLOAD_MAX: usize = 64;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Feature bit of the connection, not of the device: there are protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Protocol feature: several queues.
pub const MQ: u64 = 1 << 0;
/// Protocol feature: a message may ask for a reply that says whether it was carried out.
pub const REPLY_ACK: u64 = 1 << 3;

/// Requests of a front end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Request {
    /// Returns the features that the server offers.
    GetFeatures = 1,
    /// Sets features.
    SetFeatures = 2,
    /// Takes the connection into use.
    SetOwner = 3,
    /// Shares memory.
    SetMemTable = 5,
    /// Sets a queue's size.
    SetVringNum = 8,
    /// Sets a queue's addresses.
    SetVringAddr = 9,
    /// Sets where a queue begins.
    SetVringBase = 10,
    /// Stops a queue; returns where it would continue.
    GetVringBase = 11,
    /// Sets the descriptor by which a queue is notified, and starts it.
    SetVringKick = 12,
    /// Sets the descriptor by which the server notifies.
    SetVringCall = 13,
    /// Returns the protocol features that the server offers.
    GetProtocolFeatures = 15,
    /// Sets protocol features.
    SetProtocolFeatures = 16,
    /// Returns how many queues the server has.
    GetQueueNum = 17,
    /// Lets a queue transfer data, or not.
    SetVringEnable = 18,
}

/// A reply that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplyError {
    /// Its flags are not those of a reply of this version.
    #[error("a reply with flags {0:#x}, expected 0x5")]
    Flags(u32),
    /// It is for another request.
    #[error("a reply to request {found}, expected one to {expected}")]
    Request {
        /// In its header.
        found: u32,
        /// What was asked.
        expected: u32,
    },
    /// It has another size.
    #[error("a reply of {found} bytes, expected {expected}")]
    Size {
        /// In its header.
        found: u32,
        /// Of the payload.
        expected: usize,
    },
    /// It names another queue.
    #[error("a reply for queue {found}, expected {expected}")]
    Queue {
        /// In its payload.
        found: u32,
        /// What was asked.
        expected: u32,
    },
}

/// Returns a message's bytes.
#[must_use]
pub fn encode(request: Request, need_reply: bool, payload: &[u8]) -> Vec<u8> {
    let flags = VERSION | if need_reply { NEED_REPLY } else { 0 };
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let header = [request as u32, flags, size];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(payload);
    bytes
}

/// Checks the header of a reply to `request`, whose payload has `expected` bytes.
///
/// # Errors
/// It is another message.
pub fn check_reply(request: Request, header: [u8; HEADER], expected: usize) -> Result<(), ReplyError> {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = header;
    let found = u32::from_le_bytes([a, b, c, d]);
    let flags = u32::from_le_bytes([e, f, g, h]);
    let size = u32::from_le_bytes([i, j, k, l]);
    if flags & !NEED_REPLY != VERSION | REPLY {
        return Err(ReplyError::Flags(flags));
    }
    if found != request as u32 {
        let expected = request as u32;
        return Err(ReplyError::Request { found, expected });
    }
    if usize::try_from(size) != Ok(expected) {
        return Err(ReplyError::Size {
            found: size,
            expected,
        });
    }
    Ok(())
}

/// Returns `struct vhost_vring_state`: a queue and a number.
#[must_use]
pub fn vring_state(queue: u16, number: u32) -> [u8; 8] {
    (u64::from(number) << 32 | u64::from(queue)).to_le_bytes()
}

/// Parses the reply to [`Request::GetVringBase`]: the index of the next available entry.
///
/// # Errors
/// It is another queue's.
pub fn vring_base(queue: u16, payload: [u8; 8]) -> Result<u32, ReplyError> {
    let both = u64::from_le_bytes(payload);
    let (found, base) = (both as u32, (both >> 32) as u32);
    if found == u32::from(queue) {
        Ok(base)
    } else {
        let expected = queue.into();
        Err(ReplyError::Queue { found, expected })
    }
}

/// Returns `struct vhost_vring_addr`: the areas of a queue, by the front end's addresses.
#[must_use]
pub fn vring_addr(queue: u16, desc: u64, avail: u64, used: u64) -> Vec<u8> {
    let mut bytes = u64::from(queue).to_le_bytes().to_vec();
    // No log of the used ring.
    for address in [desc, used, avail, 0] {
        bytes.extend(address.to_le_bytes());
    }
    bytes
}

/// A region of the guest's memory. Its addresses at the front end are the guest's own, so that they mean the
/// same to each daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Guest-physical start.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Offset in its file.
    pub offset: u64,
}

/// Returns the payload of [`Request::SetMemTable`].
#[must_use]
pub fn mem_table(regions: &[Region]) -> Vec<u8> {
    let mut bytes = (regions.len() as u64).to_le_bytes().to_vec();
    for region in regions {
        for word in [region.start, region.len, region.start, region.offset] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{
        HEADER, Region, ReplyError, Request, check_reply, encode, mem_table, vring_addr, vring_base,
        vring_state,
    };

    fn header(words: [u32; 3]) -> [u8; HEADER] {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn messages_as_bytes() {
        assert_eq!(
            encode(Request::SetFeatures, true, &[7; 8]),
            [&header([2, 9, 8])[..], &[7; 8]].concat()
        );
        assert_eq!(vring_state(3, 256), [3, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(vring_addr(1, 2, 3, 4).len(), 40);
        assert_eq!(vring_addr(1, 2, 3, 4)[16], 4, "the used ring comes second");
        let region = Region {
            start: 1 << 30,
            len: 4096,
            offset: 8192,
        };
        assert_eq!(mem_table(&[region, region]).len(), 8 + 2 * 32);
    }

    #[test]
    fn replies_are_checked() {
        let reply = |words| check_reply(Request::GetFeatures, header(words), 8);
        assert_eq!(reply([1, 5, 8]), Ok(()));
        assert_eq!(reply([1, 1, 8]), Err(ReplyError::Flags(1)));
        assert_eq!(reply([1, 6, 8]), Err(ReplyError::Flags(6)));
        assert_eq!(
            reply([2, 5, 8]),
            Err(ReplyError::Request {
                found: 2,
                expected: 1
            })
        );
        assert_eq!(
            reply([1, 5, u32::MAX]),
            Err(ReplyError::Size {
                found: u32::MAX,
                expected: 8
            })
        );
        assert_eq!(vring_base(1, [1, 0, 0, 0, 9, 0, 0, 0]), Ok(9));
        assert!(vring_base(0, [1, 0, 0, 0, 9, 0, 0, 0]).is_err());
    }
}
