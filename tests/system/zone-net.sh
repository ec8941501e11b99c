#!/bin/sh
# A guest on a bridge that the daemon makes: pings, streams both ways while the daemon is
# killed four times, link down and up, limits; nothing is left when the zone ends.
#@ needs: el2
#@ timeout: 500
. ./lib.sh
# Text of some 1 MB, its lines all different, and its hash.
LINES=150000
cat >/tmp/autorun <<S
LINES=$LINES
S
cat >>/tmp/autorun <<'S'
net=/sys/class/net/eth0
ip link set eth0 up
ip addr add 10.72.76.2/24 dev eth0
echo "net: address $(cat $net/address), mtu $(cat $net/mtu), queues $(ls -d $net/queues/rx-* | wc -l)"
until ping -c 1 -W 1 10.72.76.1 >/dev/null; do sleep 1; done
echo "net: root answers"
ended() { dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q "$1"; }
while ! ended link; do
    seq 1 $LINES | nc 10.72.76.1 7001 && echo "net: sent"
    nc 10.72.76.1 7002 </dev/null >/tmp/got && md5sum </tmp/got | sed 's/^/net: received /'
done
ping -c 200 -i 0.02 -s 1400 10.72.76.1 >/tmp/pings 2>&1
sed -n '1,3s/^/net: ping /p' /tmp/pings; tail -n 3 /tmp/pings | sed 's/^/net: ping /'
grep -q ' 0% packet loss' /tmp/pings && echo "net: no ping lost"
echo "net: carrier $(cat $net/carrier)"
while [ "$(cat $net/carrier 2>/dev/null)" = 1 ]; do sleep 0.2; done
echo "net: carrier lost"
while [ "$(cat $net/carrier 2>/dev/null)" != 1 ]; do sleep 0.2; done
until ping -c 1 -W 1 10.72.76.1 >/dev/null; do sleep 1; done
echo "net: carrier again"
until ended end; do sleep 1; done
dmesg | grep -E 'hung_task|blocked for more|NETDEV WATCHDOG|virtio_net.*(error|fail)' && echo "guest saw errors"
echo "net: end"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/orders.img
order() { printf '%s\n' "$1" | dd of=$Z/orders.img conv=notrunc 2>/dev/null; }
zone_file guest1 2 256M root.img orders.img
cp $Z/guest1.toml $Z/bad.toml
printf '[[net]]\nbridge = "nosuch"\n' >>$Z/bad.toml
printf '[[net]]\nbridge = "ringvisor0"\nmac = "52:54:00:12:34:56"\nqueue_pairs = 2\n' >>$Z/guest1.toml
no_daemon || fail "a daemon runs already"
# Other tests of this boot have written to the same log.
before_test=$(wc -l <$LOG 2>/dev/null || echo 0)
ringd --daemonize --supervise || fail "ringd does not start"

ringctl zone start $Z/bad.toml 2>/tmp/error && fail "a zone on a bridge that is not there"
grep -q 'net\[0\].bridge = "nosuch": there is no bridge nosuch' /tmp/error || { cat /tmp/error; fail "another message"; }
nothing_kept() { [ ! -e /run/ringd/ports.sock ]; }
within 10 nothing_kept

ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^net: root answers'
guest_says '^net: address 52:54:00:12:34:56, mtu 1500, queues 2' || fail "another device"
[ -e /sys/class/net/rv-guest1-0 ] || fail "no tap"
ringctl net list
is "line of the list" "$(ringctl net list | awk '$1 == "guest1" { print $2, $4, $5, $6, $7, $NF }')" \
    "eth0 52:54:00:12:34:56 1500 2 up ringvisor0"

# Streams both ways, one after the other, for as long as the daemon is being killed.
wanted=$(seq 1 $LINES | md5sum)
while [ ! -e /tmp/streams-end ]; do nc -l -p 7001 | md5sum >>/tmp/streams; done &
while [ ! -e /tmp/streams-end ]; do seq 1 $LINES | nc -l -p 7002 2>/dev/null; done &
says_within 100 '^net: sent'
for kill in 1 2 3 4; do
    sleep 1
    kill -KILL "$(worker)" || fail "no worker to kill"
    served_again() { [ "$(ringctl net list --json | grep -c '"link": true')" = 1 ]; }
    within 100 served_again
done
streams() { ringctl zone console guest1 --dump | grep -c '^net: received'; }
at_kills=$(streams)
says_within 200 '^net: received' $((at_kills + 2))
order link
says_within 200 '^net: carrier 1'
touch /tmp/streams-end
guest_says '^net: no ping lost' || fail "pings were lost"
at_least "streams that root received" "$(grep -c . /tmp/streams)" 2
# Not compared with what was sent: see "Known gaps" in docs/net.md.
echo "expected $wanted"; sort /tmp/streams | uniq -c
ringctl zone console guest1 --dump | tr -d '\r' | grep '^net: received' | sort | uniq -c
ringctl net stats
is "packets refused" "$(ringctl net stats | awk '$1 == "guest1" { sum += ($NF ~ /too_|offload|refused/) } END { print sum + 0 }')" 0

ringctl net set-link guest1 eth0 down || fail "set-link down"
says_within 30 '^net: carrier lost'
# The daemon's successor knows that the link is down.
kill -KILL "$(worker)" || fail "no worker to kill"
is_down() { [ "$(ringctl net list | awk '$1 == "guest1" { print $7 }')" = down ]; }
within 100 is_down
ringctl net set-link guest1 eth0 up || fail "set-link up"
says_within 30 '^net: carrier again'
ringctl net set-limit guest1 eth0 --rate 1Mbit --pps 1000 || fail "set-limit"
is "limits" "$(ringctl net list | awk '$1 == "guest1" { print $8, $9 }')" "1000000 1000"
ringctl net set-link guest1 eth7 down 2>/tmp/error && fail "a device that is not there"
grep -q 'no network device eth7' /tmp/error || { cat /tmp/error; fail "another message"; }

order end
ringctl zone wait guest1 || fail "zone wait"
guest_says '^net: end' || fail "the guest did not come to its end"
guest_says 'guest saw errors' && fail "the guest reports an error"
gone() { [ ! -e /sys/class/net/rv-guest1-0 ] && nothing_kept; }
within 30 gone
tail -n +$((before_test + 1)) $LOG | grep -E 'seccomp|panicked|violated the virtio specification' &&
    fail "the log complains"
kernel_is_quiet
