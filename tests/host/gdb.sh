#!/bin/bash
# `make gdb`: EL2's symbols are at the right address; the backtrace of a guest's first QueueNotify goes from
# the trap to the ring.
#@ needs: el2
#@ timeout: 500
. tests/host/lib.sh
timeout 480 "$HARNESS" gdb --batch tools/gdb/first-notify.gdb >"$work/out" 2>&1 </dev/null
status=$?
cat "$work/out"
is "status of gdb" $status 0
sed -n '/^== first stage-2 fault/,/^== first QueueNotify/p' "$work/out" >"$work/fault"
has "$work/fault" "ringvisor::el2::traps::stage2_fault"
sed -n '/^== first QueueNotify/,/^== commands/p' "$work/out" >"$work/notify"
for frame in ringvisor::el2::zone::devices::notify ringvisor::el2::traps::stage2_fault ringvisor::el2::traps::lower_sync; do
    has "$work/notify" "$frame"
done
# A data abort (class 0x24) of a lower level, at QueueNotify.
grep -qE "^ESR_EL2 +0x9[0-3]" "$work/notify" || fail "no data abort"
grep -qE "^FAR_EL2 +0x[0-9a-f]*050 " "$work/notify" || fail "not at QueueNotify"

# The commands of tools/gdb/ringvisor.py, at that moment.
sed -n '/^== commands/,/^== end/p' "$work/out" >"$work/commands"
matches() {
    grep -qE -- "$1" "$work/commands" || { cat "$work/commands"; fail "no line like '$1' from $2"; }
}
matches "^ +0 root +running" rv-zones
matches "^ +1 [a-z0-9]+ +running +[0-9]+ +0x[0-9a-f]+ +[0-9]+ +[1-9][0-9]* " rv-zones
matches "^ +0 +0x0 running +0 +0 " rv-vcpus
matches "^ +[1-9] +0x[1-9] running +1 +0 " rv-vcpus
matches "^IPA 0x40000000 -> PA 0x[0-9a-f]+" rv-stage2
matches "^Normal, read-write, 0x200000 bytes" rv-stage2
matches "^Device, read-only, 0x1000 bytes" rv-stage2
matches "^IPA 0x9000000 -> PA 0x9000000" "rv-stage2 of root"
matches "^head [1-9][0-9]*, armed [01], pending: " rv-ring
matches "^device id 2, status 0xf, " rv-queue
matches "^queue 0: .*Ready.*, size [1-9]" rv-queue
matches "^avail: idx [1-9][0-9]*, .* [1-9][0-9]* in flight" rv-queue
matches "^  avail [0-9]+: head [0-9]+ 0x4[0-9a-f]+\+0x" rv-queue
matches "^cpu[1-9]: .*permission [1-9]" rv-counters
matches "^0 records so far, [1-9][0-9]* kept, mask 0x0" rv-trace
matches "^elr ffff[0-9a-f]+  spsr 0x" rv-regs
matches '^\$1 = 0$' "the printer of atomics"
matches '^\$2 = [1-9][0-9]*$' "the printer of atomics"
matches "^ESR_EL2 0x9[0-9a-f]+ " rv-regs
exit 0
