//! [`ControlQueue`]: the driver's commands (5.1.6.5). Each completes while it is serviced; carried out twice,
//! as after a kill, it has the same result.

use ringvirtio::buffers::Buffers;
use ringvirtio::virtio::feature;
use ringvirtio::{Context, Polls, QueueFault, QueueSetup};

use super::net_queue::{Common, NetQueue, Role};
use crate::device::Net;
use crate::filter::{MacTable, Modes};
use crate::mac::MacAddress;
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

/// Carries out commands.
pub struct Control {
    readable: Buffers,
    writable: Buffers,
}

/// The control queue of a device.
pub type ControlQueue = NetQueue<Control>;

impl Control {
    /// Carries out the command at a head. `pop`: it is still in the available ring.
    fn command(&mut self, common: &mut Common, head: u16, pop: bool) -> Result<(), QueueFault> {
        self.readable.clear();
        self.writable.clear();
        common.queue.walk(head, &mut self.readable, &mut self.writable)?;
        let mut header = [0; 2];
        if !self.readable.take_front(&mut header) {
            return Err(QueueFault::Request(head, "a command shorter than 2 bytes"));
        }
        if self.writable.total() == 0 {
            return Err(QueueFault::Request(head, "no room for the result of a command"));
        }
        if pop {
            common.queue.accept(head);
        }
        common.queue.start();
        let len = usize::try_from(self.readable.total()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(COMMAND_MAX)];
        // There are that many.
        let copied = self.readable.take_front(&mut bytes);
        let [class, command] = header;
        let carried_out =
            copied && len <= COMMAND_MAX && carry_out(&common.net, class, command, &bytes).is_some();
        let ack = if carried_out {
            common.stats.commands.add(1);
            VIRTIO_NET_OK
        } else {
            common.stats.commands_refused.add(1);
            VIRTIO_NET_ERR
        };
        self.writable.write_front(&[ack]);
        common.queue.complete(head, 1);
        Ok(())
    }

    fn run_all(&mut self, common: &mut Common) -> Result<u16, QueueFault> {
        let mut restarted = 0;
        while let Some(head) = common.next_restart() {
            self.command(common, head, false)?;
            common.restarted();
            restarted += 1;
        }
        common.queue.begin_round();
        while common.queue.has_next() {
            let head = common.queue.peek()?;
            self.command(common, head, true)?;
        }
        common.queue.end_round();
        Ok(restarted)
    }
}

/// Carries out a command, if it is one whose feature was negotiated and its data is right.
fn carry_out(net: &Net, class: u8, command: u8, data: &[u8]) -> Option<()> {
    let features = net.negotiated_features();
    let needs = |number| (features & feature(number) != 0).then_some(());
    match (class, command) {
        (VIRTIO_NET_CTRL_RX, _) => {
            needs(VIRTIO_NET_F_CTRL_RX)?;
            if command > VIRTIO_NET_CTRL_RX_ALLMULTI {
                needs(VIRTIO_NET_F_CTRL_RX_EXTRA)?;
            }
            let &[on] = data else { return None };
            net.set_filter(|filter| set_mode(&mut filter.modes, command, on != 0))
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            needs(VIRTIO_NET_F_CTRL_RX)?;
            let (unicast, rest) = table(data)?;
            let (multicast, rest) = table(rest)?;
            if !rest.is_empty() {
                return None;
            }
            net.set_filter(|filter| {
                (filter.unicast, filter.multicast) = (unicast, multicast);
            });
            Some(())
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
            needs(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
            net.set_mac(MacAddress(data.try_into().ok()?).check().ok()?);
            Some(())
        }
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD | VIRTIO_NET_CTRL_VLAN_DEL) => {
            needs(VIRTIO_NET_F_CTRL_VLAN)?;
            let id = u16::from_le_bytes(data.try_into().ok()?);
            let pass = command == VIRTIO_NET_CTRL_VLAN_ADD;
            net.set_filter(|filter| filter.set_vlan(id, pass)).then_some(())
        }
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
            needs(VIRTIO_NET_F_GUEST_ANNOUNCE)?;
            net.acknowledge_announcement();
            Some(())
        }
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            let pairs = u16::from_le_bytes(data.try_into().ok()?);
            net.set_pairs(pairs).then_some(())
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            needs(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
            let guest = u64::from_le_bytes(data.try_into().ok()?);
            net.set_guest_offloads(guest).then_some(())
        }
        _ => None,
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

impl Role for Control {
    fn new(_net: &Net, setup: &QueueSetup) -> Self {
        Self {
            readable: Buffers::new(setup.ram.clone()),
            writable: Buffers::new(setup.ram.clone()),
        }
    }

    fn run(&mut self, common: &mut Common, cx: &mut Context<'_>) -> Result<u16, QueueFault> {
        let result = self.run_all(common);
        // The driver that gave a command waits for its result alone.
        common.queue.set_urgent();
        if common.has_changed()
            && let Some((backend, _)) = cx.backend::<Polls>()
        {
            backend.wake(common.net.group());
        }
        result
    }
}
