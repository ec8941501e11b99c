#!/bin/sh
# What root sees while a guest reads its disk: stats, metrics, top, a trace, and what doctor says; and how
# many exits a 4 KiB read takes at depth 1 and 32.
#@ needs: el2
#@ timeout: 400
. ./lib.sh
cat >/tmp/autorun <<'S'
run() {
    echo "depth $1 begins"
    fio --name=r --filename=/dev/vdb --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth="$1" --time_based \
        --runtime=300 --minimal >/dev/null 2>&1 &
    read -r line
    kill $!
    wait
    echo "depth $1 ended"
}
run 1
run 32
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
disk=/run/observe.img
dd if=/dev/urandom of=$disk bs=1M count=4 2>/dev/null
hash=$(image_hash $disk)
zone_file guest1 1 256M root.img $disk
ringctl doctor >/tmp/doctor || { cat /tmp/doctor; fail "doctor finds something wrong before the daemon runs"; }
grep -q '^note *daemon .*not running' /tmp/doctor || fail "doctor does not say that the daemon is not running"
ip link set lo up
ringd --daemonize --metrics 127.0.0.1:9100 || { cat /run/ringd/ringd.log; fail "ringd does not start"; }
ringctl doctor >/tmp/doctor || { cat /tmp/doctor; fail "doctor finds something wrong"; }
grep -q '^ok *hypervisor .*version' /tmp/doctor || fail "doctor does not know the hypervisor's version"
ringctl zone start $Z/guest1.toml || fail "zone start"

# get FILE NAME: a counter in what `ringctl stats` printed, 0 if it is not there
get() { awk -v name="$2" '$1 == name { value = $2 } END { print value + 0 }' "$1"; }
cpu=$(ringctl zone list | awk '$1 == "guest1" { print $4 }')
# goes_on: the guest has read since /tmp/before
goes_on() {
    ringctl stats >/tmp/after && [ "$(get /tmp/after $reads_of)" -gt $(($(get /tmp/before $reads_of) + 20)) ]
}
reads_of=disk.guest1.1.queue0.reads
# measure DEPTH SECONDS: exits per hundred reads, in $notes, $kicks, $all (guest's CPU) and $root (root's
# CPUs)
measure() {
    says_within 120 "^depth $1 begins"
    ringctl stats >/tmp/before || fail "stats"
    # fio takes a while to start.
    within 60 goes_on
    ringctl stats >/tmp/before || fail "stats"
    sleep "$2"
    ringctl stats >/tmp/after || fail "stats"
    reads=$(($(get /tmp/after $reads_of) - $(get /tmp/before $reads_of)))
    at_least "reads" "$reads" 50
    rise() { echo $(($(get /tmp/after "$1") - $(get /tmp/before "$1"))); }
    notes=$(($(rise "cpu$cpu.exits.permission") * 100 / reads))
    kicks=$(($(rise "cpu$cpu.kicks_taken") * 100 / reads))
    sum() { awk -v cpu="cpu$cpu." -v own="$2" '/\.exits\./ && (index($1, cpu) == 1) == own { n += $2 } END { print n + 0 }' "$1"; }
    all=$((($(sum /tmp/after 1) - $(sum /tmp/before 1)) * 100 / reads))
    root=$((($(sum /tmp/after 0) - $(sum /tmp/before 0)) * 100 / reads))
    echo "depth $1: $reads reads in $2 s; exits per 100 reads: guest $all (registers $notes, kicks $kicks), root $root"
}
measure 1 3
depth1_exits=$((notes + kicks))
# A notification, an acknowledgement and one kick; the rest are timers.
[ $depth1_exits -le 330 ] || fail "$depth1_exits exits for 100 reads at depth 1 on the guest's CPU, expected at most 300"

# The reactor runs on the CPU that takes the event interrupt.
interrupt=$(awk '/uio_pci_generic/ { sub(":", "", $1); print $1 }' /proc/interrupts)
taken=$(cat "/proc/irq/$interrupt/effective_affinity_list")
kept=$(for pid in $(pgrep -x ringd); do for task in /proc/"$pid"/task/*; do
    [ "$(cat "$task/comm")" = reactor ] && awk '/^Cpus_allowed_list/ { print $2 }' "$task/status"
done; done)
is "the reactor's CPU" "$kept" "$taken"

ringctl top --once --interval 2 >/tmp/top || fail "top"
cat /tmp/top
awk '$1 == "guest1" && $2 == "vdb" && $3 > 0 { found = 1 } END { exit !found }' /tmp/top || fail "top shows no reads"
busybox wget -qO /tmp/metrics http://127.0.0.1:9100/metrics || fail "no metrics"
grep -q '^ringvisor_queue_total{zone="guest1",slot="1",queue="0",what="reads"} [1-9]' /tmp/metrics || fail "reads in metrics"
[ "$(tail -n 1 /tmp/metrics)" = "# EOF" ] || fail "metrics are cut off"
ringctl stats --json >/tmp/stats.json || fail "stats --json"
grep -q '"kicks_taken"' /tmp/stats.json || fail "no kicks in the JSON"

ringctl trace --seconds 2 --output /tmp/trace.json >/tmp/summary || fail "trace"
cat /tmp/summary
for stage in "ring entry" "popped" "submitted" "completed" "used ring" "doorbell trap" "interrupt injected" "acknowledged" \
    "request"; do
    count=$(sed -n "s/^$stage  *\([0-9]*\) .*/\1/p" /tmp/summary)
    at_least "requests that passed '$stage'" "${count:-0}" 20
done
head -c 40 /tmp/trace.json | grep -q '^{"displayTimeUnit":"ns","traceEvents":' || fail "the trace is no trace"
tail -n 1 /tmp/trace.json | grep -q '^\],"otherData":{.*}}$' || fail "the trace is cut off"
guest_says "depth 1 ended" && fail "the guest's reads ended before they were measured"
tell_guest next

measure 32 2
tell_guest end
[ $((notes + kicks)) -lt $depth1_exits ] || fail "a deep queue takes as many exits for a read as a shallow one"
ringctl zone wait guest1 || fail "the guest did not end well"
is "hash of the image" "$(image_hash $disk)" "$hash"
clean $Z/root.img
rm $disk
kernel_is_quiet
