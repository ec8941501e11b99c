#!/bin/sh
# A guest's network for longer: 1 GiB by hash each way while the daemon is killed, 10 000 pings, ten kills
# under iperf3, a reboot of the guest under load.
#@ needs: el2
#@ timeout: 1500
#@ tier: all
. ./lib.sh
cat >/tmp/autorun <<'S'
until ip -4 addr show eth0 | grep -q 'inet 10\.72\.76\.'; do sleep 0.2; done
ended() { dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q "$1"; }
iperf3 -s -D
echo "net: up $(ip -4 addr show eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')"
if ! ended again; then
    socat -u TCP:10.72.76.1:7002 - | md5sum | sed 's/^/net: received /'
    seq 1 120000000 | head -c 1G | socat -u - TCP:10.72.76.1:7001
    echo "net: sent"
    until ended pings; do sleep 0.3; done
    # By the kernel's count: busybox's ping takes replies for second ones when its timer comes in between.
    icmp() { awk -v name="$1" '$1 == "Icmp:" { for (i = 2; i <= NF; i++) if ($i == name) at = i; value = $at }
        END { print value }' /proc/net/snmp; }
    sent=$(icmp OutEchos) received=$(icmp InEchoReps)
    ping -c 10000 -i 0.002 -s 56 10.72.76.1 >/tmp/pings 2>&1
    tail -n 3 /tmp/pings
    echo "net: pings $(($(icmp OutEchos) - sent)) sent, $(($(icmp InEchoReps) - received)) received"
    until ended again; do sleep 0.3; done
    echo "net: reboots"
    reboot -f
    sleep 100
fi
echo "net: again"
until ended end; do sleep 0.3; done
dmesg | grep -E 'hung_task|blocked for more|NETDEV WATCHDOG|virtio_net.*(error|fail)' && echo "guest saw errors"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/orders.img
order() { printf '%s\n' "$1" | dd of=$Z/orders.img conv=notrunc 2>/dev/null; }
zone_file guest1 2 256M root.img orders.img
printf '[[net]]\nbridge = "ringvisor0"\n' >>$Z/guest1.toml
no_daemon || fail "a daemon runs already"
ringd --daemonize --supervise || fail "ringd does not start"
wanted=$(seq 1 120000000 | head -c 1G | md5sum)
# By pipes. Once a child of its own (SYSTEM, EXEC) has ended, socat gives up if the connection takes nothing
# for half a second, and what it has not sent is lost; the daemon's death takes longer.
socat -u TCP-LISTEN:7001,reuseaddr - | md5sum >/tmp/stream &
seq 1 120000000 | head -c 1G | socat -u - TCP-LISTEN:7002,reuseaddr &
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^net: up'
guest=$(ringctl zone console guest1 --dump | tr -d '\r' | sed -n 's/^net: up //p')
# kills COUNT SECONDS: kills the daemon so often, so far apart
kills() {
    for kill in $(seq "$1"); do
        sleep "$2"
        kill -KILL "$(worker)" || fail "no worker to kill"
        served_again() { [ "$(ringctl net list --json | grep -c '"link": true')" = 1 ]; }
        within 100 served_again
    done
}
kills 5 3
says_within 600 '^net: sent'
stream_ended() { grep -q . /tmp/stream; }
within 60 stream_ended
is "1 GiB from the guest" "$(cat /tmp/stream)" "$wanted"
is "1 GiB to the guest" "$(ringctl zone console guest1 --dump | tr -d '\r' | sed -n 's/^net: received //p')" "$wanted"
order pings
says_within 300 '^net: pings'
ringctl zone console guest1 --dump | grep '^net: pings'
guest_says '^net: pings 10000 sent, 10000 received' || fail "pings were lost, or came twice"
# Connections go on.
for way in '' -R; do
    iperf3 -c "$guest" -t 40 $way >/tmp/iperf 2>&1 &
    client=$!
    kills 5 2
    wait $client || { cat /tmp/iperf; fail "iperf3 $way"; }
    grep receiver /tmp/iperf
done
# The guest restarts while packets are sent to it.
iperf3 -u -b 20M -c "$guest" -t 20 >/tmp/iperf 2>&1 &
order again
says_within 100 '^net: reboots'
says_within 200 '^net: again'
reached() { ping -c 1 -W 1 "$guest" >/dev/null; }
within 60 reached
ringctl net stats
order end
ringctl zone wait guest1 || fail "zone wait"
guest_says 'guest saw errors' && fail "the guest reports an error"
grep -E 'seccomp|panicked|violated the virtio specification' $LOG && fail "the log complains"
kernel_is_quiet
