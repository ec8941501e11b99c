#!/bin/sh
# The board's example zone: its guest boots from its disk, writes a file and powers off; root finds the file.
#@ on: versal
#@ all: a57
#@ needs: el2
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'S'
echo "cpus: $(nproc), source: $(findmnt -no SOURCE /)"
dmesg | grep -E 'BUG:|WARNING:|Call trace:|rcu_.*stall|Oops' && echo "kernel complained"
echo "written by the guest" >/etc/written
sync
poweroff
sleep 100
S
guest_disk $Z/rootfs.img /tmp/autorun
cp /srv/zones/linux.toml /srv/zones/Image /srv/zones/initrd.cpio.gz $Z
cpus=$(sed -n 's/^cpus = //p' $Z/linux.toml)
daemon
ringctl zone run $Z/linux.toml >/tmp/console 2>&1 </dev/null
status=$?
tr -d '\r' </tmp/console >/tmp/text
cat /tmp/text
is "status of zone run" $status 0
grep -qF "cpus: $cpus, source: /dev/vda" /tmp/text || fail "the guest did not say that it has $cpus CPUs and its disk"
grep -q "kernel complained" /tmp/text && fail "the guest's kernel complained"
is "file in the image" "$(debugfs -R 'cat /etc/written' $Z/rootfs.img 2>/dev/null)" "written by the guest"
clean $Z/rootfs.img
kernel_is_quiet
