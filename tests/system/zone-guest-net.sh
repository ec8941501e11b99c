#!/bin/sh
# The bare-metal test guest with a network device: packets to and from root by hand, hostile chains in both
# directions and in the control queue, resets while packets come; twice, since the first run has broken queues
# of a device that the second makes anew.
#@ needs: el2
#@ timeout: 240
. ./lib.sh
mkdir -p "$Z"
cp /srv/zones/guest-test.bin "$Z" || fail "no guest-test.bin next to the zone files"
daemon
cat >"$Z/net.toml" <<END
name = "net"
cpus = 1
memory = "64M"
kernel = "guest-test.bin"
cmdline = "test=net"

[[net]]
bridge = "ringvisor0"
END

# passes: runs the zone and checks the guest's result
passes() {
    ringctl zone run "$Z/net.toml" >"$Z/net.log" 2>&1 || { cat "$Z/net.log"; fail "zone run ends with $?"; }
    grep -q '^guest-test: PASS' "$Z/net.log" || { grep -vE '^ok ' "$Z/net.log"; fail "the guest says no"; }
    # All of the group's tests ran.
    [ "$(grep -c '^ok ' "$Z/net.log")" -ge 9 ] || { cat "$Z/net.log"; fail "tests were left out"; }
    echo "net: $(grep -c '^ok ' "$Z/net.log") tests of the guest passed"
}
before=$(worker)
passes
# A hostile driver has hurt no one: the daemon has not restarted, and the bridge has gone with the last zone.
is "worker" "$(worker)" "$before"
no_bridge() { [ ! -e /sys/class/net/ringvisor0 ]; }
within 10 no_bridge
passes
