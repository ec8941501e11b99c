#!/bin/sh
# What zones and clients see of a daemon that is stopped, started twice, upgraded, stuck or dead (torture c4,
# c6, c7, c12).
#@ needs: el2
#@ boot: disks
#@ timeout: 400
. ./lib.sh
cat >/tmp/autorun <<'S'
i=0
while :; do i=$((i + 1)); echo "alive $i"; sleep 1; done &
while :; do
    for state in 0 1; do echo $state >/sys/devices/system/cpu/cpu1/online || echo "psci: failed"; sleep 1; done
    echo "psci: CPU 1 was off and on"
done &
while :; do
    seed=$((seed + 1))
    fio --name=v --filename=/dev/vdb --size=256K --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
        --randseed=$seed --verify=crc32c --verify_fatal=1 >/tmp/fio.out 2>&1 || { echo "fio: failed"; cat /tmp/fio.out; break; }
    echo "fio: run $seed"
    sleep 2
done &
sleep 10000
S
guest_disk $Z/root.img /tmp/autorun
# An image on a file system that can be frozen: its requests then neither complete nor can be cancelled.
truncate -s 64M /srv/frozen.img
mkfs.ext4 -q -F /srv/frozen.img || fail "mkfs"
mkdir -p /srv/frozen
mount -o loop /srv/frozen.img /srv/frozen || fail "mount"
truncate -s 4M /srv/frozen/data.img
zone_file guest1 2 256M root.img /srv/frozen/data.img
ringd --daemonize --supervise || fail "ringd does not start"
ringctl zone start $Z/guest1.toml || fail "zone start"
runs() { ringctl zone console guest1 --dump | grep -c '^fio: run'; }
more_runs() { says_within "$1" '^fio: run' $(($2 + 1)); }
alive() { ringctl zone console guest1 --dump | grep -c '^alive'; }
healthy() { ringctl zone console guest1 --dump | grep -E 'fio: failed|psci: failed' && fail "$1: the guest saw errors"; zone_is guest1 running || fail "$1: $(zone_state guest1)"; }
more_runs 200 0
# Waits through everything that follows.
ringctl zone wait guest1 >/tmp/waited 2>&1 &
waiter=$!

# Without privileges (c12).
pid=$(worker)
is "user" "$(awk '/^Uid:/ { print $2, $3, $4, $5 }' /proc/$pid/status)" "7276 7276 7276 7276"
is "capabilities" "$(awk '/^Cap(Inh|Prm|Eff|Amb):/ { print $2 }' /proc/$pid/status | sort -u)" 0000000000000000
for task in /proc/"$pid"/task/*; do
    # The kernel's own threads for io_uring come and go.
    seccomp=$(awk '/^Name:/ { name = $2 } /^Seccomp:/ { print name, $2 }' "$task/status" 2>/dev/null)
    [ ! -e "$task" ] || is "seccomp of a thread" "$seccomp" "${seccomp% *} 2"
done
is "new privileges" "$(awk '/^NoNewPrivs:/ { print $2 }' /proc/$pid/status)" 1

# A second daemon (c7).
ringd 2>/tmp/message && fail "a second daemon runs"
grep -q "running already as process" /tmp/message || fail "unclear: $(cat /tmp/message)"

# Stopped (c6): a stall, reported as such. For a minute in zone-daemon-stall.
before=$(runs)
kill -STOP "$pid"
start=$(date +%s)
timeout 30 ringctl zone list 2>/tmp/message && fail "zone list of a stopped daemon succeeds"
took=$(($(date +%s) - start))
[ "$took" -le 10 ] || fail "ringctl needs $took s to say that the daemon is stopped"
grep -q "process $pid) is stopped" /tmp/message || fail "unclear: $(cat /tmp/message)"
sleep 1
kill -CONT "$pid"
more_runs 60 "$before"
healthy "after SIGCONT"
is "worker" "$(worker)" "$pid"

# Upgraded: another process, the same zones.
cp "$(command -v ringd)" /srv/ringd-new
before=$(runs)
timeout 60 ringctl upgrade /srv/ringd-new 2>/tmp/message || fail "upgrade: $(cat /tmp/message)"
grep -q "serves, as process" /tmp/message || fail "unclear: $(cat /tmp/message)"
new=$(worker)
[ "$new" != "$pid" ] || fail "the same process serves after an upgrade"
more_runs 60 "$before"
healthy "after an upgrade"

# The broker killed: its worker goes with it, and both are started again.
before=$(runs)
kill -KILL "$(cat /run/ringd/lock)"
other_worker() { [ "$(worker)" != "$new" ]; }
within 30 other_worker
[ ! -e "/proc/$new" ] || fail "the worker outlives its broker"
new=$(worker)
more_runs 60 "$before"
healthy "after the broker's death"

# A program that cannot take over is refused, and the old daemon continues.
timeout 60 ringctl upgrade /bin/true 2>/tmp/message && fail "an upgrade to /bin/true"
grep -q "no ringd that can take over" /tmp/message || fail "unclear: $(cat /tmp/message)"
printf '#!/bin/sh\necho "unexpected argument --poll" >&2\nexit 2\n' >/srv/ringd-old
chmod 755 /srv/ringd-old
timeout 60 ringctl upgrade /srv/ringd-old 2>/tmp/message && fail "an upgrade to a program that lacks an option"
grep -q "cannot take over: unexpected argument --poll" /tmp/message || fail "unclear: $(cat /tmp/message)"
rm /srv/ringd-old
sed -i 's/"version":2,/"version":99,/' /run/ringd/zones/guest1.json
timeout 60 ringctl upgrade 2>/tmp/message && fail "an upgrade over a record of another version"
grep -q "layout 99, this one has 2" /tmp/message || fail "unclear: $(cat /tmp/message)"
sed -i 's/"version":99,/"version":2,/' /run/ringd/zones/guest1.json
is "worker" "$(worker)" "$new"
healthy "after a refused upgrade"

# Killed with requests that cannot complete (c7): the next daemon waits for them and reports it.
before=$(runs)
# A thread of the daemon is in a system call that cannot be interrupted, and stays there.
in_call() { grep -l '^State:.D' "/proc/$(worker)"/task/*/status 2>/dev/null | head -n 1; }
stuck() {
    one=$(in_call)
    [ -n "$one" ] && sleep 1 && grep -q '^State:.D' "$one" && sleep 1 && grep -q '^State:.D' "$one"
}
trap 'fsfreeze -u /srv/frozen 2>/dev/null' EXIT
fsfreeze -f /srv/frozen || fail "fsfreeze"
within 60 stuck
kill -KILL "$new"
sleep 3
ringctl zone list >/tmp/list 2>&1
cat /tmp/list
grep -q 'guest1.*running' /tmp/list && fail "taken over before the old daemon's I/O had completed"
grep -qE "was killed, but I/O that it began has not completed|recovering" /tmp/list || fail "unclear: $(cat /tmp/list)"
grep -qE "I/O that (it|the last daemon) began has not completed" $LOG || fail "the log does not say what is waited for"
fsfreeze -u /srv/frozen || fail "thaw"
within 60 zone_is guest1 running
more_runs 60 "$before"
healthy "after a thaw"

