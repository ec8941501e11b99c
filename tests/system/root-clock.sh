#!/bin/sh
# Timers: sleeps take as long as they should, and the clock never runs backwards on any CPU.
#@ on: a57
#@ all: generic max small
. ./lib.sh
# hundredths: since boot
hundredths() {
    read -r uptime _ </proc/uptime
    echo "${uptime%.*}${uptime#*.}"
}
pids=
for cpu in $(seq 0 $(($(nproc) - 1))); do
    (
        first=$(hundredths)
        taskset -c "$cpu" sleep 1
        passed=$(($(hundredths) - first))
        at_least "hundredths of a second on CPU $cpu" $passed 98
        # A lost timer never ends it; a loaded host may stretch it to seconds.
        at_least "hundredths to spare on CPU $cpu" $((2000 - passed)) 0
    ) &
    pids="$pids $!"
done
for pid in $pids; do
    wait "$pid" || exit 1
done
last=0
cpus=$(nproc)
for i in $(seq 1 28); do
    taskset -pc $((i % cpus)) $$ >/dev/null || fail "not on CPU $((i % cpus))"
    # Three times without a new process: the shell itself is on that CPU.
    for _ in 1 2 3; do
        read -r uptime _ </proc/uptime
        now=${uptime%.*}${uptime#*.}
        at_least "the clock" "$now" "$last"
        last=$now
    done
done
