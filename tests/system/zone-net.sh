#!/bin/sh
# A guest on the bridge that the daemon makes: addresses by DHCP and router advertisements, names, a port of
# root that leads to it, pings, streams by hash both ways while the daemon is killed four times, link down and
# up, limits; nothing is left when the zone ends.
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
echo "net: address $(cat $net/address), mtu $(cat $net/mtu), queues $(ls -d $net/queues/rx-* | wc -l)"
until ip -4 addr show eth0 | grep -q 'inet 10\.72\.76\.' && ip route | grep -q '^default via 10.72.76.1'; do sleep 0.2; done
echo "net: by DHCP $(ip -4 addr show eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')"
until ping -c 1 -W 1 10.72.76.1 >/dev/null; do sleep 1; done
echo "net: root answers"
until ip -6 addr show eth0 | grep -q 'inet6 fd.*:5054:ff:fe12:3456/64'; do sleep 0.5; done
router=$(ip -6 route | sed -n 's/^default via \([0-9a-f:]*\).*/\1/p' | head -n 1)
ping -6 -c 2 -W 2 "$router%eth0" >/dev/null && echo "net: router by IPv6"
nslookup guest1 10.72.76.1 | grep -q "$(ip -4 addr show eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')" && echo "net: its name is known"
socat -u TCP-LISTEN:7003,fork,reuseaddr SYSTEM:'cat >/dev/console' &
ended() { dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q "$1"; }
while ! ended link; do
    seq 1 $LINES | socat -u - TCP:10.72.76.1:7001 && echo "net: sent"
    socat -u TCP:10.72.76.1:7002 - >/tmp/got && echo "net: received $(md5sum </tmp/got) $(wc -c </tmp/got) bytes"
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
zone_file bad 1 64M null:1M
cp $Z/bad.toml $Z/plain.toml
# refused TEXT LINE...: a zone whose network device has these lines is refused with this text
refused() {
    text=$1
    shift
    { cat $Z/plain.toml; printf '[[net]]\n'; printf '%s\n' "$@"; } >$Z/bad.toml
    ringctl zone start $Z/bad.toml 2>/tmp/error && fail "a zone was started: $*"
    grep -qF "$text" /tmp/error || { cat /tmp/error; fail "another message than: $text"; }
}
no_daemon || fail "a daemon runs already"
# Other tests of this boot have written to the same log.
before_test=$(wc -l <$LOG 2>/dev/null || echo 0)
before_forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
ringd --daemonize --supervise || fail "ringd does not start"

own='bridge = "ringvisor0"'
# Other messages are in tests of the host, tools/ringd/src/ports/tests.rs.
refused 'net[0].bridge = "nosuch": there is no bridge nosuch' 'bridge = "nosuch"'
nothing_kept() { [ ! -e /run/ringd/ports.sock ]; }
within 10 nothing_kept
nothing_left() {
    [ ! -e /sys/class/net/ringvisor0 ] && ! ls /sys/class/net | grep -q '^rv-' && [ -z "$(nft list ruleset)" ] &&
        ! pidof dnsmasq passt >/dev/null && [ "$(cat /proc/sys/net/ipv4/ip_forward)" = "$before_forwarding" ]
}

printf '[[net]]\n%s\nmac = "52:54:00:12:34:56"\nqueue_pairs = 2\nforward = ["7003:7003"]\n' "$own" >>$Z/guest1.toml
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^net: root answers'
guest_says '^net: address 52:54:00:12:34:56, mtu 1500, queues 2' || fail "another device"
[ -e /sys/class/net/rv-guest1-0 ] || fail "no tap"
ringctl net list
is "line of the list" "$(ringctl net list | awk '$1 == "guest1" { print $2, $4, $5, $6, $7, $NF }')" \
    "eth0 52:54:00:12:34:56 1500 2 up ringvisor0"
refused 'net[0].forward = "7003:22": zone guest1 has this port of root' "$own" 'forward = ["7003:22"]'
says_within 60 '^net: router by IPv6'
says_within 20 '^net: its name is known'

# A port of root, for others and for root itself.
through() { echo "net: through $1" | socat -u - "TCP:$1:7003,connect-timeout=5"; }
for address in 127.0.0.1 10.72.76.1; do
    within 20 through $address
    says_within 20 "^net: through $address"
done

# Streams both ways, one after the other, for as long as the daemon is being killed.
seq 1 $LINES >/tmp/data
wanted=$(md5sum </tmp/data)
socat -u TCP-LISTEN:7001,fork,reuseaddr SYSTEM:'md5sum >>/tmp/streams' &
servers=$!
socat -U TCP-LISTEN:7002,fork,reuseaddr OPEN:/tmp/data,rdonly 2>/tmp/sender &
servers="$servers $!"
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
kill $servers
guest_says '^net: no ping lost' || fail "pings were lost"
sort /tmp/streams | uniq -c
at_least "streams that root received" "$(grep -c . /tmp/streams)" 2
is "kinds of streams that root received" "$(sort -u /tmp/streams)" "$wanted"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n 's/^net: received //p' >/tmp/received
at_least "streams that the guest received" "$(grep -c . /tmp/received)" 2
sort /tmp/received | uniq -c
cat /tmp/sender
is "kinds of streams that the guest received" "$(sort -u /tmp/received)" "$wanted $(wc -c </tmp/data) bytes"
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
within 30 nothing_kept
within 30 nothing_left
tail -n +$((before_test + 1)) $LOG | grep -E 'seccomp|panicked|violated the virtio specification' &&
    fail "the log complains"
kernel_is_quiet
