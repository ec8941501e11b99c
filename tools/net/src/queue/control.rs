//! [`ControlQueue`]: the driver's commands (5.1.6.5). Each completes while it is serviced; carried out twice,
//! as after a kill, it has the same result.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ringvirtio::buffers::Buffers;
use ringvirtio::virtio::feature;
use ringvirtio::{Context, QueueFault, QueueHandler, QueueSetup, SetupError, VirtQueue};

use crate::backend::NetBackend;
use crate::device::Net;
use crate::filter::{MacTable, Modes};
use crate::mac::MacAddress;
use crate::stats::NetStats;
use crate::virtio::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST,
    VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_VLAN,
    VIRTIO_NET_CTRL_VLAN_ADD, VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_OK,
};

/// Most bytes of a command: tables of some 1300 addresses.
const COMMAND_MAX: usize = 8192;

/// The control queue of a device.
pub struct ControlQueue {
    queue: VirtQueue,
    net: Arc<Net>,
    stats: Arc<NetStats>,
    readable: Buffers,
    writable: Buffers,
    /// Heads that an earlier daemon had popped.
    restart: VecDeque<u16>,
}

impl ControlQueue {
    /// Creates the queue. Commands that the log has in flight are carried out first.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn new(net: Arc<Net>, setup: QueueSetup) -> Result<Self, SetupError> {
        let mut queue = VirtQueue::new(setup)?;
        queue.set_name(net.config().name.clone());
        let ram = queue.ram().clone();
        Ok(Self {
            stats: Arc::new(NetStats {
                queue: queue.stats().clone(),
                ..NetStats::default()
            }),
            readable: Buffers::new(ram.clone()),
            writable: Buffers::new(ram),
            restart: queue.take_restart().into(),
            queue,
            net,
        })
    }

    /// Returns the counters, which stay readable after the queue is gone.
    #[must_use]
    pub fn stats(&self) -> &Arc<NetStats> {
        &self.stats
    }

    /// Carries out the command at a head. `pop`: it is still in the available ring.
    fn command(&mut self, head: u16, pop: bool) -> Result<(), QueueFault> {
        self.readable.clear();
        self.writable.clear();
        self.queue.walk(head, &mut self.readable, &mut self.writable)?;
        let mut header = [0; 2];
        if !self.readable.take_front(&mut header) {
            return Err(QueueFault::Request(head, "a command shorter than 2 bytes"));
        }
        if self.writable.total() == 0 {
            return Err(QueueFault::Request(head, "no room for the result of a command"));
        }
        if pop {
            self.queue.accept(head);
        }
        self.queue.start();
        let len = usize::try_from(self.readable.total()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(COMMAND_MAX)];
        // There are that many.
        let copied = self.readable.take_front(&mut bytes);
        let [class, command] = header;
        let carried_out = copied && len <= COMMAND_MAX && self.carry_out(class, command, &bytes).is_some();
        let ack = if carried_out {
            self.stats.commands.add(1);
            VIRTIO_NET_OK
        } else {
            self.stats.commands_refused.add(1);
            VIRTIO_NET_ERR
        };
        self.writable.write_front(&[ack]);
        self.queue.complete(head, 1);
        Ok(())
    }

    /// Carries out a command, if it is one whose feature was negotiated and its data is right.
    fn carry_out(&self, class: u8, command: u8, data: &[u8]) -> Option<()> {
        let features = self.net.negotiated_features();
        let needs = |number| (features & feature(number) != 0).then_some(());
        match (class, command) {
            (VIRTIO_NET_CTRL_RX, _) => {
                needs(VIRTIO_NET_F_CTRL_RX)?;
                if command > VIRTIO_NET_CTRL_RX_ALLMULTI {
                    needs(VIRTIO_NET_F_CTRL_RX_EXTRA)?;
                }
                let &[on] = data else { return None };
                self.net
                    .set_filter(|filter| set_mode(&mut filter.modes, command, on != 0))
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                needs(VIRTIO_NET_F_CTRL_RX)?;
                let (unicast, rest) = table(data)?;
                let (multicast, rest) = table(rest)?;
                if !rest.is_empty() {
                    return None;
                }
                self.net.set_filter(|filter| {
                    (filter.unicast, filter.multicast) = (unicast, multicast);
                });
                Some(())
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                needs(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                let mac = MacAddress(data.try_into().ok()?).check().ok()?;
                self.net.set_filter(|filter| filter.mac = mac);
                Some(())
            }
            (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD | VIRTIO_NET_CTRL_VLAN_DEL) => {
                needs(VIRTIO_NET_F_CTRL_VLAN)?;
                let id = u16::from_le_bytes(data.try_into().ok()?);
                let pass = command == VIRTIO_NET_CTRL_VLAN_ADD;
                self.net
                    .set_filter(|filter| filter.set_vlan(id, pass))
                    .then_some(())
            }
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
                needs(VIRTIO_NET_F_GUEST_ANNOUNCE)?;
                self.net.acknowledge_announcement();
                Some(())
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                self.net.set_pairs(pairs).then_some(())
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                needs(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                let guest = u64::from_le_bytes(data.try_into().ok()?);
                self.net.set_guest_offloads(guest).then_some(())
            }
            _ => None,
        }
    }

    fn run(&mut self) -> Result<u16, QueueFault> {
        let mut restarted = 0;
        while let Some(&head) = self.restart.front() {
            self.command(head, false)?;
            self.restart.pop_front();
            self.stats.queue.restarted.add(1);
            restarted += 1;
        }
        self.queue.begin_round();
        while self.queue.has_next() {
            let head = self.queue.peek()?;
            self.command(head, true)?;
        }
        self.queue.end_round();
        Ok(restarted)
    }
}

fn set_mode(modes: &mut Modes, command: u8, on: bool) -> Option<()> {
    let mode = match command {
        VIRTIO_NET_CTRL_RX_PROMISC => &mut modes.promisc,
        VIRTIO_NET_CTRL_RX_ALLMULTI => &mut modes.allmulti,
        VIRTIO_NET_CTRL_RX_ALLUNI => &mut modes.alluni,
        VIRTIO_NET_CTRL_RX_NOMULTI => &mut modes.nomulti,
        VIRTIO_NET_CTRL_RX_NOUNI => &mut modes.nouni,
        VIRTIO_NET_CTRL_RX_NOBCAST => &mut modes.nobcast,
        _ => return None,
    };
    *mode = on;
    Some(())
}

/// Reads a table of MAC addresses (5.1.6.5.2). Returns it and what is behind it.
fn table(data: &[u8]) -> Option<(MacTable, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (table, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let (addresses, _) = table.as_chunks::<6>();
    Some((MacTable::new(addresses.iter().map(|mac| MacAddress(*mac))), rest))
}

impl QueueHandler for ControlQueue {
    fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        cx.make_backend::<NetBackend>();
        Ok(())
    }

    fn service(&mut self, cx: &mut Context<'_>) {
        self.queue.begin_service();
        if self.queue.is_paused() || self.queue.is_broken() {
            return;
        }
        let version = self.net.version();
        let restarted = self.run().unwrap_or_else(|fault| {
            self.queue.fail(fault);
            0
        });
        // The driver that gave a command waits for its result alone.
        self.queue.set_urgent();
        if self.net.version() != version
            && let Some((backend, _)) = cx.backend::<NetBackend>()
        {
            backend.wake(&self.net);
        }
        self.queue.end_service(restarted);
    }

    /// No operation is ever submitted.
    fn complete(&mut self, _tag: u64, _result: i32, _cx: &mut Context<'_>) {}
}
