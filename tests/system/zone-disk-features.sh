#!/bin/sh
# A Linux guest with all of the disk's features: cache modes that it switches, adjacent requests merged under
# verify, discards that free blocks of root's file, zeroes; the same on a loop device, and on one that can
# neither discard nor zero, where a discard does nothing and zeroes are written. What the guest reads at the
# end is what root has.
#@ needs: el2
#@ boot: disks
#@ timeout: 300
#@ tier: all
. ./lib.sh
cat >/tmp/autorun <<'S'
queue=/sys/block/vdb/queue
echo "sizes: $(cat $queue/discard_granularity) $(cat $queue/write_zeroes_max_bytes) $(cat $queue/physical_block_size)"
verify() {
    fio --name=v --filename=/dev/vdb --size=4M --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 "$@" --minimal \
        >/tmp/fio.out 2>&1 || cat /tmp/fio.out
}
for mode in "write through" "write back"; do
    echo "$mode" >/sys/block/vdb/cache_type
    verify --rw=randwrite --bsrange=512-64k --iodepth=32 && echo "$(cat $queue/write_cache): verified"
done
echo "write through" >/sys/block/vdb/cache_type
verify --rw=write --bs=4k --iodepth=64 --iodepth_batch_submit=32 && echo "neighbours: verified"
blkdiscard -o 5M -l 2M /dev/vdb && echo "discarded"
blkdiscard -z -o 9M -l 1M /dev/vdb && echo "zeroed: $(dd if=/dev/vdb bs=1M skip=9 count=1 2>/dev/null | tr -d '\0' | wc -c)"
for disk in vdc vdd; do
    blkdiscard -o 1M -l 1M /dev/$disk && echo "$disk discarded"
    # Zeroes that may not be unmapped, and zeroes that may.
    blkdiscard -z -o 2560K -l 512K /dev/$disk && fallocate -p -o 3M -l 512K /dev/$disk && echo "$disk zeroed"
done
sync
echo 3 >/proc/sys/vm/drop_caches
for disk in vdc vdd; do
    echo "$disk: $(dd if=/dev/$disk bs=512K skip=5 count=2 2>/dev/null | tr -d '\0' | wc -c) $(md5sum </dev/$disk | cut -d ' ' -f 1)"
done
dmesg | grep -E 'I/O error|critical' && echo "guest saw errors"
echo "hash: $(md5sum </dev/vdb | cut -d ' ' -f 1)"
# Root reads the counters now.
sleep 15
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
dd if=/dev/urandom of=$Z/b.img bs=1M count=16 2>/dev/null
sync
# Blocks of 4 KiB that hold the file's data. `st_blocks` counts the list of its extents too, which a hole
# makes longer.
data_blocks() { filefrag -b4096 -v "$1" | awk -F: '$1 ~ /^ *[0-9]+$/ { sum += $4 } END { print sum + 0 }'; }
blocks=$(data_blocks $Z/b.img)
is "blocks of the image" "$blocks" 4096
# A loop device on ext4 deallocates discarded blocks; on ramfs, which has no holes, it can neither discard nor
# zero.
mkdir -p $Z/ramfs
mount -t ramfs none $Z/ramfs || fail "mount"
dd if=/dev/urandom of=$Z/c.img bs=1M count=4 2>/dev/null
cp $Z/c.img $Z/ramfs/d.img
dd if=$Z/c.img bs=1M skip=1 count=1 2>/dev/null | md5sum >/tmp/kept
sync
loop=$(losetup -f --show $Z/c.img)
plain=$(losetup -f --show $Z/ramfs/d.img)
can() { cat "/sys/block/${1#/dev/}/queue/discard_max_bytes"; }
[ "$(can "$loop")" != 0 ] || fail "the loop device does not discard"
is "what the loop device over ramfs discards" "$(can "$plain")" 0
tidy() {
    losetup -d "$loop"
    losetup -d "$plain"
    umount $Z/ramfs
}
trap tidy EXIT
before=$(data_blocks $Z/c.img)
zone_file guest1 1 256M root.img b.img "$loop" "$plain"
daemon
ringctl zone run $Z/guest1.toml >/tmp/console 2>&1 </dev/null &
zone=$!
# The guest is done but has not left: the disk's counters are complete.
: >/tmp/stats
while kill -0 $zone 2>/dev/null; do
    grep -q '^hash: ' /tmp/console && ringctl disk stats --json >/tmp/stats && break
    sleep 0.2
done
wait $zone
status=$?
cat /tmp/console
# count NAME: the largest of the counters of this name
count() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" /tmp/stats | sort -n | tail -n 1; }
is "status of zone run" $status 0
tr -d '\r' </tmp/console >/tmp/text
for line in "sizes: 4096 134217728 4096" "write through: verified" "write back: verified" "neighbours: verified" discarded \
    "zeroed: 0" "vdc discarded" "vdc zeroed" "vdd discarded" "vdd zeroed"; do
    grep -qxF "$line" /tmp/text || fail "the guest did not say '$line'"
done
at_least "durable writes" "$(count durable)" 1
at_least "merged operations" "$(count merges)" 1
at_least "discards" "$(count discards)" 1
sync
at_least "blocks freed by the discard" $((blocks - $(data_blocks $Z/b.img))) 512
is "size of the image" "$(stat -c %s $Z/b.img)" $((16 << 20))
grep -q "guest saw errors" /tmp/text && fail "the guest saw errors"
clean $Z/root.img
# The last half MiB is zero by `fallocate -p`, so its blocks went as well.
at_least "blocks freed below the loop device" $((before - $(data_blocks $Z/c.img))) 384
is "the loop device" "$(sed -n 's/^vdc: //p' /tmp/text)" "0 $(image_hash "$loop")"
is "the loop device that only writes" "$(sed -n 's/^vdd: //p' /tmp/text)" "0 $(image_hash "$plain")"
same() { dd if="$1" bs=1M skip="$2" count=1 2>/dev/null | md5sum; }
is "discarded and kept, for it cannot be given back" "$(same "$plain" 1)" "$(cat /tmp/kept)"
is "hash of the image" "$(md5sum <$Z/b.img | cut -d ' ' -f 1)" "$(sed -n 's/^hash: //p' /tmp/text)"
kernel_is_quiet
