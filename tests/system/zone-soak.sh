#!/bin/sh
# Everything at once (torture d8) on eight CPUs: four Linux guests that write and verify, a hostile one that
# runs again and again, one that is started and stopped, the daemon killed every few seconds, pauses, limits,
# stray doorbells, statistics and traces. For ten minutes (hours: raise `seconds` and the timeout): no guest
# sees an error, and nothing is left in the end.
#@ on: large
#@ needs: el2
#@ tier: all
#@ boot: own
#@ timeout: 1500
. ./lib.sh
seconds=600
guests="one two three four"
device=$(grep -l 0x7276 /sys/bus/pci/devices/*/device) || fail "no control device"
bar=$(awk 'NR == 1 { print $1 }' "$(dirname "$device")/resource")
used_buffer=$(printf '0x%x' $((bar + 0x1000 + 0x14)))
{
    verify_loop vdc "" vdb 0:64k:512:1 1M:3M:8k:256
    echo "dmesg | grep -E 'BUG:|Oops|rcu_.*stall' && echo 'guest saw errors'"
    verify_end vdb
    guest_ends
} >/tmp/autorun
at_least "CPUs of the machine" "$(nproc)" 8
mkdir -p $Z
cp /srv/zones/guest-test.bin $Z || fail "no guest-test.bin"
engine=io_uring
for zone in $guests; do
    guest_disk $Z/$zone-root.img /tmp/autorun
    truncate -s 8M $Z/$zone.img
    truncate -s 4K $Z/$zone-orders.img
    zone_file $zone 1 192M $zone-root.img
    printf '[[disk]]\npath = "%s"\nengine = "%s"\n' $zone.img $engine $zone-orders.img $engine >>$Z/$zone.toml
    [ $engine = threads ] && engine=io_uring || engine=threads
done
dd if=/dev/urandom of=$Z/scratch.img bs=64k count=16 2>/dev/null
cp $Z/scratch.img $Z/readonly.img
# All groups but those that count interrupts, or seconds, which stray doorbells and a daemon that is dead
# change.
cat >$Z/hostile.toml <<'S'
name = "hostile"
cpus = 1
memory = "64M"
kernel = "guest-test.bin"
cmdline = "test=inherited,transport,race,gic,timer,psci,uart,sysreg,aborts"
[[disk]]
path = "scratch.img"
serial = "scratch0"
[[disk]]
path = "readonly.img"
readonly = true
S
dd if=/dev/urandom of=$Z/again.img bs=64k count=16 2>/dev/null
zone_file again 1 64M again.img
readonly_hash=$(image_hash $Z/readonly.img)
value() { ringctl info --json | tr -d ' ,' | sed -n "s/^\"$1\"://p"; }
left() { echo "$(value pages_used) pages of EL2, $(nproc) CPUs, $(files) files"; }
ringd --daemonize --supervise || fail "ringd does not start"
says() { ringctl zone console "$1" --dump 2>/dev/null | tr -d '\r' | grep -q "$2"; }
# The state after a zone's end, once both engines have done I/O: each keeps its pool of threads.
ringctl zone start $Z/two.toml || fail "zone start"
within 300 says two '^io: begins'
sleep 5
ringctl zone stop two || fail "zone stop"
sleep 2
before=$(left)
for zone in $guests; do ringctl zone start $Z/$zone.toml || fail "zone $zone does not start"; done
for zone in $guests; do within 300 says $zone '^io: begins'; done

: >/tmp/soaking
: >/tmp/hostile-runs
: >/tmp/again-runs
# Commands fail when the daemon is killed: only the zones' final state counts.
(
    while [ -e /tmp/soaking ]; do
        timeout 300 ringctl zone run $Z/hostile.toml >/tmp/hostile.log 2>&1
        grep -E -A 3 '^(not ok|guest-test: FAIL)' /tmp/hostile.log >>/tmp/hostile-failed
        grep -q '^guest-test: PASS' /tmp/hostile.log && echo pass >>/tmp/hostile-runs
        timeout 60 ringctl zone stop hostile 2>/dev/null
    done
) &
(
    while [ -e /tmp/soaking ]; do
        timeout 60 ringctl zone start $Z/again.toml 2>/dev/null && echo pass >>/tmp/again-runs
        sleep 0.5
        timeout 60 ringctl zone stop again 2>/dev/null
    done
) &
kills=0
end=$(($(date +%s) + seconds))
# On a busy host for longer, until the daemon was killed often enough.
while [ "$(date +%s)" -lt $end ] || [ $kills -lt $((seconds / 60)) ]; do
    for zone in $guests; do
        timeout 30 ringctl zone pause $zone 2>/dev/null
        timeout 30 ringctl disk set-limit $zone vdb --iops $((200 + $(date +%s) % 800)) 2>/dev/null
        devmem "$used_buffer" 32 "$(printf '0x%x' $((($(date +%s) % 9) << 16 | $(date +%s) % 5)))"
        timeout 30 ringctl zone resume $zone 2>/dev/null
    done
    timeout 30 ringctl stats --json >/dev/null 2>&1
    timeout 30 ringctl trace --seconds 1 --output /tmp/trace.json >/dev/null 2>&1
    timeout 30 ringctl top --once --interval 1 >/dev/null 2>&1
    pid=$(sed -n 's/.* ready pid=\([0-9]*\) .*/\1/p' $LOG | tail -1)
    kill -KILL "$pid" 2>/dev/null && kills=$((kills + 1))
    sleep 2
done
rm /tmp/soaking
wait
is_there() { zone_is "$1" running || zone_is "$1" paused; }
for zone in $guests; do
    within 60 is_there $zone
    timeout 30 ringctl zone resume $zone 2>/dev/null
    timeout 30 ringctl disk set-limit $zone vdb --iops none || fail "set-limit"
    printf 'end\n' | dd of=$Z/$zone-orders.img conv=notrunc 2>/dev/null
done
for zone in $guests; do
    ringctl zone wait $zone || fail "zone $zone does not end well"
    ringctl zone console $zone --dump | tr -d '\r' | sed -n '/^fio:/,$p' >/tmp/text
    echo "$zone: $(head -n 1 /tmp/text)"
    grep -q "^fio: [1-9][0-9]* runs verified" /tmp/text || { cat /tmp/text; fail "fio in zone $zone"; }
    grep -q "guest saw errors" /tmp/text && { cat /tmp/text; fail "zone $zone saw errors"; }
    is "hash of $zone's disk" "$(image_hash $Z/$zone.img)" "$(sed -n 's/^hash of vdb: //p' /tmp/text)"
    clean $Z/$zone-root.img
done
echo "$kills kills; the hostile guest passed $(wc -l </tmp/hostile-runs) times; $(wc -l </tmp/again-runs) starts and stops"
[ ! -s /tmp/hostile-failed ] || { cat /tmp/hostile-failed; fail "the hostile guest reports a failure"; }
at_least "passes of the hostile guest" "$(wc -l </tmp/hostile-runs)" 1
at_least "starts and stops" "$(wc -l </tmp/again-runs)" 3
is "hash of the read-only image" "$(image_hash $Z/readonly.img)" "$readonly_hash"
none() { ! ls /run/ringd/zones | grep -qv '\.ended$'; }
within 60 none
# The last zone's threads may still be closing descriptors when its record is gone.
as_before() { [ "$(left)" = "$before" ]; }
(within 60 as_before) || {
    for pid in $(pgrep -x ringd); do
        tr '\0' ' ' <"/proc/$pid/cmdline"
        ls -l "/proc/$pid/fd"
    done
    fail "what is left is '$(left)', expected '$before'"
}
kernel_is_quiet
