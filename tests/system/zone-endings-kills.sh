#!/bin/sh
# The daemon is killed around a guest's power-off: `zone run` returns the guest's status each time, the end of
# its console is not lost, and the next daemon knows how the zone ended (torture c5).
#@ on: a57
#@ needs: el2
#@ boot: cpus
#@ tier: all
#@ timeout: 500
. ./lib.sh
test_guest off 32M "test=none end=off"
no_daemon || fail "a daemon runs already"
ringd --daemonize --supervise || fail "ringd does not start"
before=$(nproc)
daemons=0
for kill in $(seq 18); do
    # The last zone's last line would be taken for this one's.
    rm -f /tmp/output
    ringctl zone run "$Z/off.toml" >/tmp/output 2>/tmp/error </dev/null &
    runner=$!
    within 60 grep -qs 'end=off' /tmp/output
    # From just before to well after the end.
    sleep "0.$((kill % 6))$((kill % 3 * 3))"
    ringctl zone list --json | grep -q powered_off || daemons=$((daemons + 1))
    kill -KILL "$(worker)"
    wait $runner
    status=$?
    [ $status = 0 ] || { cat /tmp/output /tmp/error $LOG; fail "after kill $kill \`zone run\` ends with $status"; }
    grep -q 'zone off powered off' /tmp/output || { cat /tmp/output /tmp/error; fail "after kill $kill the end is not on the console"; }
    known() { ringctl zone list --json 2>/dev/null | grep -q powered_off; }
    within 30 known
    ringctl zone console off --dump | grep -q 'end=off' || fail "the next daemon has lost the console"
    is "CPUs after kill $kill" "$(nproc)" "$before"
done
echo "18 kills, $daemons of them before the end was known"
grep -c 'the daemon died while it was being started' $LOG && fail "an end was taken for a start"
kernel_is_quiet
