//! The interfaces that take untrusted input, each as a function of bytes. `tools/fuzz` runs them under
//! libFuzzer, `tests/corpus.rs` with the corpora and mutations of them. A violated invariant panics.

use std::path::Path;

use ringblk::DiskConfig;
use ringd::boot::kernel::Kernel;
use ringd::boot::layout::{FDT_MAX, Layout};
use ringd::config::file::parse;
use ringvirtio::GuestRam;
use ringvisor::abi::command::{CommandStatus, DeviceSpec, Header, Op, ZoneCreate};
use ringvisor::abi::machine::RAM_BASE;
use ringvisor::psci::{self, Call, Mpidr, cpus::CpuTable};
use ringvisor::ring::{BITS, Consumer, Entry, Producer};
use ringvisor::syndrome::{Syndrome, Width, external_abort_esr, instruction_length};
use ringvisor::vgic::fake::FakeCpu;
use ringvisor::vgic::{SgiRegister, SgiRequest, Vgic};
use ringvisor::virtio::fake::{FakePage, FakeRam};
use ringvisor::virtio::features::bit;
use ringvisor::virtio::{Event, Spec, Transport, registers as reg};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tempfile::NamedTempFile;
use vm_memory::MmapRegion;
use zerocopy::{FromBytes, FromZeros};

use crate::daemon::Daemon;
use crate::disk::{SECTOR, SimDisk};
use crate::el2::SimEl2;
pub use crate::fuzz_flash::flash;
use crate::fuzz_input::Bytes;
pub use crate::fuzz_net::{net_chain, net_command, packet, vhost_reply};
use crate::memory;
use crate::model_of_registers::{Expected, Model};
use crate::options::{Profile, Sabotage};
use crate::rng::Rng;
use crate::tap::SimTap;
use crate::world::{self, Kind};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: [(&str, Target); 15] = [
    ("transport", transport),
    ("syndrome", syndrome),
    ("chain", chain),
    ("request", request),
    ("ring", ring),
    ("command", command),
    ("zone", zone),
    ("kernel", kernel),
    ("psci", psci),
    ("gic", gic),
    ("packet", packet),
    ("net_chain", net_chain),
    ("net_command", net_command),
    ("vhost_reply", vhost_reply),
    ("flash", flash),
];

/// The device of the targets: a block device with two queues and a writable configuration byte.
fn block_device() -> DeviceSpec {
    let mut spec = DeviceSpec::new_zeroed();
    spec.device_id = 2;
    spec.vendor_id = 0x7276;
    spec.features = bit::VERSION_1
        | bit::RING_RESET
        | bit::BLK_FLUSH
        | bit::BLK_CONFIG_WCE
        | bit::EVENT_IDX
        | bit::INDIRECT_DESC;
    spec.queues = 2;
    spec.queue_max[..2].fill(256);
    spec.config_len = 60;
    spec.config[0] = 128;
    spec.config[32] = 1;
    spec
}

fn event_text(event: Event) -> String {
    match event {
        Event::Notify { queue } => format!("notify {queue}"),
        Event::Activated => "active".into(),
        Event::Reset { generation } => format!("reset {generation}"),
        Event::QueueReady { queue } => format!("ready {queue}"),
        Event::QueueStop { queue } => format!("stop {queue}"),
        Event::ConfigWrite { offset, value } => format!("config {offset} {value}"),
        Event::EmergencyWrite { byte } => format!("emergency {byte}"),
        Event::NeedsReset => "needs reset".into(),
    }
}

