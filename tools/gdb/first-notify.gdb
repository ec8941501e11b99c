# Stops at the first stage-2 fault, then at the first QueueNotify of a guest (the entry of its zone's ring), and shows how
# it got there. Used by tests/host/gdb.sh: `harness gdb --batch tools/gdb/first-notify.gdb`.

hbreak ringvisor::el2::traps::stage2_fault
continue
echo \n== first stage-2 fault\n
backtrace 12
delete

# Other entries come first, of resets for example. QueueNotify is at 0x50 of a device's page.
hbreak ringvisor::el2::zone::devices::notify
continue
while ($FAR_EL2 & 0xfff) != 0x50
    continue
end
echo \n== first QueueNotify\n
backtrace 12
el2-where
echo == commands\n
rv-zones
rv-vcpus
rv-stage2 1 0x40000000
rv-stage2 1 0x0a000000
rv-stage2 0 0x9000000
rv-ring 1
# Any of the disk's queues may be the first to be notified: each vCPU has its own.
rv-queue 1 0 all 4
rv-counters
rv-trace 0
# The CPU that notified, from the thread that gdb is at.
python gdb.execute(f"rv-regs {gdb.selected_thread().num - 1}")
# By pretty-printers.
print ringvisor::el2::cpu::CPUS[0].owner
print ringvisor::el2::stats::RECORDS
echo == end\n