kill -0 $waiter || fail "zone wait did not outlast the daemon: $(cat /tmp/waited)"

# No daemon at all: the guest's clock and CPUs continue, its output is kept.
psci() { ringctl zone console guest1 --dump | grep -c '^psci: CPU 1 was off and on'; }
before=$(alive) psci=$(psci)
pkill -x ringd
within 10 no_daemon
timeout 20 ringctl zone list 2>/tmp/message && fail "zone list without a daemon succeeds"
grep -q "ringd is not running" /tmp/message || fail "unclear: $(cat /tmp/message)"
sleep 6
ringd --daemonize || fail "the next daemon does not start"
gained=$(($(alive) - before))
at_least "lines that the guest printed without a daemon" "$gained" 5
at_least "times that its CPU 1 went off and on" $(($(psci) - psci)) 2
healthy "after a time without a daemon"

# Stopped while requests cannot complete, and the daemon killed meanwhile: the next daemon reclaims nothing
# before they have completed, then everything.
free() { awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo; }
cpus=$(nproc)
pages=$(free)
fsfreeze -f /srv/frozen || fail "fsfreeze"
within 60 stuck
timeout 60 ringctl zone stop guest1 >/dev/null 2>&1 &
sleep 2
is "huge pages while requests of a stopped zone run" "$(free)" "$pages"
pkill -KILL -x ringd
sleep 1
ringd --daemonize >/dev/null 2>&1 &
sleep 2
is "huge pages while requests of a dead daemon run" "$(free)" "$pages"
fsfreeze -u /srv/frozen || fail "thaw"
# How a zone ended stays on record.
empty() { ! ls /run/ringd/zones | grep -qv '\.ended$'; }
within 60 empty
is "CPUs" "$(nproc)" $((cpus + 2))
at_least "huge pages" "$(free)" $((pages + 1))
wait $waiter && fail "zone wait says that the guest powered itself off"
grep -q 'zone guest1 ' /tmp/waited || fail "zone wait says: $(cat /tmp/waited)"
wait
clean $Z/root.img stopped
grep seccomp $LOG && fail "a system call was refused"
umount /srv/frozen
rm -rf /srv/frozen /srv/frozen.img /srv/ringd-new
kernel_is_quiet
