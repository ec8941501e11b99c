#!/bin/sh
# Root restarts, panics, and restarts once more, each time with a zone at work (torture d7): the machine is
# reset, and the zone ends as by a power cut. What its guest had flushed is there, the images' file systems
# are clean once their journals are replayed, and root starts the zone again from its disk.
#@ needs: el2
#@ tier: all
#@ boot: own
#@ timeout: 600
. ./lib.sh
state=/var/lib/ringvisor
# Survives `clean`, which removes $Z at the end of the test only.
mkdir -p $Z
round=$(cat $state/resets 2>/dev/null || echo 0)
echo "round $round"
if [ "$round" = 0 ]; then
    cat >/tmp/autorun <<'S'
read -r last 2>/dev/null </count || last=0
echo "found $last"
n=$((last + 1))
while :; do
    printf '%-4096s' $n | dd of=/dev/vdb bs=4k seek=$n conv=fsync,notrunc 2>/dev/null || { echo "write failed"; break; }
    echo $n >/count.new
    sync /count.new
    mv /count.new /count
    sync /
    echo "flushed $n"
    n=$((n + 1))
done
sleep 100
S
    guest_disk $Z/root.img /tmp/autorun
    truncate -s 16M $Z/data.img
    zone_file guest1 1 256M root.img data.img
    sync
else
    # What the guest said that it had flushed before the reset.
    flushed=$(cat $state/flushed)
    clean $Z/root.img stopped
    found=$(debugfs -R 'cat count' $Z/root.img 2>/dev/null)
    at_least "the guest's count" "${found:-0}" "$flushed"
    number=1
    while [ "$number" -le "$flushed" ]; do
        is "block $number" "$(dd if=$Z/data.img bs=4k skip=$number count=1 2>/dev/null | tr -d ' ')" $number
        number=$((number + 1))
    done
    echo "$flushed flushed writes are there"
fi
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 150 '^found'
before=$(ringctl zone console guest1 --dump | tr -d '\r' | sed -n 's/^found //p')
[ "$round" = 0 ] || at_least "what the guest finds" "$before" "$flushed"
says_within 100 "^flushed $((before + 10))"
if [ "$round" = 3 ]; then
    ringctl zone stop guest1 || fail "zone stop"
    clean $Z/root.img stopped
    kernel_is_quiet
    exit 0
fi
ringctl zone console guest1 --dump | tr -d '\r' | sed -n 's/^flushed \([0-9]*\)$/\1/p' | tail -n 1 >$state/flushed
echo $((round + 1)) >$state/resets
touch $state/expect-reboot
# Only the files that root itself has written: nothing of the images is synced on the guest's behalf.
sync $state/flushed $state/resets $state/expect-reboot $state
case $round in
0) reboot -f ;;
1)
    echo 1 >/proc/sys/kernel/panic
    echo c >/proc/sysrq-trigger
    ;;
2)
    # An orderly restart stops the daemon, which leaves its zones running.
    pkill -x ringd
    sleep 1
    sync
    reboot -f
    ;;
esac
sleep 60
fail "the machine did not restart"
