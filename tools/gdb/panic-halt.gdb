# As panic.gdb, with `panic=halt`: stops when EL2 stops the other CPUs.

hbreak ringvisor::el2::traps::stage2_fault
continue
delete
set $pc = 8
hbreak ringvisor::el2::gic::cpu_interface::kick_others
continue
echo \n== the machine stops\n
