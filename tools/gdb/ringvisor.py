"""Commands and pretty-printers for gdb on ringvisor; read by tools/gdb/ringvisor.gdb. See docs/debugging.md.

EL2 is identity-mapped, and QEMU's stub can read physical memory: so everything is read by physical address, and the
commands work wherever the CPUs were stopped, at EL2, in root or in a guest.
"""

import contextlib
import re
import struct

import gdb

# From src/abi and src/el2/arch/frame.rs; kept as numbers because gdb sees no Rust constants.
MAX_SLOTS, MAX_QUEUES = 32, 16
STACK_SHIFT = 15
RING_SLOTS, DEVICE_BIT = 1024, MAX_SLOTS * MAX_QUEUES
CONSOLE_BIT, ZONE_BIT = DEVICE_BIT + MAX_SLOTS, DEVICE_BIT + MAX_SLOTS + 1
NO_OWNER = 0xFF
CPU_STATES = {0: "parked", 1: "running", 2: "dead", 3: "absent"}
ZONE_STATES = ["none", "created", "running", "stopping", "paused", "stopped", "crashed"]
EXITS = ["read", "write", "permission", "hvc", "smc", "sysreg", "irq", "wfx", "other"]
EVENTS = [
    "notifications", "notifications_pending", "bells", "doorbells", "commands", "injected", "kicks_sent",
    "kicks_taken", "maintenance", "interrupts",
]
TRACE_KINDS = {1: "exit", 2: "notify", 3: "ring", 4: "bell", 5: "doorbell", 6: "inject", 7: "acknowledge"}
EXIT_WORDS, TICK_WORDS, LONGEST, EVENT_WORDS, TRACE_HEAD = 0, 12, 24, 26, 42


class Problem(Exception):
    """The reason why a command fails."""


@contextlib.contextmanager
def physical():
    """Returns a context in which memory is read by physical address, if the machine is QEMU."""
    def mode(on):
        try:
            gdb.execute(f"maintenance packet Qqemu.PhyMemMode:{on}", to_string=True)
            gdb.execute("maintenance flush dcache", to_string=True)
        except gdb.error:
            pass

    mode(1)
    try:
        yield
    finally:
        mode(0)


def read(address, size):
    try:
        return bytes(gdb.selected_inferior().read_memory(address, size))
    except gdb.MemoryError:
        raise Problem(f"cannot read {size} bytes at {address:#x}") from None


def words(address, count, code="Q"):
    return struct.unpack(f"<{count}{code}", read(address, count * struct.calcsize(code)))


def static(name):
    """Returns a static of the hypervisor by its path."""
    symbol = gdb.lookup_static_symbol(name) or gdb.lookup_global_symbol(name)
    if symbol is None:
        raise Problem(f"no symbol {name}: are EL2's symbols loaded (add-symbol-file)?")
    return symbol.value()


def at(address, kind):
    """Returns the value of type `kind` at an address."""
    return gdb.Value(address).cast(gdb.lookup_type(kind).pointer()).dereference()


def address_of(value):
    return int(value.address.cast(gdb.lookup_type("u64")))


def inside(value):
    """Returns the contents of wrappers with one field: cells, atomics, newtypes."""
    while value.type.strip_typedefs().code == gdb.TYPE_CODE_STRUCT:
        full = [f for f in value.type.fields() if f.type.sizeof == value.type.sizeof]
        if len(full) != 1:
            break
        value = value[full[0]]
    return value


def number(value):
    return int(inside(value))


def locked(value):
    """Returns the data of a spin lock or of a Once."""
    names = [f.name for f in value.type.fields()]
    while "inner" in names and "data" not in names:
        value = value["inner"]
        names = [f.name for f in value.type.fields()]
    return value["data"]


def elements(vector, kind):
    """Returns the elements of an ArrayVec."""
    first, size = address_of(vector["xs"]), gdb.lookup_type(kind).sizeof
    return [at(first + index * size, kind) for index in range(number(vector["len"]))]


def cpus():
    count = number(static("ringvisor::el2::cpu::COUNT"))
    table = static("ringvisor::el2::cpu::CPUS")
    return [table[index] for index in range(count)]


