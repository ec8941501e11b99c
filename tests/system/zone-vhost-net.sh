#!/bin/sh
# A guest's network on a vhost-user server, `ringd serve --tap`: pings while the daemon is killed, which the
# server does not notice, and while the server is killed, which the daemon connects to again; a reboot of the
# guest; a server that is not there.
#@ needs: el2
#@ timeout: 400
. ./lib.sh
cat >/tmp/autorun <<'S'
ip link set eth0 up
ip addr add 10.73.0.2/24 dev eth0
until ping -c 1 -W 1 10.73.0.1 >/dev/null; do sleep 1; done
echo "net: root answers, mtu $(cat /sys/class/net/eth0/mtu)"
ended() { dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q "$1"; }
while ! ended "kills\|again\|end"; do ping -c 5 -i 0.1 -W 2 10.73.0.1 >/tmp/p && pings=$((pings + 1)); done
echo "net: $pings runs of pings"
ping -c 200 -i 0.02 -s 1400 10.73.0.1 >/tmp/pings 2>&1
grep -q ' 0% packet loss' /tmp/pings && echo "net: no ping lost"
until ping -c 3 -W 1 10.73.0.1 >/dev/null && ended "again\|end"; do sleep 1; done
echo "net: answers after the server's death"
dmesg | grep -E 'hung_task|blocked for more|NETDEV WATCHDOG|virtio_net.*(error|fail)' && echo "guest saw errors"
if [ ! -e /dev/vdb ] || ended end; then poweroff; else reboot; fi
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/orders.img
order() { printf '%s\n' "$1" | dd of=$Z/orders.img conv=notrunc 2>/dev/null; }
zone_file guest1 1 256M root.img orders.img
printf '[[net]]\nvhost_user = "/run/net.sock"\n' >>$Z/guest1.toml
no_daemon || fail "a daemon runs already"
before_test=$(wc -l <$LOG 2>/dev/null || echo 0)
ringd --daemonize --supervise || fail "ringd does not start"

ringctl zone start $Z/guest1.toml 2>/tmp/error && fail "a zone without its server"
grep -q 'net\[0\].vhost_user = "/run/net.sock": there is no socket' /tmp/error || { cat /tmp/error; fail "another message"; }

server() {
    ringd serve --tap vt0 --vhost-user /run/net.sock >/tmp/server.log 2>&1 &
    server=$!
    up() { [ -S /run/net.sock ] && ip addr show dev vt0 >/dev/null 2>&1; }
    within 20 up
    ip link set vt0 up
    ip addr replace 10.73.0.1/24 dev vt0
}
server
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^net: root answers, mtu 1500'
connections() { grep -c 'a front end has connected' /tmp/server.log; }
is "connections" "$(connections)" 1
# What else is behind it can be no change: the driver has what this server offers.
for change in 'detach guest1 eth0' 'attach guest1 eth0 bridge=ringvisor0'; do
    ringctl net $change 2>/tmp/error && fail "net $change"
    grep -q 'eth0 of zone guest1 cannot be .*: the vhost-user server at /run/net.sock transfers its packets' /tmp/error ||
        { cat /tmp/error; fail "another message"; }
done
for kill in 1 2 3; do
    sleep 1
    kill -KILL "$(worker)" || fail "no worker to kill"
    served_again() { [ "$(ringctl net list --json | grep -c '"link": true')" = 1 ]; }
    within 100 served_again
done
order kills
says_within 100 '^net: no ping lost'
is "connections after kills of the daemon" "$(connections)" 1

kill -KILL $server
server
order again
says_within 100 '^net: answers after the server'
# A rebooted guest's driver sets the queues up anew.
says_within 200 '^net: root answers' 2
order end
within 100 ringctl zone wait guest1
guest_says 'guest saw errors' && fail "the guest reports an error"
nothing_kept() { [ ! -e /run/ringd/ports.sock ]; }
within 30 nothing_kept
kill $server
tail -n +$((before_test + 1)) $LOG | grep -E 'seccomp|panicked|violated the virtio specification' &&
    fail "the log complains"
kernel_is_quiet
