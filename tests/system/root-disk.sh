#!/bin/sh
# Root's own virtio-mmio disk: what is written is read back, past the page cache.
#@ on: a57
#@ all: every
# Waits for the disk of the host.
#@ timeout: 300
. ./lib.sh
file=/srv/root-disk-test
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
dd if=/tmp/data of=$file bs=1M oflag=direct 2>/dev/null || fail "direct write"
sync
echo 3 >/proc/sys/vm/drop_caches
is "hash" "$(dd if=$file bs=64k iflag=direct 2>/dev/null | md5sum)" "$(md5sum </tmp/data)"
fio --name=verify --filename=$file --size=4M --rw=randwrite --bs=4k --direct=1 --ioengine=io_uring --iodepth=16 \
    --verify=crc32c --verify_fatal=1 --randseed=7 --minimal >/tmp/fio.out 2>&1 || { cat /tmp/fio.out; fail "fio"; }
rm -f $file /tmp/data
kernel_is_quiet