def zones():
    """Returns the existing zones by number. Option<FrameBox<Zone>> is a pointer that may be null."""
    found = {}
    table = static("ringvisor::el2::zone::registry::ZONES")
    for index in range(table.type.range()[1] + 1):
        (pointer,) = words(address_of(locked(table[index])), 1)
        if pointer:
            found[index] = at(pointer, "ringvisor::el2::zone::Zone")
    return found


def zone(text):
    index = int(text, 0)
    all_zones = zones()
    if index not in all_zones:
        raise Problem(f"no zone {index}; there are {sorted(all_zones) or 'none'}, and 0 is root")
    return all_zones[index]


def name_of(value):
    return read(address_of(value["name"]), 32).split(b"\0")[0].decode(errors="replace")


def table_of(text):
    """Returns the stage-2 root of a zone; zone 0 is root."""
    if int(text, 0) == 0:
        vttbr = number(at(address_of(locked(static("ringvisor::el2::root::ROOT"))), "ringvisor::el2::root::Root")["vttbr"])
    else:
        vttbr = number(zone(text)["vttbr"])
    return vttbr & 0x0000_FFFF_FFFF_FFFE


def walk(table, ipa, show=None):
    """Returns the physical address of an IPA, or None. Starts at level 1, whose tables src/stage2 concatenates."""
    for level in (1, 2, 3):
        shift = 39 - 9 * level
        index = ipa >> shift if level == 1 else ipa >> shift & 0x1FF
        (entry,) = words(table + index * 8, 1)
        leaf = entry & 3 == 3 if level == 3 else entry & 3 == 1
        kind = "invalid" if entry & 1 == 0 else "page or block" if leaf else "table"
        if show:
            show(f"level {level} [{index:#5x}] at {table + index * 8:#x}: {entry:#018x} {kind}")
        if entry & 1 == 0:
            return None
        if leaf:
            if show:
                access = {0: "none", 1: "read-only", 2: "write-only", 3: "read-write"}[entry >> 6 & 3]
                memory = "Device" if entry >> 2 & 0xF < 4 else "Normal"
                show(f"{memory}, {access}, {1 << shift:#x} bytes")
            base = entry & 0x0000_FFFF_FFFF_F000 & ~((1 << shift) - 1)
            return base | ipa & ((1 << shift) - 1)
        table = entry & 0x0000_FFFF_FFFF_F000
    return None


class GuestMemory:
    """Reads a zone's memory by IPA."""

    def __init__(self, which):
        self.table = table_of(which)

    def words(self, ipa, count, code):
        to = walk(self.table, ipa)
        if to is None:
            raise Problem(f"{ipa:#x} is not mapped in the zone")
        return words(to, count, code)


class Command(gdb.Command):
    """A command that is a function of its arguments; its docstring is its help."""

    def __init__(self, name, function, least):
        self.__doc__ = function.__doc__
        super().__init__(name, gdb.COMMAND_DATA)
        self.function, self.least = function, least

    def invoke(self, argument, _from_tty):
        arguments = gdb.string_to_argv(argument)
        if len(arguments) < self.least:
            print(self.__doc__)
            return
        try:
            with physical():
                self.function(*arguments)
        except (Problem, ValueError) as error:
            raise gdb.GdbError(str(error)) from None
        except TypeError as error:
            raise gdb.GdbError(f"{self.__doc__}\n({error})") from None


def command(name, least=0):
    def register(function):
        Command(name, function, least)
        return function

    return register


@command("rv-zones")
def show_zones():
    """rv-zones: the zones, with states, vCPUs, memory and ring heads."""
    print(f"{'ZONE':>4} {'NAME':16} {'STATE':9} {'VCPUS':>5} {'INSIDE':>6} {'MiB':>6} {'RING':>8} {'ABORTS':>6}  STRUCT")
    owners = [cpu for cpu in cpus() if number(cpu["owner"]) == 0]
    print(f"{0:>4} {'root':16} {'running':9} {len(owners):>5}")
    for index, value in zones().items():
        state = ZONE_STATES[number(value["state"])]
        head = number(value["producer"]["head"])
        print(
            f"{index:>4} {name_of(value):16} {state:9} {number(value['cpus']['len']):>5} "
            f"{number(value['inside']):>#6x} {number(value['blocks']) * 2:>6} {head:>8} {number(value['aborts']):>6}  "
            f"{address_of(value):#x}"
        )


