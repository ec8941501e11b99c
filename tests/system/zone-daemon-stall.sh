#!/bin/sh
# The daemon is stopped for a minute in the middle of a guest's I/O: the guest waits, loses nothing and sees
# no error, and `ringctl` reports the cause throughout (torture c6). Then the daemon can open no more files,
# then it has no more memory, and then the OOM killer chooses it: disks are served, or served again
# (torture c10).
#@ needs: el2
#@ tier: all
#@ timeout: 600
. ./lib.sh
kill_guest
pid=$(worker)
kill -STOP "$pid"
end=$(($(date +%s) + 60))
while [ "$(date +%s)" -lt $end ]; do
    timeout 30 ringctl zone list 2>/tmp/message && fail "zone list of a stopped daemon succeeds"
    grep -q "process $pid) is stopped" /tmp/message || fail "unclear: $(cat /tmp/message)"
    sleep 5
done
kill -CONT "$pid"
within 30 zone_is guest1 running
is "worker" "$(worker)" "$pid"

# No further descriptors: no connection is accepted, but disks are served. The reads of each are counted
# before and after.
requests() { ringctl disk stats --json | tr -d ' ,' | sed -n 's/^"\(reads\|writes\)"://p' | awk '{ sum += $1 } END { print sum + 0 }'; }
more_requests() { [ "$(requests)" -gt "$1" ]; }
before=$(requests)
at_least "requests so far" "$before" 1
prlimit --pid "$pid" --nofile=0:1024 || fail "prlimit"
# accept(2) takes its descriptor before it waits: one more connection is accepted.
timeout 30 ringctl zone list >/dev/null 2>&1
for _ in 1 2 3 4 5; do
    timeout 2 ringctl zone list >/dev/null 2>&1 && fail "a daemon without descriptors answers"
done
prlimit --pid "$pid" --nofile=1024:1024 || fail "prlimit"
within 30 zone_is guest1 running
is "worker" "$(worker)" "$pid"
at_least "requests meanwhile" "$(requests)" $((before + 1))
grep -q 'cannot accept a connection' $LOG || fail "the log does not say that there are no descriptors"

# No further memory: no thread can be started for a connection; an allocation that fails ends the daemon, as
# SIGKILL does.
served_before=$(first_requests 1234)
prlimit --pid "$pid" --as=4096:unlimited || fail "prlimit"
for _ in 1 2 3 4 5; do
    timeout 2 ringctl zone list >/dev/null 2>&1
done
grep -q 'cannot start a thread for a connection\|the daemon died' $LOG || fail "a daemon without memory goes on as before"
prlimit --pid "$pid" --as=unlimited:unlimited || echo "the daemon has ended"
within 60 zone_is guest1 running
within 60 more_requests "$(requests)"
[ "$(worker)" = "$pid" ] || within 60 served 1234 "$served_before"

# The OOM killer is invoked, with the worker as its preferred victim. It logs a call trace of the process that
# invoked it.
kernel_is_quiet
served_before=$(first_requests 1234)
echo 1000 >/proc/"$(worker)"/oom_score_adj || fail "oom_score_adj"
echo f >/proc/sysrq-trigger || fail "sysrq"
within 60 served 1234 "$served_before"
dmesg | grep -q "Out of memory.*ringd" || fail "the OOM killer has not killed ringd"
dmesg --clear
WARNINGS='cannot accept a connection|cannot start a thread for a connection'
kill_guest_ends
