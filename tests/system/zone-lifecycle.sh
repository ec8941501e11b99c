#!/bin/sh
# States of a zone: start, list, pause, resume, stop, wait; all its resources are reclaimed. The daemon's
# memory use.
#@ needs: el2
#@ timeout: 300
. ./lib.sh
pages() { ringctl info --json | tr -d ' ,' | sed -n 's/^"pages_used"://p'; }
free() { awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo; }
guest_disk $Z/root.img
dd if=/dev/urandom of=$Z/data.img bs=1M count=4 2>/dev/null
hash=$(image_hash $Z/data.img)
zone_file guest1 1 256M root.img data.img
ringd --daemonize --supervise || fail "ringd does not start"

# daemon_memory GUEST_RAM: KiB of supervisor, broker, worker and keeper, and of the next broker and worker,
# beside guest RAM; what they share counts once. Huge pages are not in Pss: the worker has mapped them all,
# the next one the one shared with EL2.
daemon_memory() {
    total=0
    most=0
    for pid in $(pgrep ringd); do
        pss=$(awk '$1 == "Pss:" { print $2 }' "/proc/$pid/smaps_rollup")
        huge=$(awk '$1 == "HugetlbPages:" { print $2 }' "/proc/$pid/status")
        total=$((total + pss))
        [ "$huge" -le $most ] || most=$huge
    done
    echo $((total + most - $1))
}
cpus=$(nproc)
pages_before=$(pages)
ringctl zone list --json | grep -q . || fail "no JSON"
for pid in $(pgrep -x ringd); do
    is "how a process of the daemon's stands where memory is short" "$(cat "/proc/$pid/oom_score_adj")" -900
done
for round in 1 2; do
    free_before=$(free)
    ringctl zone start $Z/guest1.toml || fail "zone start"
    is "state" "$(zone_state guest1)" running
    is "CPUs root keeps" "$(nproc)" $((cpus - 1))
    is "huge pages taken" $((free_before - $(free))) 128
    ringctl zone list --json | grep -q '"guest1"' || fail "not in the JSON list"
    ringctl zone start $Z/guest1.toml 2>/tmp/message && fail "a zone was started twice"
    grep -q guest1 /tmp/message || fail "unclear: $(cat /tmp/message)"
    if [ $round = 1 ]; then
        sleep 3
        memory=$(daemon_memory $((256 << 10)))
        echo "the daemon has $memory KiB beside its guest's RAM"
        at_least "the daemon's memory in KiB" "$memory" 1024
        [ "$memory" -lt 8192 ] || fail "the daemon has $memory KiB beside its guest's RAM, expected less than 8192"
    fi
    ringctl zone pause guest1 || fail "zone pause"
    is "state" "$(zone_state guest1)" paused
    ringctl zone console guest1 --dump >/tmp/one
    sleep 1
    ringctl zone console guest1 --dump >/tmp/two
    cmp /tmp/one /tmp/two || fail "a paused guest goes on"
    ringctl zone resume guest1 || fail "zone resume"
    is "state" "$(zone_state guest1)" running
    ringctl zone stop guest1 || fail "zone stop"
    is "CPUs" "$(nproc)" "$cpus"
    is "huge pages" "$(free)" "$free_before"
    is "EL2's pages" "$(pages)" "$pages_before"
    timeout 10 ringctl zone wait guest1
    is "status of zone wait for a stopped zone" $? 1
    is "hash of the image" "$(image_hash $Z/data.img)" "$hash"
    clean $Z/root.img stopped
done
for command in stop pause resume wait "console --dump"; do
    # shellcheck disable=SC2086 # the words are meant to be split
    timeout 10 ringctl zone $command nosuch 2>/tmp/message && fail "$command of a zone that does not exist"
    grep -q nosuch /tmp/message || fail "unclear: $(cat /tmp/message)"
done
# The supervisor blocks signals to take one at a time (none show while it waits for them): what it starts does
# not inherit that.
blocked=0
for pid in $(pgrep -x ringd); do
    mask=$(awk '/^SigBlk:/ { print substr($2, 13) }' "/proc/$pid/status" 2>/dev/null)
    [ $((0x${mask:-0} & 0x4000)) -eq 0 ] || blocked=$((blocked + 1))
done
is "processes that block SIGTERM" "$blocked" 0
exit 0
