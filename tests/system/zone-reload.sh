#!/bin/sh
# The guest's driver is unloaded and loaded again, many times, with I/O in flight: nothing is left behind in
# EL2 or the daemon, and the disk reads as before
# (torture h3).
#@ needs: el2
#@ boot: cpus
#@ timeout: 300
. ./lib.sh
value() { ringctl info --json | tr -d ' ,' | sed -n "s/^\"$1\"://p"; }
left() { echo "$(value pages_used) pages, $(value heap_used) bytes of heap, $(files) files"; }
mkdir -p $Z
dd if=/dev/urandom of=$Z/disk.img bs=1M count=8 2>/dev/null
hash=$(md5sum <$Z/disk.img | cut -d ' ' -f 1)
zone_file guest1 1 256M disk.img
sed -i 's/^cmdline.*/cmdline = "console=ttyAMA0"/' $Z/guest1.toml
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 150 'shell in the initramfs'
rm -f /tmp/typed
mkfifo /tmp/typed
ringctl zone console guest1 </tmp/typed >/dev/null 2>&1 &
exec 3>/tmp/typed
type_guest() { printf '%s\r' "$*" >&3; }
type_guest 'ready() { until [ -b /dev/vda ]; do sleep 0.1; done; }; busy() { dd if=/dev/vda of=/dev/null bs=4k 2>/dev/null & sleep 0.05; }'
type_guest 'round() { busy; echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind; wait; modprobe -r virtio_blk || echo FAILED; modprobe virtio_blk; ready; }'
type_guest 'round; echo first-$((6 * 7))'
says_within 60 '^first-42'
before=$(left)
type_guest 'i=0; while [ $i -lt 10 ]; do round; i=$((i + 1)); done; echo rounds-$((i + 0))'
says_within 200 '^rounds-10'
is "what is left" "$(left)" "$before"
type_guest 'echo hash-$(md5sum </dev/vda | cut -d " " -f 1); dmesg | grep -cE "BUG:|WARNING:|I/O error" | sed s/^/complaints-/'
says_within 60 "^hash-$hash"
says_within 20 '^complaints-'
guest_says '^complaints-0' || { ringctl zone console guest1 --dump | tail -30; fail "the guest's kernel complained"; }
guest_says '^FAILED' && fail "the module cannot be removed"
type_guest 'poweroff -f'
exec 3>&-
timeout 60 ringctl zone wait guest1 || fail "zone wait"
is "hash of the image" "$(md5sum <$Z/disk.img | cut -d ' ' -f 1)" "$hash"