@command("rv-vcpus")
def show_vcpus():
    """rv-vcpus: the physical CPUs, whose vCPU each runs, and where that was when EL2 was last entered."""
    print(f"{'CPU':>3} {'MPIDR':>6} {'STATE':8} {'ZONE':>4} {'VCPU':>4} {'REQUESTS':>8}  {'FRAME':10} {'ELR':18} SPSR")
    for cpu in cpus():
        owner = number(cpu["owner"])
        line = (
            f"{number(cpu['index']):>3} {number(cpu['mpidr']):>#6x} {CPU_STATES.get(number(cpu['state']), '?'):8} "
            f"{'-' if owner == NO_OWNER else owner:>4} {number(cpu['vcpu']):>4} {number(cpu['requests']):>#8x}"
        )
        area = number(cpu["stack"])
        if area:
            frame = frame_of(cpu)
            elr, spsr = words(frame + 31 * 8, 2)
            line += f"  {frame:#10x} {elr:#018x} {spsr:#x}"
        print(line)


def frame_of(cpu):
    """Returns the address at which the vectors save registers: the top of the CPU's stack."""
    frame = gdb.lookup_type("ringvisor::el2::arch::frame::TrapFrame")
    return number(cpu["stack"]) + (2 << STACK_SHIFT) - frame.sizeof


