#!/bin/bash
# `make exec`: a panic of root's kernel is recognised, before the script and in it.
#@ timeout: 300
#@ tier: all
. tests/host/lib.sh
echo 'echo c >/proc/sysrq-trigger; sleep 100' >"$work/script"
"$HARNESS" exec --script "$work/script" --timeout 250 >"$work/out" 2>&1 &
in_script=$!
echo 'exit 0' >"$work/fine"
BOOTARGS="rdinit=/nonexistent root=/dev/none" "$HARNESS" exec --script "$work/fine" --timeout 250 >"$work/early" 2>&1
is "status of a panic at boot" $? 121
has "$work/early" "Kernel panic"
wait $in_script
is "status of a panic in the script" $? 121
has "$work/out" "root restarted"
exit 0
