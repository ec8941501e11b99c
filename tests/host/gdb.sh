#!/bin/bash
# `make gdb`: EL2's symbols are at the right address; the backtrace of a guest's first QueueNotify goes from the trap to the
# ring.
#@ needs: el2
#@ timeout: 400
. tests/host/lib.sh
timeout 380 "$HARNESS" gdb --batch tools/gdb/first-notify.gdb >"$work/out" 2>&1 </dev/null
status=$?
cat "$work/out"
is "status of gdb" $status 0
sed -n '/^== first stage-2 fault/,/^== first QueueNotify/p' "$work/out" >"$work/fault"
has "$work/fault" "ringvisor::el2::traps::stage2_fault"
sed -n '/^== first QueueNotify/,/^== end/p' "$work/out" >"$work/notify"
for frame in ringvisor::el2::zone::devices::notify ringvisor::el2::traps::stage2_fault ringvisor::el2::traps::lower_sync; do
    has "$work/notify" "$frame"
done
# A data abort (class 0x24) of a lower level, at QueueNotify.
grep -qE "^ESR_EL2 +0x9[0-3]" "$work/notify" || fail "no data abort"
grep -qE "^FAR_EL2 +0x[0-9a-f]*050 " "$work/notify" || fail "not at QueueNotify"
exit 0
