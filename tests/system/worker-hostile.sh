#!/bin/sh
# In place of the worker runs a program that an attacker wrote, with the worker's descriptors, mappings and
# restrictions: it gets at nothing of root's, and pages that it takes from its zone's file stay away from root
# (torture i2). The zone is ended in order by the next daemon. Control: without the sandbox it gets at much.
#@ on: a57
#@ needs: el2
#@ boot: cpus
#@ timeout: 120
. ./lib.sh
no_daemon || fail "a daemon runs already"
hostile=$PWD/hostile-worker
[ -x "$hostile" ] || fail "no hostile-worker beside the tests"
attack() { # NAME OPTION...
    shown=/tmp/$1
    shift
    "$hostile" "$@" >"$shown" 2>"$shown.log"
    grep -q ': ' "$shown" || { cat "$shown" "$shown.log"; fail "the worker has tried nothing"; }
}
pages() { awk -v key="HugePages_$1:" '$1 == key { print $2 }' /proc/meminfo; }

# A file of root's alone.
: >>/etc/shadow
chmod 600 /etc/shadow
daemon
mkdir -p $Z
truncate -s 1M $Z/z.img
zone_file z '[1]' 64M $Z/z.img
ringctl zone start $Z/z.toml || fail "zone start"
free=$(pages Free)
kill -9 $(pgrep -x ringd)
within 10 no_daemon

attack control --no-sandbox
cat /tmp/control
for attempt in "open /dev/mem" "open a file" "open a file that all may read" "make a file" "make a process" \
    "make a socket" "make an Internet socket" "make a ring" "kill the broker"; do
    grep -q "^$attempt: SUCCEEDED" /tmp/control || fail "the control does not show: $attempt"
done
# Not held back by the sandbox but by the broker, EL2, and the rings' own restrictions.
for attempt in "attach by the serving page" "attach 64 KiB further on" "donate by the serving page" "detach" \
    "donate root's memory to a zone" "be given a file" "make a zone's memory" "make a zone" "take a CPU" \
    "have a program take over" "be given a connection" "open by a ring"; do
    grep -q "^$attempt: refused" /tmp/control || fail "without the sandbox: $attempt: $(grep "^$attempt" /tmp/control)"
done
rm -f /tmp/hostile

attack attack
cat /tmp/attack
grep -q SUCCEEDED /tmp/attack && fail "the worker got at something"
is "attempts" "$(grep -c ': refused' /tmp/attack)" "$(($(grep -c ': ' /tmp/control) + 1))"
[ -e /tmp/hostile ] && fail "the worker has made a file"
grep -q "open by a ring: refused (Permission denied" /tmp/attack || fail "io_uring refuses for another reason"
grep -q "punched: Ok.*truncated: Ok" /tmp/attack || fail "the zone's file was not punched: nothing is shown"
is "free huge pages" "$(pages Free)" "$free"

# The next daemon sees what has become of the file, and ends the zone.
daemon
within 30 zone_is z stopped
grep -q "z.ram: it has 0 bytes, expected 67108864" $LOG || fail "the log does not say why the zone was stopped"
within 10 sh -c '[ "$(nproc)" = "$(ls -d /proc/device-tree/cpus/cpu@* | wc -l)" ]'
ringctl zone start $Z/z.toml || fail "another zone cannot be started"
ringctl zone stop z || fail "zone stop"
kernel_is_quiet

# Control: without a reference of another process the pages do return.
huge=$(awk '$3 == "hugetlbfs" { print $2; exit }' /proc/mounts)
echo $(($(pages Total) + 1)) >/proc/sys/vm/nr_hugepages
fallocate -l 2M "$huge/control" || fail "no huge page for the control"
free=$(pages Free)
truncate -s 0 "$huge/control"
is "free huge pages after a file was truncated" "$(pages Free)" $((free + 1))
rm "$huge/control"
