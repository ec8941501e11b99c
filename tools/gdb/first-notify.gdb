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
echo == end\n