@command("rv-regs", 1)
def show_registers(which):
    """rv-regs CPU: the registers that were saved when the CPU last came to EL2, and its EL1 and stage-2 registers.

    While the CPU runs below EL2, the saved ones are those of the last trap; `thread CPU+1` shows the present ones."""
    index = int(which, 0)
    table = cpus()
    if not 0 <= index < len(table):
        raise Problem(f"no CPU {index}; there are {len(table)}")
    if not number(table[index]["stack"]):
        raise Problem(f"CPU {index} has never come up")
    saved = words(frame_of(table[index]), 33)
    for first in range(0, 31, 4):
        print("  ".join(f"x{n:<2} {saved[n]:016x}" for n in range(first, min(first + 4, 31))))
    print(f"elr {saved[31]:016x}  spsr {saved[32]:#x}")
    before = gdb.selected_thread()
    thread = next((t for t in gdb.selected_inferior().threads() if t.num == index + 1), None)
    if thread is None:
        return
    thread.switch()
    try:
        frame = gdb.newest_frame()
        for names in (
            ("ESR_EL2", "FAR_EL2", "HPFAR_EL2", "VTTBR_EL2"),
            ("SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "VBAR_EL1"),
            ("ESR_EL1", "FAR_EL1", "ELR_EL1", "SPSR_EL1"),
        ):
            row = []
            for name in names:
                try:
                    row.append(f"{name} {int(frame.read_register(name)) & (1 << 64) - 1:#x}")
                except (ValueError, gdb.error):
                    continue
            print("  ".join(row))
    finally:
        if before is not None:
            before.switch()


@command("rv-stage2", 2)
def show_walk(which, text):
    """rv-stage2 ZONE IPA: walks the zone's stage 2 (0: root's) and shows each entry on the way."""
    ipa = int(gdb.parse_and_eval(text))
    to = walk(table_of(which), ipa, print)
    print(f"IPA {ipa:#x} -> " + ("nothing" if to is None else f"PA {to:#x}"))


def entry_name(word):
    kind, slot, queue = word >> 24 & 0xFF, word >> 16 & 0xFF, word & 0xFF
    return {1: f"notify slot {slot} queue {queue}", 2: f"device slot {slot}", 3: "console", 4: "zone"}.get(kind, "?")


def bit_name(bit):
    if bit < DEVICE_BIT:
        return f"notify slot {bit // MAX_QUEUES} queue {bit % MAX_QUEUES}"
    if bit < CONSOLE_BIT:
        return f"device slot {bit - DEVICE_BIT}"
    return {CONSOLE_BIT: "console", ZONE_BIT: "zone"}.get(bit, f"bit {bit}")


@command("rv-ring", 1)
def show_ring(which, count="8"):
    """rv-ring ZONE [COUNT]: the zone's ring: entries ever written, what is pending, whether it is armed, and the last
    COUNT entries."""
    value = zone(which)
    window = int(value["window"])
    kind = gdb.lookup_type("ringvisor::ring::window::ZoneWindow")
    place = {f.name: window + f.bitpos // 8 for f in kind.fields()}
    head = number(value["producer"]["head"])
    (armed,) = words(place["armed"], 1, "I")
    pending = words(place["pending"], 16)
    bits = [bit_name(word * 64 + bit) for word in range(16) for bit in range(64) if pending[word] >> bit & 1]
    print(f"head {head}, armed {armed}, pending: {', '.join(bits) or 'nothing'}")
    for index in range(max(0, head - int(count, 0)), head):
        (word,) = words(place["slots"] + index % RING_SLOTS * 8, 1)
        valid = word >> 32 == (index + 1) & 0xFFFF_FFFF
        print(f"  {index}: " + (entry_name(word & 0xFFFF_FFFF) if valid else f"not written ({word:#x})"))


@command("rv-queue", 2)
def show_queue(which, slot, queue="all", count="16"):
    """rv-queue ZONE SLOT [QUEUE|all [COUNT]]: a device's registers and its queues (one, or all that the driver has set up):
    what EL2 has latched, available ring, used ring, and the chains of the last COUNT heads that the driver made available.
    """
    place = zone(which)["slots"][int(slot, 0)]
    (pointer,) = words(address_of(locked(place)), 1)
    if pointer == 0:
        raise Problem(f"zone {which} has no device in slot {slot}")
    transport = at(pointer, "ringvisor::el2::zone::devices::Device")["transport"]
    print(
        f"device id {number(transport['device_id'])}, status {number(transport['status']):#x}, interrupt "
        f"{number(transport['interrupt']):#x}, features {number(transport['driver_features']):#x}, resets "
        f"{number(transport['generation'])}"
    )
    queues = elements(transport["queues"], "ringvisor::virtio::queue::Queue")
    memory = GuestMemory(which)
    if queue == "all":
        for index, one in enumerate(queues):
            if number(one["setup"]["size"]) and number(one["setup"]["desc"]):
                show_rings(memory, index, one, int(count, 0))
        return
    index = int(queue, 0)
    if not 0 <= index < len(queues):
        raise Problem(f"the device has {len(queues)} queues")
    show_rings(memory, index, queues[index], int(count, 0))


def show_rings(memory, index, queue, count):
    """Prints one queue's rings."""
    setup = queue["setup"]
    fields = {f.name: number(setup[f.name]) for f in setup.type.fields()}
    size, desc, driver, device = (fields[name] for name in ("size", "desc", "driver", "device"))
    print(f"queue {index}: {queue['phase']}, size {size}, desc {desc:#x}, avail {driver:#x}, used {device:#x}")
    if size == 0 or desc == 0:
        return
    flags, avail = memory.words(driver, 2, "H")
    used_flags, used = memory.words(device, 2, "H")
    (used_event,) = memory.words(driver + 4 + size * 2, 1, "H")
    (avail_event,) = memory.words(device + 4 + size * 8, 1, "H")
    print(f"avail: idx {avail}, flags {flags}, used_event {used_event}; used: idx {used}, flags {used_flags}, "
          f"avail_event {avail_event}; {(avail - used) & 0xFFFF} in flight")
    for step in range(min(count, size, avail), 0, -1):
        position = (avail - step) & 0xFFFF
        (head,) = memory.words(driver + 4 + position % size * 2, 1, "H")
        print(f"  avail {position}: " + chain(memory, desc, size, head))
    for step in range(min(count, size, used), 0, -1):
        position = (used - step) & 0xFFFF
        head, length = memory.words(device + 4 + position % size * 8, 2, "I")
        print(f"  used {position}: head {head}, {length} bytes")


def chain(memory, table, size, head):
    text, index = f"head {head}", head
    for _ in range(size):
        if index >= size:
            return text + f" -> {index} is outside of the table"
        address, length = memory.words(table + index * 16, 1, "Q")[0], memory.words(table + index * 16 + 8, 1, "I")[0]
        flags, after = memory.words(table + index * 16 + 12, 2, "H")
        text += f" {address:#x}+{length:#x}{' w' if flags & 2 else ''}{' indirect' if flags & 4 else ''}"
        if not flags & 1:
            break
        index = after
    return text


def counter_words(cpu):
    return words(address_of(cpu["counters"]["words"]), 64)


@command("rv-counters")
def show_counters():
    """rv-counters: the counters of each CPU: exits by reason, events, ticks at EL2 and the longest exit."""
    for cpu in cpus():
        counts = counter_words(cpu)
        exits = {name: counts[EXIT_WORDS + n] for n, name in enumerate(EXITS) if counts[EXIT_WORDS + n]}
        events = {name: counts[EVENT_WORDS + n] for n, name in enumerate(EVENTS) if counts[EVENT_WORDS + n]}
        ticks = sum(counts[TICK_WORDS : TICK_WORDS + len(EXITS)])
        line = ", ".join(f"{name} {value}" for name, value in {**exits, **events}.items())
        print(f"cpu{number(cpu['index'])}: {line or 'nothing'}; {ticks} ticks at EL2, longest {counts[LONGEST]}")


@command("rv-trace", 1)
def show_trace(which, count="32"):
    """rv-trace CPU [COUNT]: the last COUNT records of the CPU's trace buffer. `ringctl trace` switches recording on; in a
    debugger: set var ringvisor::el2::stats::MASK.v.value = 3"""
    table = cpus()
    index = int(which, 0)
    if not 0 <= index < len(table):
        raise Problem(f"no CPU {index}; there are {len(table)}")
    ring = number(table[index]["counters"]["ring"])
    capacity = number(static("ringvisor::el2::stats::RECORDS"))
    head = counter_words(table[index])[TRACE_HEAD]
    mask = number(static("ringvisor::el2::stats::MASK"))
    print(f"{head} records so far, {capacity} kept, mask {mask:#x}")
    if not ring or not capacity:
        return
    for record in range(max(0, head - min(int(count, 0), capacity)), head):
        stamp, word = words(ring + record % capacity * 16, 2)
        kind, where = word & 0xFF, word >> 8 & 0xFF
        slot, queue, value = word >> 16 & 0xFF, word >> 24 & 0xFF, word >> 32
        what = TRACE_KINDS.get(kind, f"kind {kind}")
        if kind == 1:
            detail = f"{EXITS[slot] if slot < len(EXITS) else slot}, {value} ticks"
        elif kind == 6:
            detail = f"INTID {value}"
        else:
            detail = f"slot {slot} queue {queue}"
        print(f"  {record}: {stamp} {what:12} zone {where} {detail}")


class Plain:
    """Prints a wrapper as its contents."""

    def __init__(self, value, form):
        self.value, self.form = value, form

    def to_string(self):
        value = inside(self.value)
        if value.type.strip_typedefs().code == gdb.TYPE_CODE_STRUCT:
            return str(value)
        return self.form.format(int(value))


PRINTERS = [
    (re.compile(r"^ringvisor::addr::(Pa|Ipa|Va)$"), "{0:#x}"),
    (re.compile(r"^core::sync::atomic::Atomic(U|I|Bool|<[ui]|<bool)"), "{0}"),
    (re.compile(r"^core::sync::atomic::Atomic(Ptr)?<"), "{0:#x}"),
    (re.compile(r"^ringvisor::el2::mm::frames::(FrameBox|RegisterFrame)"), "{0:#x}"),
]


def printer(value):
    name = value.type.strip_typedefs().name or ""
    for pattern, form in PRINTERS:
        if pattern.match(name):
            return Plain(value, form)
    return None


printer.name = "ringvisor"
gdb.pretty_printers.insert(0, printer)
