#!/bin/sh
# A guest that storms costs another one no more than one that burns its CPU: the victim's reads are counted
# beside each, in one run. Storms: stores to the writeback byte, notifications, resets, reboots in
# a loop, discards on qcow2, requests that are large and not aligned.
#@ needs: el2
#@ tier: all
#@ timeout: 900
. ./lib.sh
cat >/tmp/autorun <<'S'
while :; do
    fio --name=v --filename=/dev/vdb --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=4 \
        --time_based --runtime=600 --minimal >/dev/null 2>&1
done
S
daemon
[ "$(nproc)" -ge 3 ] || fail "three CPUs are needed"
guest_disk $Z/victim-root.img /tmp/autorun
dd if=/dev/urandom of=$Z/victim.img bs=1M count=64 2>/dev/null
zone_file victim 1 256M victim-root.img victim.img
ringctl zone start $Z/victim.toml || fail "the victim does not start"
truncate -s 16M $Z/scratch.img

reads() { ringctl stats | awk '/^disk\.victim\.1\.queue0\.reads / { print $2 }'; }
busy() { [ "$(reads)" -gt 1000 ]; }
within 120 busy
# rate: the victim's reads in ten seconds
rate() {
    before=$(reads)
    sleep 10
    echo $(($(reads) - before))
}

# bare ENDING: a guest without an operating system that ends so
bare() {
    test_guest storm 64M "test=none end=$1" scratch.img
    ringctl zone start $Z/storm.toml || fail "storm zone"
    sleep 3
}
# linux COMMAND: a Linux that repeats it on a qcow2 image
linux() {
    echo "while :; do $1; done" >/tmp/storm
    guest_disk $Z/storm-root.img /tmp/storm
    qcow2 $Z/storm.qcow2 256
    zone_file storm 1 256M storm-root.img
    printf '[[disk]]\npath = "storm.qcow2"\nformat = "qcow2"\n' >>$Z/storm.toml
    ringctl zone start $Z/storm.toml || fail "storm zone"
    started() { [ "$(ringctl stats | awk '/^disk\.storm\.1\.notifications / { print $2 }')" -gt 20 ]; }
    within 120 started
}

bare hang
control=$(rate)
ringctl zone stop storm
echo "beside a guest that burns its CPU: $control reads in 10 s"
at_least "the control" "$control" 100
beside() {
    now=$(rate)
    echo "beside $1: $now reads, $((now * 100 / control)) %"
    ringctl zone stop storm || fail "the storm does not stop"
    at_least "reads beside $1" "$now" $((control * 8 / 10))
}
for storm in config notify reset; do
    bare storm-$storm
    beside "storm-$storm"
done
bare reset
beside "reboots in a loop"
linux 'blkdiscard /dev/vdb'
beside "discards on qcow2"
linux 'dd if=/dev/urandom of=/dev/vdb bs=3M count=20 conv=fsync'
beside "large writes on qcow2"
ringctl stats | grep -E '^daemon\.(event_pauses|full_rounds|restarts_delayed|log_lines_left_out) '
at_least "pauses of events" "$(ringctl stats | awk '/^daemon\.event_pauses / { print $2 }')" 1
at_least "restarts that were delayed" "$(ringctl stats | awk '/^daemon\.restarts_delayed / { print $2 }')" 1
ringctl zone stop victim
kernel_is_quiet
