//! [`Net`]: the device: its port or server, its link, and what its driver has set by commands.
//!
//! Queues read a [`View`] of it, which they replace when [`Net::version`] has changed: nothing is locked for
//! a packet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringvirtio::throttle::Throttle;
use ringvirtio::virtio::feature;
use ringvirtio::{Callback, QueueHandler, QueueSetup, SetupError};

use crate::config::{CONFIG_LEN, NetConfig};
use crate::filter::Filter;
use crate::mac::MacAddress;
use crate::offloads::{self, Offloads};
use crate::port::Port;
use crate::state::{Saved, SavedState};
use crate::stats::NetStats;
use crate::virtio::{VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_MQ, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};

/// What queues go by.
#[derive(Clone)]
pub struct View {
    /// Where packets go and come from; `None`: nothing is attached.
    pub port: Option<Arc<dyn Port>>,
    /// Whether the link is up. Without a port it is not.
    pub link_up: bool,
    /// Pairs in use.
    pub pairs: u16,
    /// Offloads of received packets, as feature bits.
    pub guest_offloads: u64,
    /// Which packets the driver wants.
    pub filter: Arc<Filter>,
    /// The driver shall announce its addresses.
    pub announce: bool,
}

struct Inner {
    view: View,
    /// Whether the link is to be up, if there is a port.
    link: bool,
    /// Of the last driver: changes with a reset.
    epoch: Option<u64>,
    /// Negotiated by it.
    features: u64,
    /// The address in the configuration space.
    shown: MacAddress,
    saved: Option<SavedState>,
}

/// Why a port cannot be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The driver was offered more.
    #[error("it has fewer offloads than the guest's driver was offered")]
    Offloads,
    /// The device has more.
    #[error("it has {found} pairs of queues, the device has {expected}")]
    Pairs {
        /// Of the port.
        found: u16,
        /// Of the device.
        expected: u16,
    },
}

/// A queue with its counters, or why there is none.
pub type MadeQueue = Result<(Box<dyn QueueHandler>, Arc<NetStats>), SetupError>;

/// Another process that serves the queues of packets on the driver's own rings. The control queue stays the
/// device's. No call blocks.
pub trait QueueServer: Send + Sync {
    /// Returns the features of queues and packets that it has.
    fn features(&self) -> u64;

    /// Makes the daemon's side of virtqueue `number`, which it serves from now on.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    fn queue(&self, number: u16, setup: QueueSetup) -> MadeQueue;

    /// Takes a queue, or all of them, from it. Calls `then` once it does not use the driver's memory any
    /// more, or was disconnected.
    fn release(&self, queue: Option<u16>, then: Callback);

    /// Lets it use the first `pairs` pairs of queues.
    fn set_active_pairs(&self, pairs: u16);
}

/// A network device.
pub struct Net {
    config: NetConfig,
    offloads: Offloads,
    server: Option<Arc<dyn QueueServer>>,
    receive: Throttle,
    transmit: Throttle,
    version: AtomicU64,
    inner: Mutex<Inner>,
    status_change: Mutex<Option<StatusChange>>,
    port_failure: Mutex<Option<StatusChange>>,
    port_failed: AtomicBool,
}

/// Called when the device has changed `mac` or `status` by itself; must not block.
pub type StatusChange = Box<dyn Fn() + Send>;

impl Net {
    /// Returns a device that offers `offloads`, without a port. `saved`: where it keeps what the driver has
    /// set.
    #[must_use]
    pub fn new(config: NetConfig, offloads: Offloads, saved: Option<SavedState>) -> Arc<Self> {
        Self::with(config, offloads, None, saved)
    }

    /// Returns a device whose queues of packets another process serves.
    #[must_use]
    pub fn served(config: NetConfig, server: Arc<dyn QueueServer>, saved: Option<SavedState>) -> Arc<Self> {
        Self::with(config, Offloads::default(), Some(server), saved)
    }

    fn with(
        config: NetConfig,
        offloads: Offloads,
        server: Option<Arc<dyn QueueServer>>,
        saved: Option<SavedState>,
    ) -> Arc<Self> {
        let shown = config.mac;
        let view = View {
            port: None,
            link_up: server.is_some(),
            pairs: 1,
            guest_offloads: 0,
            filter: Arc::new(Filter::open(config.mac, false)),
            announce: false,
        };
        Arc::new(Self {
            config,
            offloads,
            server,
            receive: Throttle::default(),
            transmit: Throttle::default(),
            version: AtomicU64::new(1),
            inner: Mutex::new(Inner {
                view,
                link: true,
                epoch: None,
                features: 0,
                shown,
                saved,
            }),
            status_change: Mutex::new(None),
            port_failure: Mutex::new(None),
            port_failed: AtomicBool::new(false),
        })
    }

