#!/bin/bash
# A panic at EL2 ends the machine: it is reset, and the next start of EL2 has the log of the one that
# panicked; or all CPUs stop.
#@ needs: el2
#@ timeout: 900
. tests/host/lib.sh
console=build/gdb-console.log
run() { # SCRIPT
    timeout 400 "$HARNESS" gdb --batch "tools/gdb/$1" >"$work/out" 2>&1 </dev/null
    status=$?
    [[ $status == 0 ]] || { cat "$work/out"; fail "status of gdb: $status"; }
    tr -d '\r' <$console >"$work/console"
}
lines() { grep -cE -- "$1" "$work/console"; }

EL2_ARGS="panic=reset" run panic.gdb
has "$work/out" "== started again"
# Once by the EL2 that panicked, once by the next.
is "reports of the panic" "$(lines '^EL2 PANIC: cpu[0-9]+: synchronous exception at EL2$')" 2
is "registers" "$(lines 'ELR_EL2 0x0000000000000008 ')" 2
is "ends" "$(lines '^EL2: the machine is reset$')" 2
is "starts" "$(lines 'INFO\] ringvisor [0-9.]+ at 0x')" 2
has "$work/console" "start 2 after a panic: the log goes on"

EL2_ARGS="panic=halt" run panic-halt.gdb
has "$work/out" "== the machine stops"
is "reports of the panic" "$(lines '^EL2 PANIC: cpu[0-9]+: synchronous exception at EL2$')" 1
is "ends" "$(lines '^EL2: the machine stops$')" 1
is "starts" "$(lines 'INFO\] ringvisor [0-9.]+ at 0x')" 1
exit 0
