#!/bin/sh
# The main job: a stock Debian kernel with two vCPUs boots to a system on its virtio disk, installs a file,
# reboots, finds it again, powers off; `zone run` ends with 0; root finds the file in the image, and e2fsck
# finds nothing.
#@ on: a57
#@ all: generic a76 max qemu10
#@ needs: el2
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'S'
echo "cpus: $(nproc)"
echo "source: $(findmnt -no SOURCE /)"
if [ -e /etc/installed ]; then
    echo "found: $(cat /etc/installed)"
    taskset -c 1 md5sum /usr/bin/busybox
    dmesg | grep -E 'BUG:|WARNING:|Call trace:|rcu_.*stall|Oops' && echo "kernel complained"
    sync
    poweroff
else
    echo "installed by the guest" >/etc/installed
    sync
    reboot
fi
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
zone_file guest1 2 256M root.img
daemon
ringctl zone run $Z/guest1.toml >/tmp/console 2>&1 </dev/null
status=$?
cat /tmp/console
is "status of zone run" $status 0
tr -d '\r' </tmp/console >/tmp/text
has() { grep -qF "$1" /tmp/text || fail "the guest did not say '$1'"; }
has "cpus: 2"
has "source: /dev/vda"
has "found: installed by the guest"
has "$(md5sum </usr/bin/busybox | cut -d ' ' -f 1)"
grep -q "kernel complained" /tmp/text && fail "the guest's kernel complained"
is "file in the image" "$(debugfs -R 'cat /etc/installed' $Z/root.img 2>/dev/null)" "installed by the guest"
e2fsck -fn $Z/root.img || fail "the guest's file system is not clean"
is "CPUs root has back" "$(nproc)" "$(ls -d /proc/device-tree/cpus/cpu@* | wc -l)"
kernel_is_quiet