/// Compares register accesses and the daemon's calls with the reference model (torture a1).
pub fn transport(data: &[u8]) {
    const RAM: [(u64, u64); 1] = [(0x4000_0000, 0x10_0000)];
    let (spec, page, ram) = (block_device(), FakePage::default(), FakeRam(&RAM));
    let mut model = Model::new(&spec, &RAM);
    let mut real = Transport::new(&Spec::try_from(&spec).expect("the device is valid"));
    real.write_page(&page);
    let mut input = Bytes(data);
    while !input.is_empty() {
        let step = input.u8();
        match step {
            0..=199 => {
                // Offsets that have registers, more often than any offset.
                let offset = match step {
                    0..=149 => u16::from(input.u8()) & !3,
                    _ => input.u16() & 0x1ff,
                };
                let (width, bytes) = match step % 16 {
                    0 => (Width::Byte, 1),
                    1 => (Width::Half, 2),
                    2 => (Width::Double, 8),
                    _ => (Width::Word, 4),
                };
                let value = match input.u8() {
                    small @ 0..=127 => small.into(),
                    128..=191 => 0x4000_0000 | u64::from(input.u16()) << 4,
                    _ => input.u64(),
                };
                let outcome = real.write(offset, width, value, &ram, &page);
                let wanted = model.store(offset.into(), bytes, value);
                let found = Expected {
                    retry: outcome.retry,
                    event: outcome.event.map(event_text),
                };
                assert_eq!(found, wanted, "store of {value:#x} at {offset:#x}, {bytes} bytes");
            }
            200..=209 => {
                let _ = real.used_buffer(&page);
                model.used_buffer();
            }
            210..=219 => {
                let _ = real.needs_reset(&page);
                model.needs_reset();
            }
            220..=234 => {
                let generation = model.resets().wrapping_sub(u64::from(input.u8() & 1));
                assert_eq!(
                    real.quiesced(generation, &page).is_ok(),
                    model.quiesced(generation)
                );
            }
            235..=249 => {
                let (queue, generation) = (input.u8() & 3, model.resets());
                let answer = real.queue_quiesced(queue.into(), generation, &page).is_ok();
                assert_eq!(answer, model.queue_quiesced(queue.into(), generation));
            }
            _ => {
                let (at, bytes) = (input.u8(), input.u32().to_le_bytes());
                let answer = real.config_changed(at.into(), &bytes, &page).is_ok();
                assert_eq!(answer, model.config_changed(at.into(), &bytes));
            }
        }
        assert_eq!(real.line(), model.line());
        model.check_daemon_view(&real.state());
    }
    for offset in (0..reg::END).step_by(4) {
        assert_eq!(page.read32(offset), model.read(offset.into()), "at {offset:#x}");
    }
}

/// Decodes any ESR_EL2: what the decoder returns is consistent.
pub fn syndrome(data: &[u8]) {
    let mut input = Bytes(data);
    while !input.is_empty() {
        let (esr, value) = (input.u64(), input.u64());
        assert!(matches!(instruction_length(esr), 2 | 4));
        let injected = external_abort_esr(esr, value & 1 == 1);
        assert!(matches!(injected >> 26 & 0x3f, 0x20 | 0x21 | 0x24 | 0x25));
        if let Syndrome::DataAbort(abort) = Syndrome::decode(esr) {
            let valid = esr >> 24 & 1 == 1;
            assert!(
                valid || abort.access.is_none(),
                "an access without a valid syndrome"
            );
            if let Some(access) = abort.access {
                assert_eq!(access.stored(value) & !access.width.mask(), 0);
                assert!(access.register.index().is_none_or(|index| index < 31));
                let _ = access.loaded(value);
            }
        }
    }
}

