"""Compares a CPU's registers at its entries into root, a zone and root again.

Used by tests/host/root-inherits.sh on a machine with two CPUs, stopped at its first instruction. The second CPU enters
root at its boot, then a zone that writes to all that it may, then root again. What EL1 and EL0 may write must be the
same each time: as a reset leaves it.
"""

import re

import gdb

# Counters and what shows them; interrupts that are pending; general registers, which EL2 sets for the entry.
CHANGES = re.compile(
    r"(x\d+|w\d+|sp|pc|cpsr|ELR_EL[23]|SPSR_EL[23]|SP_EL2|CNTV?P?CT(SS)?_EL0|CNT.*TVAL.*|PMCCNTR.*|ISR_EL1|ICC_.*|.*_EL2|.*_EL3"
    r"|[A-Z].*_S|RVBAR.*|PMCEID.*|dummy.*)$"
)


def registers():
    frame = gdb.selected_frame()
    found = {}
    for register in frame.architecture().registers():
        if not CHANGES.match(register.name):
            try:
                found[register.name] = str(frame.read_register(register))
            except gdb.error:
                pass
    return found


def run_to(location):
    """Continues until the second CPU is at the location."""
    while True:
        # A temporary breakpoint: the CPU need not step over it.
        gdb.execute(f"thbreak {location}")
        gdb.execute("continue")
        if gdb.selected_thread().num == 2:
            return


# Else expressions and values read as the language of the frame has them, which differs from entry to entry.
gdb.execute("set language c")

entries = []
for owner in ["root", "a zone", "root after a zone"]:
    if entries:
        run_to("ringvisor::el2::run::wait_for_orders")
    run_to("*(long) &enter_lower")
    entries.append((owner, registers()))
    print(f"== the second CPU enters {owner}: {len(entries[-1][1])} registers")
boot = entries[0][1]
for owner, values in entries[1:]:
    for name in sorted(boot):
        if values.get(name) != boot[name]:
            print(f"== {owner} sees {name}: {values.get(name)}, at boot {boot[name]}")
print("== compared")
gdb.execute("detach")
