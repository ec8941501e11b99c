#!/bin/sh
# A guest reads its entropy device, /dev/hwrng: from several processes at once, within its limit, which keeps
# requests waiting, while the daemon is killed. The bare-metal guest has the driver's mistakes (virtio 1.2,
# 5.4).
#@ needs: el2
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'S'
echo "hwrng: $(cat /sys/class/misc/hw_random/rng_current)"
until dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q end; do
    for reader in 1 2 3 4; do
        dd if=/dev/hwrng of=/tmp/bytes.$reader bs=512 count=32 iflag=fullblock 2>/dev/null &
    done
    wait
    for reader in 1 2 3 4; do
        [ "$(stat -c %s /tmp/bytes.$reader)" = 16384 ] || echo "rng: short read"
    done
    # Random bytes cannot be compressed.
    [ "$(cat /tmp/bytes.* | gzip -9 | wc -c)" -ge 65536 ] || echo "rng: not random"
    runs=$((runs + 1))
    [ $runs = 1 ] && echo "rng: first run"
done
echo "rng: $runs runs"
read -r start _ </proc/uptime
dd if=/dev/hwrng of=/dev/null bs=512 count=128 iflag=fullblock 2>/dev/null
read -r end _ </proc/uptime
echo "rng: 64 KiB from $start to $end"
dmesg | grep -E 'hung_task|blocked for more|rng.*fail' && echo "guest saw errors"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/orders.img
zone_file guest1 1 256M root.img orders.img
no_daemon || fail "a daemon runs already"
# Other tests of this boot have written to the same log.
before_test=$(wc -l <$LOG 2>/dev/null || echo 0)
ringd --daemonize --supervise || fail "ringd does not start"
ringctl zone start $Z/guest1.toml --rng=bps=16K || fail "zone start"
says_within 200 '^rng: first run'
guest_says '^hwrng: virtio_rng' || fail "another device: $(ringctl zone console guest1 --dump | grep hwrng)"

# The device is in the slot after the disks. Its requests go on when the daemon dies.
get() { ringctl stats | awk -v name="rng.guest1.2.queue0.$1" '$1 == name { value = $2 } END { print value + 0 }'; }
for kill in 1 2 3; do
    sleep 1
    kill -KILL "$(worker)" || fail "no worker to kill"
    served_again() { [ "$(get bytes)" -gt 0 ]; }
    within 100 served_again
done
before=$(get bytes)
goes_on() { [ "$(get bytes)" -ge $((before + 8192)) ] && [ "$(get requests)" -ge 100 ]; }
within 100 goes_on
ringctl disk list | grep -c '^guest1' | grep -qx 2 || fail "the entropy device is listed as a disk"

printf 'end\n' | dd of=$Z/orders.img conv=notrunc 2>/dev/null
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n '/^hwrng: /,$p' >/tmp/text
cat /tmp/text
grep -q '^rng: [1-9][0-9]* runs' /tmp/text || fail "the guest did not come to its end"
grep -qE 'short read|not random|guest saw errors' /tmp/text && fail "the guest reports an error"
tail -n +$((before_test + 1)) $LOG | grep -E 'seccomp|panicked|violated the virtio specification' &&
    fail "the log complains"

# At 16 KiB a second, 64 KiB take some 4 s, apart from the burst and the kernel's own reads.
took=$(awk '/^rng: 64 KiB from/ { print int($7 - $5) }' /tmp/text)
at_least "seconds for 64 KiB at 16 KiB a second" "${took:-0}" 3

# The driver's mistakes.
cp /srv/zones/guest-test.bin $Z || fail "no guest-test.bin next to the zone files"
cat >$Z/bare.toml <<'END'
name = "bare"
cpus = 1
memory = "64M"
kernel = "guest-test.bin"
cmdline = "test=rng"
[rng]
END
ringctl zone run $Z/bare.toml >/tmp/bare.log 2>&1 || { cat /tmp/bare.log; fail "zone run ends with $?"; }
grep -q '^guest-test: PASS' /tmp/bare.log || { cat /tmp/bare.log; fail "the bare-metal guest says no"; }
is "tests of the entropy device" "$(grep -c '^ok .* rng: ' /tmp/bare.log)" 4
kernel_is_quiet
