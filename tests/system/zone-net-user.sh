#!/bin/sh
# A guest behind passt: an address by passt's DHCP, ports of root that lead to it, streams by hash both ways
# while the daemon is killed; passt is killed and started anew; what keeps it from starting is said.
#@ needs: el2
#@ timeout: 300
#@ tier: all
. ./lib.sh
cat >/tmp/autorun <<'S'
until ip -4 addr show eth0 | grep -q 'inet 192\.168\.9\.'; do sleep 0.2; done
echo "net: by DHCP $(ip -4 addr show eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')"
socat -u TCP-LISTEN:7001,fork,reuseaddr SYSTEM:'md5sum | sed "s/^/net: received /" >/dev/console' &
seq 1 150000 >/tmp/data
socat -t 60 TCP-LISTEN:7002,fork,reuseaddr SYSTEM:'read -r word; cat /tmp/data' &
socat UDP-LISTEN:7003,fork SYSTEM:'cat' &
# listens FILE PORT STATE: a connection to a port that no program listens at yet would be refused.
listens() { grep -q ":$(printf %04X "$2") 00000000:0000 $3 " "/proc/net/$1"; }
until listens tcp 7001 0A && listens tcp 7002 0A && listens udp 7003 07; do sleep 0.2; done
echo "net: serves"
until dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q end; do sleep 0.3; done
dmesg | grep -E 'hung_task|blocked for more|NETDEV WATCHDOG|virtio_net.*(error|fail)' && echo "guest saw errors"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/orders.img
zone_file guest1 1 192M root.img orders.img
printf '[[net]]\nuser = true\nforward = ["7001:7001", "127.0.0.1:7002:7002", "udp:7003:7003"]\n' >>$Z/guest1.toml
no_daemon || fail "a daemon runs already"
ringd --daemonize --supervise || fail "ringd does not start"
ringctl zone start $Z/guest1.toml 2>/tmp/error && fail "passt without a route of root's"
grep -q 'net\[0\].user = true: passt does not start: .*a default route' /tmp/error || { cat /tmp/error; fail "another message"; }
# Root's network: passt wants one to be there, whether anything is behind it or not.
ip link add outside type bridge
ip addr add 192.168.9.2/24 dev outside
ip link set outside up
ip route add default via 192.168.9.1
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^net: serves'
guest_says '^net: by DHCP 192.168.9.2' || fail "another address"
seq 1 150000 >/tmp/data
wanted=$(md5sum </tmp/data)
received() { ringctl zone console guest1 --dump | grep -c '^net: received'; }
more() { [ "$(received)" -gt "$before" ]; }
# fetch: a stream from the guest. The client speaks first: passt of Debian 12 does not acknowledge the guest's
# SYN-ACK before it has something to send.
fetch() { echo go | timeout "$1" socat -t "$1" - TCP:127.0.0.1:7002,shut-none; }
# to_guest, from_guest: a stream each
to_guest() {
    before=$(received)
    socat -u OPEN:/tmp/data TCP:127.0.0.1:7001
    within 60 more
}
from_guest() {
    fetch 100 >/tmp/from
    is "stream from the guest" "$(md5sum </tmp/from)" "$wanted"
}
begun() { [ -s /tmp/from ]; }
served_again() { [ "$(ringctl net list --json | grep -c '"link": true')" = 1 ]; }
for kill in 1 2 3; do
    rm -f /tmp/from
    from_guest &
    stream=$!
    # passt of Debian 12 sends a SYN to its guest once: one that is lost with the daemon ends the connection.
    within 60 begun
    kill -KILL "$(worker)" || fail "no worker to kill"
    wait $stream || fail "a stream from the guest"
    within 100 served_again
    to_guest
done
[ "$(echo over UDP | socat -t 5 - UDP:127.0.0.1:7003)" = "over UDP" ] || fail "UDP"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n 's/^net: received //p' >/tmp/received
is "kinds of streams that the guest received" "$(sort -u /tmp/received)" "$wanted"
# passt ends: another takes its place.
first=$(pidof passt)
kill -KILL $first
another() { pidof passt >/dev/null && [ "$(pidof passt)" != "$first" ]; }
within 30 another
again() { [ "$(fetch 20 | md5sum)" = "$wanted" ]; }
within 60 again
is "link" "$(ringctl net list | awk '$1 == "guest1" { print $7 }')" up
printf 'end\n' | dd of=$Z/orders.img conv=notrunc 2>/dev/null
ringctl zone wait guest1 || fail "zone wait"
guest_says 'guest saw errors' && fail "the guest reports an error"
nothing_left() { [ ! -e /run/ringd/ports.sock ] && ! pidof passt >/dev/null; }
within 30 nothing_left
ip link del outside
kernel_is_quiet