    /// Calls `notify` whenever the device changes `mac` or `status` by itself, on the thread that drives its
    /// control queue.
    pub fn on_status_change(&self, notify: StatusChange) {
        *self.status_change.lock().unwrap_or_else(PoisonError::into_inner) = Some(notify);
    }

    /// Calls `notify` when the port fails, on the thread that drives its queue.
    pub fn on_port_failure(&self, notify: StatusChange) {
        *self.port_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(notify);
    }

    /// Returns whether the port has failed since it was attached: the peer of a stream is gone, or a tap was
    /// deleted.
    #[must_use]
    pub fn port_has_failed(&self) -> bool {
        self.port_failed.load(Ordering::Acquire)
    }

    /// The port has failed: no packets come from it any more.
    pub(crate) fn fail_port(&self) {
        self.port_failed.store(true, Ordering::Release);
        let notify = self.port_failure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = &*notify {
            notify();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the view.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let result = change(&mut inner);
        inner.view.link_up = inner.link && (inner.view.port.is_some() || self.server.is_some());
        if let (Some(saved), Some(epoch)) = (&inner.saved, inner.epoch) {
            let view = &inner.view;
            saved.store(
                epoch,
                &Saved {
                    mac: view.filter.mac,
                    pairs: view.pairs,
                    guest_offloads: view.guest_offloads,
                    announce: view.announce,
                },
            );
        }
        self.version.fetch_add(1, Ordering::Release);
        result
    }

    /// Returns the number of the group in which its queues are woken ([`ringvirtio::poll`]).
    pub(crate) fn group(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Returns its configuration.
    #[must_use]
    pub const fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Returns the features that it offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        match &self.server {
            None => self.config.features(self.offloads),
            Some(server) => self.config.features_with(server.features()),
        }
    }

    /// Calls `then` once no other process uses the driver's memory on account of the queue, or of any.
    pub fn release(&self, queue: Option<u16>, then: Callback) {
        if queue.is_none() {
            // The next driver is to see the device's own address; this one's, if it goes on, comes back with
            // its queues.
            self.lock().shown = self.config.mac;
        }
        match &self.server {
            None => then(),
            Some(server) => server.release(queue, then),
        }
    }

    /// Returns the offloads that it offers.
    #[must_use]
    pub const fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Returns whether there is a port.
    #[must_use]
    pub fn has_port(&self) -> bool {
        self.lock().view.port.is_some()
    }

    /// Returns `status` of the configuration space (5.1.4).
    #[must_use]
    pub fn status(&self) -> u16 {
        let inner = self.lock();
        let link = if inner.view.link_up {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        let announce = if inner.view.announce && inner.view.link_up {
            VIRTIO_NET_S_ANNOUNCE
        } else {
            0
        };
        link | announce
    }

    /// Returns the configuration space (5.1.4).
    #[must_use]
    pub fn space(&self) -> [u8; CONFIG_LEN as usize] {
        let shown = self.lock().shown;
        self.config.space(shown, self.status())
    }

    /// Returns the limits of packets to the driver.
    #[must_use]
    pub const fn receive_throttle(&self) -> &Throttle {
        &self.receive
    }

    /// Returns the limits of packets from the driver.
    #[must_use]
    pub const fn transmit_throttle(&self) -> &Throttle {
        &self.transmit
    }

    /// Returns a number that changes with the view.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns the view.
    #[must_use]
    pub fn view(&self) -> View {
        self.lock().view.clone()
    }

    /// Replaces the port; the queues must be scheduled afterwards. With a driver, it shall announce its
    /// addresses to what is behind the new port.
    ///
    /// # Errors
    /// The port has less than the device.
    pub fn attach(&self, port: Arc<dyn Port>) -> Result<(), AttachError> {
        if !port.offloads().covers(self.offloads) {
            return Err(AttachError::Offloads);
        }
        if port.pairs() < self.config.pairs {
            return Err(AttachError::Pairs {
                found: port.pairs(),
                expected: self.config.pairs,
            });
        }
        self.port_failed.store(false, Ordering::Release);
        self.change(|inner| {
            inner.view.port = Some(port);
            // After a take-over the port is as the last daemon left it, and the queues say what that was.
            if inner.epoch.is_some() {
                inner.view.announce = true;
                self.set_up_port(&inner.view);
            }
        });
        Ok(())
    }

    /// Removes the port and returns it: the link is down. The queues must be scheduled afterwards, and have
    /// been before it is closed.
    pub fn detach(&self) -> Option<Arc<dyn Port>> {
        self.port_failed.store(false, Ordering::Release);
        self.change(|inner| inner.view.port.take())
    }

    /// Sets whether the link is up, as long as there is a port; the queues must be scheduled afterwards. When
    /// it comes up, the driver shall announce its addresses.
    pub fn set_link(&self, up: bool) {
        self.change(|inner| {
            inner.view.announce |= up && !inner.link && inner.epoch.is_some();
            inner.link = up;
            if let Some(server) = &self.server {
                server.set_active_pairs(if up { inner.view.pairs } else { 0 });
            }
        });
    }

    /// Returns whether the link is to be up.
    #[must_use]
    pub fn link(&self) -> bool {
        self.lock().link
    }

    /// Tells the port what the driver has set.
    fn set_up_port(&self, view: &View) {
        if let Some(server) = &self.server {
            server.set_active_pairs(if view.link_up { view.pairs } else { 0 });
        }
        let Some(port) = &view.port else {
            return;
        };
        let set = port
            .set_active_pairs(view.pairs)
            .and_then(|()| port.set_guest_offloads(view.guest_offloads));
        if let Err(error) = set {
            tracing::error!(device = self.config.name, %error, "cannot set the offloads or queues of a port");
        }
    }

    /// A driver has set up a queue: after a reset the device is as new, after a take-over it is as the driver
    /// has set it.
    pub(crate) fn negotiated(&self, epoch: u64, features: u64) {
        if self.lock().epoch == Some(epoch) {
            return;
        }
        self.change(|inner| {
            let vlans = features & feature(VIRTIO_NET_F_CTRL_VLAN) != 0;
            let saved = inner.saved.as_ref().and_then(|saved| saved.load(epoch));
            let fresh = Saved {
                mac: self.config.mac,
                pairs: 1,
                guest_offloads: features & offloads::GUEST,
                announce: false,
            };
            let is_new = saved.is_none();
            let Saved {
                mac,
                pairs,
                guest_offloads,
                announce,
            } = saved.unwrap_or(fresh);
            inner.epoch = Some(epoch);
            inner.features = features;
            inner.view.pairs = pairs.clamp(1, self.config.pairs);
            inner.view.guest_offloads = guest_offloads & features;
            inner.view.announce = announce;
            // The tables are lost with the last daemon: everything passes.
            inner.view.filter = Arc::new(Filter::open(mac, vlans && is_new));
            inner.shown = mac;
            self.set_up_port(&inner.view);
        });
    }

    /// Forgets what the driver has negotiated and set: the next queue is another driver's.
    pub fn forget_driver(&self) {
        self.change(|inner| inner.epoch = None);
    }

    /// Returns what the driver has negotiated.
    pub(crate) fn negotiated_features(&self) -> u64 {
        self.lock().features
    }

    /// Changes the filter.
    pub(crate) fn set_filter<T>(&self, change: impl FnOnce(&mut Filter) -> T) -> T {
        self.change(|inner| change(Arc::make_mut(&mut inner.view.filter)))
    }

    /// Sets the address, which the configuration space has before the command completes (5.1.6.5.2).
    pub(crate) fn set_mac(&self, mac: MacAddress) {
        self.change(|inner| {
            Arc::make_mut(&mut inner.view.filter).mac = mac;
            inner.shown = mac;
        });
        self.status_changed();
    }

    /// Sets how many pairs are in use. Returns `false` if that cannot be.
    pub(crate) fn set_pairs(&self, pairs: u16) -> bool {
        let most = match self.negotiated_features() & feature(VIRTIO_NET_F_MQ) {
            0 => 0,
            _ => self.config.pairs,
        };
        if !(1..=most).contains(&pairs) {
            return false;
        }
        self.change(|inner| {
            let set = match &inner.view.port {
                Some(port) => port.set_active_pairs(pairs).is_ok(),
                None => true,
            };
            if set {
                inner.view.pairs = pairs;
                if let (Some(server), true) = (&self.server, inner.link) {
                    server.set_active_pairs(pairs);
                }
            }
            set
        })
    }

    /// Sets the offloads of received packets. Returns `false` if that cannot be.
    pub(crate) fn set_guest_offloads(&self, guest: u64) -> bool {
        let negotiated = self.negotiated_features() & offloads::GUEST;
        if guest & !negotiated != 0 || !offloads::is_consistent(guest) {
            return false;
        }
        self.change(|inner| {
            let set = match &inner.view.port {
                Some(port) => port.set_guest_offloads(guest).is_ok(),
                None => true,
            };
            if set {
                inner.view.guest_offloads = guest;
            }
            set
        })
    }

    /// The driver has seen that it shall announce its addresses.
    pub(crate) fn acknowledge_announcement(&self) {
        self.change(|inner| inner.view.announce = false);
        self.status_changed();
    }

    /// The configuration space has changed by a command.
    fn status_changed(&self) {
        let notify = self.status_change.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = &*notify {
            notify();
        }
    }

    /// Returns the process that serves the queues of packets, if there is one.
    pub(crate) const fn server(&self) -> Option<&Arc<dyn QueueServer>> {
        self.server.as_ref()
    }
}
