# Makes EL2 branch to an address that it does not map, and stops when the machine has been reset and EL2 has started again.
# Used by tests/host/el2-panic.sh: `harness gdb --batch tools/gdb/panic.gdb`.

hbreak ringvisor::el2::traps::stage2_fault
continue
delete
set $pc = 8
hbreak ringvisor::el2::root::init
continue
echo \n== started again\n
