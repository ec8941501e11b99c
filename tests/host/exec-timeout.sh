#!/bin/bash
# `make exec`: TIMEOUT ends the machine with status 124 and says so; wrong arguments are named; QEMU that ends
# is noticed.
#@ timeout: 400
. tests/host/lib.sh
echo 'echo started; sleep 1000' >"$work/script"
# The timeout counts from the start of QEMU: on a busy machine it may expire before root has come up.
for seconds in 40 180; do
    "$HARNESS" exec --script "$work/script" --smp 1 --timeout $seconds >"$work/out" 2>&1 </dev/null
    is "status" $? 124
    has "$work/out" "timeout: not finished after $seconds s"
    grep -q started "$work/out" && break
done
has "$work/out" "started"

for wrong in "--script /nonexistent" "--script $work/script --smp many" "--script $work/script --mem 1Q" \
    "--script $work/script --files /nonexistent" "--script $work/script --timeout soon" \
    "--script $work/script --root-kernel /nonexistent" "--script $work/script --qemu /nonexistent"; do
    # shellcheck disable=SC2086 # the words are meant to be split
    "$HARNESS" exec $wrong >"$work/out" 2>&1 </dev/null
    is "status of $wrong" $? 125
    has "$work/out" "harness: "
done
"$HARNESS" exec --script "$work/script" --qemu-args "-nonsense" >"$work/out" 2>&1 </dev/null
is "status of a wrong QEMU argument" $? 125
has "$work/out" "QEMU ended before the script did"
exit 0
