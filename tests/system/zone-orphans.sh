#!/bin/sh
# The guest resets its disk, and later itself, with a read in flight whose daemon is dead and which the kernel
# cannot cancel: neither reset completes before the read has, and nothing is written into the guest's memory
# afterwards (torture a9, c7). A stop in the same state is in zone-daemon-states.
#@ needs: el2
#@ tier: all
#@ timeout: 400
. ./lib.sh
export DM_DISABLE_UDEV=1
mkdir -p $Z
dd if=/dev/urandom of=$Z/back.img bs=64k count=16 2>/dev/null
loop=$(losetup -f --show $Z/back.img)
echo "0 2048 linear $loop 0" | dmsetup create held || fail "dmsetup create"
tidy() {
    dmsetup resume held
    ringctl zone stop guest1 2>/dev/null
    dmsetup remove held
    losetup -d "$loop"
}
trap tidy EXIT
for what in reset reboot; do
    test_guest guest1 64M "test=orphans-$what" /dev/mapper/held
    sed -i '/^cmdline/a on_reboot = "restart"' $Z/guest1.toml
    # Its format is not looked for: the device does not answer.
    echo 'format = "raw"' >>$Z/guest1.toml
    [ $what = reset ] && done='guest-test: reset' || done='guest-test: second life'
    daemon
    dmsetup suspend held || fail "dmsetup suspend"
    ringctl zone start $Z/guest1.toml || fail "zone start"
    says_within 60 '^guest-test: reading'
    before=$(awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo)
    pkill -KILL -x ringd
    # Time for the guest to reset what it resets. The next daemon may have to wait for the last one's process,
    # too.
    sleep 8
    ringd --daemonize >/dev/null 2>&1 &
    sleep 4
    ringctl zone list >/tmp/list 2>&1
    cat /tmp/list
    grep -qE "was killed, but I/O that it began has not completed|recovering" /tmp/list ||
        fail "$what: the last daemon's I/O is not waited for"
    is "huge pages" "$(awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo)" "$before"
    dmsetup resume held
    says_within 60 "^$done"
    ringctl zone wait guest1 || fail "$what: zone wait"
    guest_says '^guest-test: PASS' || { ringctl zone console guest1 --dump; fail "$what: the guest says no"; }
    echo "$what: not done before the read had ended"
done
kernel_is_quiet
