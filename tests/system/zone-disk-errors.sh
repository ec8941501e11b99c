#!/bin/sh
# A file that fails: no space in a small tmpfs, EIO from device mapper's error target. The guest gets the
# error (on_error = "report") or waits until the cause is gone (on_error = "stop"), as does its file system
# (torture c8, j2). And a file in memory, mapped by the daemon, that is truncated: an error for the guest, not
# the end of the daemon (torture c9).
#@ needs: el2
#@ boot: disks
#@ tier: all
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'S'
hash() { md5sum <"$1" | cut -d ' ' -f 1; }
# vdb: reports, no space. vdc: stops, no space. vdd: reports EIO. vde: stops at EIO.
dd if=/dev/urandom of=/dev/vdb bs=64k count=256 oflag=direct 2>/dev/null && echo "vdb: written" || echo "vdb: failed"
dd if=/dev/vdb of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null && echo "vdb: goes on"
dd if=/dev/vdd of=/dev/null bs=4k count=16 iflag=direct 2>/dev/null && echo "vdd: good part"
dd if=/dev/vdd of=/dev/null bs=4k skip=1024 count=1 iflag=direct 2>/dev/null && echo "vdd: read" || echo "vdd: failed"
dd if=/dev/vdf of=/dev/null bs=1M iflag=direct 2>/dev/null && echo "vdf: all"
while dd if=/dev/vdf of=/dev/null bs=64k skip=48 count=1 iflag=direct 2>/dev/null; do sleep 0.1; done
dd if=/dev/vdf of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null && echo "vdf: the rest"
dmesg | grep -E 'I/O error|critical' | grep -E 'vdc|vde' && echo "errors on disks that stop"
dmesg -C
echo "stops: begins"
mkdir -p /mnt && mkfs.ext4 -q /dev/vdc && mount /dev/vdc /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count=10 2>/dev/null && sync /mnt/file && echo "vdc: written $(hash /mnt/file)"
echo 3 >/proc/sys/vm/drop_caches
echo "vdc: read $(hash /mnt/file)"
umount /mnt
dd if=/dev/vde of=/dev/null bs=4k skip=1020 count=8 iflag=direct 2>/dev/null && echo "vde: read" || echo "vde: failed"
dmesg | grep -E 'I/O error|critical' && echo "guest saw errors"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
mkdir -p $Z/small $Z/stops
# Without udev, dmsetup makes the device nodes.
export DM_DISABLE_UDEV=1
mount -t tmpfs -o size=4M none $Z/small
mount -t tmpfs -o size=6M none $Z/stops
truncate -s 16M $Z/small/b.img $Z/stops/c.img
dd if=/dev/urandom of=$Z/backing.img bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=/dev/shm/f.img bs=1M count=4 2>/dev/null
loop=$(losetup -f --show $Z/backing.img)
# Sectors 8192 to 8199 fail.
broken() { printf '0 8192 linear %s 0\n8192 8 error\n8200 8184 linear %s 8200\n' "$loop" "$loop"; }
for name in d e; do
    broken | dmsetup create $name --readonly || fail "dmsetup create"
done
tidy() {
    ringctl zone stop guest1 2>/dev/null
    dmsetup remove d
    dmsetup remove e
    losetup -d "$loop"
    umount $Z/small $Z/stops
    rm -f /dev/shm/f.img
}
trap tidy EXIT
zone_file guest1 1 256M root.img
cat >>$Z/guest1.toml <<T
[[disk]]
path = "small/b.img"
[[disk]]
path = "stops/c.img"
on_error = "stop"
[[disk]]
path = "/dev/mapper/d"
readonly = true
engine = "threads"
[[disk]]
path = "/dev/mapper/e"
readonly = true
on_error = "stop"
[[disk]]
path = "/dev/shm/f.img"
T
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
text() { ringctl zone console guest1 --dump | tr -d '\r'; }
says() { text | grep -q "^$1"; }
held() { ringctl disk stats | awk -v slot="$1" '
    NR == 1 { for (i = 1; i <= NF; i++) if ($i == "HELD") at = i; next } $2 == slot { sum += $at } END { print sum + 0 }'; }
holds() { [ "$(held "$1")" -gt 0 ]; }

within 200 says "vdf: all"
daemons=$(pgrep -x ringd)
truncate -s 1M /dev/shm/f.img
within 100 says "stops: begins"
says "vdf: the rest" || fail "what is left of a file cannot be read"
is "the daemon's processes" "$(pgrep -x ringd)" "$daemons"
says "vdb: failed" || fail "the guest got no error for the lack of space"
says "vdb: goes on" || fail "the disk does not go on after an error"
says "vdd: good part" || fail "a good block near a bad one"
says "vdd: failed" || fail "the guest got no error for EIO"
is "requests held back by disks that report" "$(held 1)$(held 3)" 00

within 100 holds 2
sleep 1
says "vdc: written" && fail "the guest went on though its disk has stopped"
# Resuming without a remedy stops it again.
ringctl disk resume guest1 vdc || fail "disk resume"
sleep 1
holds 2 || fail "a disk without space goes on"
# The next daemon runs what was held, and stops there.
pkill -KILL -x ringd
ringd --daemonize || fail "the next daemon does not start"
within 20 holds 2
mount -o remount,size=32M $Z/stops
ringctl disk resume guest1 vdc || fail "disk resume"
within 60 says "vdc: read"

within 60 holds 4
sleep 1
says "vde:" && fail "the guest went on though its disk has stopped"
dmsetup suspend e
echo "0 16384 linear $loop 0" | dmsetup reload e --readonly
dmsetup resume e
ringctl disk resume guest1 vde || fail "disk resume"
within 60 says "vde: read"
ringctl zone wait guest1 || fail "zone wait"
text | tail -15
says "guest saw errors" && fail "the guest saw errors on disks that stop"
says "errors on disks that stop" && fail "the guest saw errors on disks that stop"
is "what was read back" "$(text | sed -n 's/^vdc: read //p')" "$(text | sed -n 's/^vdc: written //p')"
clean $Z/stops/c.img
clean $Z/root.img
kernel_is_quiet