/// Serves a device with one queue of 16 whose rings and buffers hold these bytes, then resets it.
fn serve(memory: &[(usize, &[u8])], again: &[u8], features: u64) {
    thread_local! {
        static FILE: NamedTempFile = {
            let file = NamedTempFile::new().expect("a temporary file can be made");
            file.as_file().set_len((16 * SECTOR) as u64).expect("it can be made larger");
            file
        };
        static LOG: Arc<MmapRegion> = Arc::new(MmapRegion::new(128 << 10).expect("memory for a log"));
        static RAM: Arc<GuestRam> = memory::guest_ram();
    }
    memory::clear();
    for &(at, bytes) in memory {
        for (index, &byte) in bytes.iter().enumerate().take(memory::SIZE - at) {
            memory::poke(at + index, byte);
        }
    }
    let path = FILE.with(|file| file.path().to_owned());
    let config = DiskConfig {
        path,
        ..DiskConfig::default()
    };
    let opened = Kind::Disk
        .open(&config, &SimTap::new(0), &LOG.with(Arc::clone))
        .expect("nothing else has the image open");
    let el2 = Arc::new(SimEl2::new(&Kind::Disk.spec(&opened, 1), 0));
    let disk = SimDisk::new(vec![7; 16 * SECTOR], Sabotage::None);
    let profile = Profile::draw(&mut Rng::new(0), Sabotage::None);
    let mut rng = Rng::new(again.len() as u64);
    let log = LOG.with(Arc::clone);
    world::clear_log(&log);
    let mut daemon = Daemon::new(
        el2.clone(),
        opened,
        RAM.with(Arc::clone),
        log,
        disk.clone(),
        &Profile {
            queues: 1,
            busy_polls: 0,
            ..profile
        },
    );
    let store = |offset, value: u64| el2.store(offset, Width::Word, value);
    store(reg::STATUS, 1 | 2);
    store(reg::DRIVER_FEATURES, features & 0xffff_ffff);
    store(reg::DRIVER_FEATURES_SEL, 1);
    store(reg::DRIVER_FEATURES, (features | bit::VERSION_1) >> 32);
    store(reg::STATUS, 1 | 2 | 8);
    store(reg::QUEUE_NUM, 16);
    for (register, at) in [
        (reg::QUEUE_DESC_LOW, 0),
        (reg::QUEUE_DRIVER_LOW, 0x400),
        (reg::QUEUE_DEVICE_LOW, 0x800),
    ] {
        store(register, memory::BASE + at);
    }
    store(reg::QUEUE_READY, 1);
    store(reg::STATUS, 1 | 2 | 8 | 4);
    store(reg::QUEUE_NOTIFY, 0);
    let mut again = again.iter();
    for _ in 0..150 {
        daemon.step();
        if rng.chance(500) {
            disk.run_one(&profile, &mut rng);
        }
        // A second vCPU rewrites the rings at the same time.
        if let (Some(&at), Some(&byte)) = (again.next(), again.next()) {
            memory::poke(usize::from(at) * 8 % 0x500, byte);
            store(reg::QUEUE_NOTIFY, 0);
        }
    }
    assert_eq!(disk.fault(), None);
    let mut left = 2000;
    while store(reg::STATUS, 0) {
        daemon.step();
        disk.run_one(&profile, &mut rng);
        left -= 1;
        assert!(left > 0, "a reset hangs");
    }
    let before = memory::snapshot();
    for _ in 0..50 {
        daemon.step();
        disk.run_one(&profile, &mut rng);
    }
    assert!(memory::snapshot() == before, "memory changes after a reset");
}

/// Serves descriptor chains: descriptor table, available ring and some buffers are the input (torture b1 to
/// b6).
pub fn chain(data: &[u8]) {
    let mut input = Bytes(data);
    let features = u64::from(input.u32()) & (bit::EVENT_IDX | bit::INDIRECT_DESC | bit::BLK_FLUSH);
    let (table, rest) = input.0.split_at(input.0.len().min(256));
    let (available, rest) = rest.split_at(rest.len().min(40));
    let (buffers, again) = rest.split_at(rest.len().min(512));
    serve(
        &[(0, table), (0x400, available), (0x1000, buffers)],
        again,
        features,
    );
}

/// Serves block requests: valid chains, any header and lengths (torture b7 to b11).
pub fn request(data: &[u8]) {
    let mut input = Bytes(data);
    let mut table = Vec::new();
    let mut available = vec![0, 0];
    let mut headers = Vec::new();
    let count = 1 + input.u8() % 5;
    available.extend(u16::from(count).to_le_bytes());
    for number in 0..u64::from(count) {
        let head = (number * 3) as u16;
        available.extend(head.to_le_bytes());
        let kind = match input.u8() {
            small @ 0..=15 => small.into(),
            _ => input.u32(),
        };
        headers.extend(kind.to_le_bytes());
        headers.extend(0_u32.to_le_bytes());
        let sector = match input.u8() {
            small @ 0..=20 => small.into(),
            _ => input.u64(),
        };
        headers.extend(sector.to_le_bytes());
        let write = u16::from(input.u8() & 2);
        let len = match input.u8() {
            sectors @ 0..=20 => u32::from(sectors) * 512,
            _ => input.u32() & 0x1_ffff,
        };
        let at = memory::BASE;
        for (addr, len, flags, next) in [
            (at + 0x1000 + number * 16, 16, 1, head + 1),
            (at + 0x1_0000 + number * 64, len, 1 | write, head + 2),
            (at + 0x2000 + number, 1, 2, 0),
        ] {
            table.extend(addr.to_le_bytes());
            table.extend(len.to_le_bytes());
            table.extend::<[u8; 2]>(u16::to_le_bytes(flags));
            table.extend::<[u8; 2]>(u16::to_le_bytes(next));
        }
    }
    serve(
        &[(0, &table), (0x400, &available), (0x1000, &headers)],
        &[],
        bit::BLK_FLUSH,
    );
}

