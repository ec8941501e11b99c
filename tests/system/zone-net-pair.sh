#!/bin/sh
# Two zones on the daemon's bridge. One is isolated and filtered: it does not reach the other, and what it
# sends with forged addresses does not leave it; the other, without a filter, forges with success. Its port is
# detached and attached without both under load: now they reach each other, by large packets, VLAN and
# multicast, with iperf3 both ways.
#@ needs: el2
#@ timeout: 500
#@ tier: all
. ./lib.sh
cat >/tmp/autorun <<'S'
net=/sys/class/net/eth0
mac=$(cat $net/address)
until ip -4 addr show eth0 | grep -q 'inet 10\.72\.76\.'; do sleep 0.2; done
own=$(ip -4 addr show eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')
echo "net: address $own, mtu $(cat $net/mtu)"
iperf3 -s -D
ended() { dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q "$1"; }
word() { dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\0' | sed -n "s/^$1 //p"; }
hex() { env printf "$(printf '%s' "$1" | sed 's/[^0-9a-f]//g; s/../\\x&/g')"; }
address() { printf '%02x' $(echo "$1" | tr . ' '); }
# frame DESTINATION SOURCE REST: sends a frame, padded
frame() { { hex "$1$2$3"; head -c 60 /dev/zero; } | dd obs=2000 2>/dev/null | socat -u - INTERFACE:eth0; }
# forge OTHER: frames as from another zone: its MAC address, its IP address, ARP in its name, its neighbour
# advertisement, a router's
forge() {
    for count in 1 2 3; do
        frame ffffffffffff 525400666666 88b5
        frame ffffffffffff $mac "08060001080006040002 $mac $(address "$1") ffffffffffff $(address "$1")"
        frame ffffffffffff $mac "0800 45000014000000004011 0000 $(address "$1") 0a484c01"
        frame 333300000001 $mac "86dd 60000000 0010 3a ff fe80000000000000505400fffe666666 ff020000000000000000000000000001 86000000 40000708 00000000 00000000"
        frame 333300000001 $mac "88b5"
    done
    echo "net: has forged"
}
until ended forge; do sleep 0.3; done
other=$(word forge)
forge "$other"
ping -c 3 -i 0.3 -W 1 "$other" >/dev/null && echo "net: reached the other zone" || echo "net: alone"
# Root may take the other zone for this one, which that one has said: a new ARP request corrects it.
until ping -c 2 -W 2 10.72.76.1 >/dev/null; do ip neigh flush dev eth0; done
echo "net: root answers"
until ended load; do sleep 0.3; done
while ! ended reach; do ping -c 5 -i 0.02 -s 8000 10.72.76.1 >/dev/null; done
until ping -c 1 -W 1 "$other" >/dev/null; do sleep 0.5; done
echo "net: reached the other zone at last"
ping -c 20 -i 0.05 -s 8900 "$other" | grep ' 0% packet loss' | sed 's/^/net: jumbo /'
busybox modprobe 8021q
ip link add link eth0 name eth0.7 type vlan id 7
ip addr add "10.7.7.${own##*.}/24" dev eth0.7
ip link set eth0.7 up
ip addr show dev eth0.7
until ping -c 1 -W 1 "10.7.7.${other##*.}" >/dev/null; do sleep 0.5; done
echo "net: VLAN"
ping -6 -c 2 -W 2 ff02::1%eth0 | grep -q 'bytes from fe80' && echo "net: multicast"
until ended iperf; do sleep 0.3; done
if [ "$(word iperf)" = "$own" ]; then
    for way in '' -R; do
        iperf3 -c "$other" -t 3 $way >/tmp/iperf 2>&1 || cat /tmp/iperf
        sed -n "s/.* \([0-9.]* [KMG]bits.sec\).*receiver.*/net: iperf3 $way \1/p" /tmp/iperf
    done
    echo "net: iperf3 done"
fi
until ended end; do sleep 0.5; done
dmesg | grep -E 'hung_task|blocked for more|NETDEV WATCHDOG|virtio_net.*(error|fail)' && echo "guest saw errors"
echo "net: end"
poweroff
sleep 100
S
for zone in a b; do
    guest_disk $Z/$zone.img /tmp/autorun
    truncate -s 4K $Z/orders-$zone.img
    zone_file $zone 1 192M $zone.img orders-$zone.img
    printf '[[net]]\nbridge = "ringvisor0"\nmtu = 9000\n' >>$Z/$zone.toml
done
printf 'filter = true\nisolated = true\n' >>$Z/a.toml
order() { printf '%s\n' "$2" | dd of="$Z/orders-$1.img" conv=notrunc 2>/dev/null; }
says() { ringctl zone console "$1" --dump | tr -d '\r' | grep -q "$2"; }
address() { ringctl zone console "$1" --dump | tr -d '\r' | sed -n 's/^net: address \([0-9.]*\),.*/\1/p'; }
no_daemon || fail "a daemon runs already"
ringd --daemonize --supervise || fail "ringd does not start"
for zone in a b; do ringctl zone start $Z/$zone.toml || fail "zone start"; done
for zone in a b; do says_within 200 '^net: address .* mtu 9000' 1 $zone; done
# What arrives at the bridge from each zone's forgery.
nft -f - <<'S' || fail "nft"
table bridge seen {
    chain seen {
        type filter hook prerouting priority -300
        iifname "rv-a-0" ether type != { arp, ip, ip6 } counter comment "a"
        iifname "rv-b-0" ether type != { arp, ip, ip6 } counter comment "b"
        iifname "rv-a-0" ether saddr 52:54:00:66:66:66 counter comment "a"
        iifname "rv-b-0" ether saddr 52:54:00:66:66:66 counter comment "b"
        iifname "rv-a-0" icmpv6 type nd-router-advert counter comment "a"
        iifname "rv-b-0" icmpv6 type nd-router-advert counter comment "b"
    }
}
S
nft add rule bridge seen seen iifname "rv-a-0" ether type arp arp saddr ip "$(address b)" counter comment '"a"'
nft add rule bridge seen seen iifname "rv-a-0" ip saddr "$(address b)" counter comment '"a"'
nft add rule bridge seen seen iifname "rv-b-0" ether type arp arp saddr ip "$(address a)" counter comment '"b"'
nft add rule bridge seen seen iifname "rv-b-0" ip saddr "$(address a)" counter comment '"b"'
order a "forge $(address b)"
order b "forge $(address a)"
for zone in a b; do
    says_within 100 '^net: has forged' 1 $zone
    says_within 100 '^net: alone' 1 $zone
    says_within 100 '^net: root answers' 1 $zone
done
nft list table bridge seen
seen() { nft list table bridge seen | sed -n "s/.*counter packets \([0-9]*\) .*comment \"$1\"/\1/p" | sort -n | tr '\n' ' '; }
is "packets that a forged and that arrived" "$(seen a)" "0 0 0 0 0 "
[ "$(seen b | cut -d ' ' -f 1)" -gt 0 ] || fail "b's forged packets did not arrive either: $(seen b)"

# Detached and attached under load. The daemon is killed while nothing is behind the device.
for zone in a b; do order $zone load; done
ringctl net attach a eth0 bridge=ringvisor0 2>/tmp/error && fail "attached twice"
grep -q 'bridge ringvisor0 is behind eth0 of zone a: `ringctl net detach a eth0` first' /tmp/error || { cat /tmp/error; fail "message"; }
ringctl net detach a eth0 || fail "detach"
is "link and source" "$(ringctl net list | awk '$1 == "a" { print $7, $NF }')" "down -"
[ ! -e /sys/class/net/rv-a-0 ] || fail "the tap is there"
kill -KILL "$(worker)" || fail "no worker to kill"
served_again() { [ "$(ringctl net list --json | grep -c '"link": true')" = 1 ]; }
within 100 served_again
ringctl net attach a eth0 bridge=nosuch 2>/tmp/error && fail "attached to nothing"
grep -q 'net\[0\].bridge = "nosuch": there is no bridge nosuch' /tmp/error || { cat /tmp/error; fail "message"; }
ringctl net attach a eth0 bridge=ringvisor0 || fail "attach"
is "link and source" "$(ringctl net list | awk '$1 == "a" { print $7, $NF }')" "up ringvisor0"
for zone in a b; do order $zone reach; done
for zone in a b; do
    says_within 100 '^net: reached the other zone at last' 1 $zone
    says_within 60 '^net: jumbo 20 packets transmitted, 20 ' 1 $zone
    says_within 60 '^net: VLAN' 1 $zone
    says_within 60 '^net: multicast' 1 $zone
done
for zone in a b; do order $zone "iperf $(address a)"; done
says_within 100 '^net: iperf3 done' 1 a
ringctl zone console a --dump | tr -d '\r' | grep '^net: iperf3'
says a '^net: iperf3 .*bits.sec' && says a '^net: iperf3 -R .*bits.sec' || fail "iperf3"
ringctl net stats
for zone in a b; do
    order $zone end
    ringctl zone wait $zone || fail "zone wait"
    says $zone '^net: end' || fail "guest $zone did not come to its end"
    says $zone 'guest saw errors' && fail "guest $zone reports an error"
done
nft delete table bridge seen
nothing_left() { [ ! -e /sys/class/net/ringvisor0 ] && [ ! -e /run/ringd/ports.sock ] && [ -z "$(nft list ruleset)" ]; }
within 30 nothing_left
grep -E 'seccomp|panicked|violated the virtio specification' $LOG && fail "the log complains"
kernel_is_quiet