/// Runs both ends of the event ring while its words are overwritten (torture c1).
pub fn ring(data: &[u8]) {
    let slots: Vec<AtomicU64> = (0..1024).map(|_| AtomicU64::new(0)).collect();
    let pending: Vec<AtomicU64> = (0..BITS.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    let armed = AtomicU32::new(0);
    let ring = ringvisor::ring::Ring::new(&slots, &pending, &armed).expect("a ring of this shape");
    let mut input = Bytes(data);
    let start = input.u64();
    let producer = Producer::starting_at(start);
    let mut consumer = Consumer::attach(&ring, start);
    let mut pushed = 0_u64;
    while !input.is_empty() {
        match input.u8() & 7 {
            0..=2 => {
                let (slot, queue) = (input.u8(), input.u8());
                let _ = producer.push(&ring, Entry::Notify { slot, queue });
                pushed += 1;
            }
            3 => {
                // Bounded for any content of the slots: at most one round.
                let taken = std::iter::from_fn(|| consumer.pop(&ring)).take(2000).count();
                assert!(taken < 2000);
            }
            4 => {
                let _ = consumer.prepare_to_sleep(&ring);
            }
            5 => slots[usize::from(input.u16()) % 1024].store(input.u64(), Ordering::Relaxed),
            6 => pending[usize::from(input.u8()) % pending.len()].store(input.u64(), Ordering::Relaxed),
            _ => armed.store(input.u32(), Ordering::Relaxed),
        }
        // EL2's private counter depends on EL2's own pushes only.
        assert!(producer.head().wrapping_sub(start) <= pushed);
    }
    // A new consumer of the corrupted ring pops the next entry.
    let mut fresh = Consumer::attach(&ring, producer.head());
    ring.clear();
    let _ = producer.push(&ring, Entry::Zone);
    assert_eq!(fresh.pop(&ring), Some(Entry::Zone));
}

/// Parses the control commands' structures, among them the description of a device.
pub fn command(data: &[u8]) {
    if let Ok((header, rest)) = Header::read_from_prefix(data) {
        if let Ok(op) = Op::try_from(header.op) {
            assert_eq!(op as u32, header.op);
        }
        if let Ok(status) = CommandStatus::try_from(header.status) {
            assert_eq!(status as u32, header.status);
        }
        if let Ok((spec, _)) = DeviceSpec::read_from_prefix(rest) {
            match Spec::try_from(&spec) {
                Ok(checked) => {
                    let page = FakePage::default();
                    let device = Transport::new(&checked);
                    device.write_page(&page);
                    assert_eq!(page.read32(reg::DEVICE_ID), spec.device_id);
                    assert_eq!(device.state().queues, spec.queues);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        if let Ok((zone, _)) = ZoneCreate::read_from_prefix(rest) {
            for mpidr in zone.cpus {
                let _ = Mpidr::from_argument(mpidr);
            }
        }
    }
}

/// Parses zone files: to an error with a text, or to a zone that can be checked.
pub fn zone(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match parse("fuzz.toml", &text, Path::new("/nowhere"), toml::Table::new()) {
        Ok(config) => {
            let _ = config.check();
            assert!(config.cpus.count() <= 1 << 20, "more CPUs than any machine has");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Loads a kernel file: to an error with a text, or to segments that lie within the file and RAM, beside the
/// device tree and an initial RAM disk.
pub fn kernel(data: &[u8]) {
    const MEMORY: u64 = 8 << 20;
    let mut input = Bytes(data);
    let (load, initrd) = (input.u8(), u64::from(input.u8()) << 15);
    let load = (load != 0).then_some(RAM_BASE + (u64::from(load) << 15));
    let kernel = match Kernel::parse(input.0.to_vec().into(), load, MEMORY) {
        Ok(kernel) => kernel,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut taken = Vec::new();
    for segment in &kernel.segments {
        let len = segment.file.end.checked_sub(segment.file.start);
        assert!(len.is_some_and(|len| len <= segment.size) && segment.file.end <= kernel.content.len());
        taken.push((segment.offset, segment.size));
    }
    if let Ok(layout) = Layout::new(&kernel, initrd, MEMORY) {
        taken.extend([(layout.tree, FDT_MAX), (layout.initrd, initrd)]);
    }
    taken.retain(|(_, size)| *size > 0);
    taken.sort_unstable();
    let mut end = 0;
    for (start, size) in taken {
        assert!(start >= end, "two at {start:#x}");
        end = start + size;
    }
    assert!(end <= MEMORY);
}

/// Makes any PSCI call in any state: the table of CPUs stays consistent (torture d5).
pub fn psci(data: &[u8]) {
    let mut input = Bytes(data);
    let mut table = CpuTable::<16>::guest(usize::from(input.u8() % 16) + 1);
    table.reset(0);
    while !input.is_empty() {
        let id = match input.u8() {
            0 => input.u32(),
            low => 0x8400_0000 | u32::from(low & 1) << 30 | u32::from(low >> 1 & 0x1f),
        };
        let argument = match input.u8() {
            small @ 0..=63 => small.into(),
            _ => input.u64(),
        };
        let _ = psci::features(id);
        let _ = psci::arch_features(id);
        let cpu = usize::from(input.u8() & 15);
        match Call::decode([id.into(), argument, 0x4000_0000, 0]) {
            Some(Call::CpuOn { target, .. }) => {
                if let Ok(cpu) = table.cpu_on(target, argument & 1 == 0) {
                    table.entered(cpu);
                }
            }
            Some(Call::CpuOff) => {
                let _ = table.cpu_off(cpu);
            }
            Some(Call::AffinityInfo { target, lowest_level }) => {
                let _ = table.affinity_info(target, lowest_level);
            }
            Some(Call::SystemReset2 { reset_type, .. }) => {
                let _ = psci::check_reset2(reset_type);
            }
            _ => {}
        }
        assert!(table.count_on() <= table.len());
    }
}

/// Accesses the virtual GIC, raises interrupts, and has CPUs take them (torture g2, d6).
pub fn gic(data: &[u8]) {
    let mut input = Bytes(data);
    let mut gic = Vgic::new(&[0, 1], 64).expect("a GIC of this size");
    let mut cpus = [FakeCpu::new(2), FakeCpu::new(2)];
    for (vcpu, cpu) in cpus.iter_mut().enumerate() {
        let _ = gic.unpark(vcpu, cpu);
    }
    while !input.is_empty() {
        let step = input.u8();
        let vcpu = usize::from(step >> 7);
        let width = 1 << (step >> 5 & 3);
        match step & 15 {
            0..=3 => {
                let offset = u32::from(input.u16());
                let _ = gic.dist_write(offset, width, input.u64());
            }
            4..=6 => {
                let offset = u32::from(input.u16()) | u32::from(step & 1) << 16;
                let _ = gic.redist_write(vcpu, offset, width, input.u64());
            }
            7 => {
                let offset = u32::from(input.u16());
                let (one, two) = (gic.dist_read(offset, width), gic.dist_read(offset, width));
                assert_eq!(one, two, "a read of {offset:#x} changes something");
            }
            8 => {
                let offset = u32::from(input.u16());
                let _ = gic.redist_read(vcpu, offset | u32::from(step & 16) << 12, width);
            }
            9 => {
                let _ = gic.set_line(input.u16().into(), step & 64 != 0);
            }
            10 => {
                let request = SgiRequest::decode(SgiRegister::Sgi1r, input.u64());
                let _ = gic.send_sgi(vcpu, &request);
            }
            11 => {
                let cpu = &mut cpus[vcpu];
                let _ = gic.flush(vcpu, cpu);
                let intid = cpu.ack();
                cpu.eoi(intid);
                let _ = gic.sync(vcpu, cpu);
            }
            12 => {
                let _ = gic.park(vcpu, &mut cpus[vcpu]);
            }
            13 => {
                let _ = gic.unpark(vcpu, &mut cpus[vcpu]);
            }
            14 => {
                let _ = gic.set_ppi_line(vcpu, input.u8().into(), step & 64 != 0);
            }
            _ => {
                let _ = gic.deactivate(vcpu, input.u16().into(), &mut cpus[vcpu]);
            }
        }
        // A list register never holds an INTID outside the zone's range.
        for lr in cpus.iter().flat_map(FakeCpu::valid) {
            assert!(lr.intid() < 96, "INTID {} is not the zone's", lr.intid());
        }
    }
}
