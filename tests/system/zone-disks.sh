#!/bin/sh
# Disks: what root wrote the guest reads, what the guest wrote and flushed root reads; a read-only disk and a
# serial; both engines, each with files around the page cache and through it and in memory, a loop device,
# device mapper, qcow2 alone and over backing files, under fio with a random seed (torture e1). Hashes are
# compared from root's side; zone-disks-matrix.sh has all combinations.
#@ needs: el2
#@ boot: disks
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'S'
for disk in vdb vdc vdd vdh; do
    echo "$disk: $(md5sum </dev/$disk | cut -d ' ' -f 1) ro=$(cat /sys/block/$disk/ro) serial=$(cat /sys/block/$disk/serial)"
done
for disk in vdb vdc; do
    dd if=/dev/urandom of=/dev/$disk bs=1M count=4 oflag=direct 2>/dev/null && sync
    dd if=/dev/urandom of=/dev/$disk bs=512 seek=10001 count=3 oflag=direct 2>/dev/null && sync
    echo 3 >/proc/sys/vm/drop_caches
    echo "$disk-after: $(md5sum </dev/$disk | cut -d ' ' -f 1)"
done
dd if=/dev/zero of=/dev/vdd bs=4k count=1 oflag=direct 2>/dev/null && echo "vdd was written"
seed=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
echo "fio: seed $seed"
start=$(date +%s)
fio --size=2M --rw=randwrite --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --randseed=$seed \
    --name=b --filename=/dev/vdb --bsrange=512-64k --iodepth=32 --name=c --filename=/dev/vdc --bsrange=4k-1M --iodepth=4 \
    --size=1M --name=e --filename=/dev/vde --bsrange=512-16k --iodepth=256 --size=1M --name=f --filename=/dev/vdf --bs=4k --iodepth=1 \
    --size=1M --name=g --filename=/dev/vdg --bsrange=512-256k --iodepth=16 \
    --name=h --filename=/dev/vdh --bsrange=512-64k --iodepth=8 --name=i --filename=/dev/vdi --bsrange=512-64k --iodepth=64 \
    --name=j --filename=/dev/vdj --bsrange=512-1M --iodepth=32 --name=k --filename=/dev/vdk --bsrange=512-1M --iodepth=8 \
    --name=l --filename=/dev/vdl --bsrange=512-1M --iodepth=8 >/tmp/fio.out 2>&1 && echo "fio: verified in $(($(date +%s) - start)) s" || cat /tmp/fio.out
for disk in vdb vdc vde vdf vdi vdj vdk vdl; do
    echo "$disk-last: $(md5sum </dev/$disk | cut -d ' ' -f 1)"
done
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
for disk in b c d e f i j; do
    case $disk in
    b | c) size=8 ;;
    *) size=4 ;;
    esac
    dd if=/dev/urandom of=$Z/$disk.img bs=1M count=$size 2>/dev/null
    eval "hash_$disk=$(md5sum <$Z/$disk.img | cut -d ' ' -f 1)"
done
# In memory: one with data, one of holes.
trap 'rm -f /dev/shm/k.img /dev/shm/l.img' EXIT
dd if=/dev/urandom of=/dev/shm/k.img bs=1M count=4 2>/dev/null
truncate -s 4M /dev/shm/l.img
loop=$(losetup -f --show $Z/c.img)
loop_f=$(losetup -f --show $Z/f.img)
loop_i=$(losetup -f --show $Z/i.img)
# Without udev, dmsetup makes the device nodes.
export DM_DISABLE_UDEV=1
printf '0 4096 linear %s 4096\n4096 4096 linear %s 0\n' "$loop_i" "$loop_i" | dmsetup create i || fail "dmsetup create"
qcow2 $Z/g.qcow2 16
# Over two backing files, the lower of which has data.
qcow2 $Z/h1.qcow2 4 d.img raw
qcow2 $Z/h.qcow2 4 h1.qcow2 qcow2
zone_file guest1 1 256M root.img
cat >>$Z/guest1.toml <<T
[[disk]]
path = "b.img"
serial = "disk-b"
engine = "io_uring"
[[disk]]
path = "$loop"
serial = "disk-c"
engine = "threads"
[[disk]]
path = "d.img"
readonly = true
[[disk]]
path = "e.img"
engine = "threads"
[[disk]]
path = "$loop_f"
engine = "io_uring"
[[disk]]
path = "g.qcow2"
format = "qcow2"
engine = "io_uring"
[[disk]]
path = "h.qcow2"
format = "qcow2"
engine = "threads"
[[disk]]
path = "/dev/mapper/i"
engine = "io_uring"
[[disk]]
path = "j.img"
engine = "threads"
cache = "writeback"
[[disk]]
path = "/dev/shm/k.img"
engine = "io_uring"
[[disk]]
path = "/dev/shm/l.img"
engine = "threads"
T
daemon
ringctl zone run $Z/guest1.toml >/tmp/console 2>&1 </dev/null
status=$?
cat /tmp/console
is "status of zone run" $status 0
tr -d '\r' </tmp/console >/tmp/text
has() { grep -qF "$1" /tmp/text || fail "the guest did not say '$1'"; }
said() { sed -n "s/^$1: //p" /tmp/text; }
has "vdb: $hash_b ro=0 serial=disk-b"
has "vdc: $hash_c ro=0 serial=disk-c"
has "vdd: $hash_d ro=1"
grep -q "vdd was written" /tmp/text && fail "a read-only disk was written"
has "fio: verified"
sync
echo 3 >/proc/sys/vm/drop_caches
is "hash of b" "$(md5sum <$Z/b.img | cut -d ' ' -f 1)" "$(said vdb-last)"
is "hash of c" "$(md5sum <$loop | cut -d ' ' -f 1)" "$(said vdc-last)"
is "hash of e" "$(md5sum <$Z/e.img | cut -d ' ' -f 1)" "$(said vde-last)"
is "hash of f" "$(md5sum <$loop_f | cut -d ' ' -f 1)" "$(said vdf-last)"
is "hash of i" "$(md5sum </dev/mapper/i | cut -d ' ' -f 1)" "$(said vdi-last)"
is "hash of j" "$(md5sum <$Z/j.img | cut -d ' ' -f 1)" "$(said vdj-last)"
is "hash of k" "$(md5sum </dev/shm/k.img | cut -d ' ' -f 1)" "$(said vdk-last)"
is "hash of l" "$(md5sum </dev/shm/l.img | cut -d ' ' -f 1)" "$(said vdl-last)"
has "vdh: $hash_d"
is "hash of d" "$(md5sum <$Z/d.img | cut -d ' ' -f 1)" "$hash_d"
clean $Z/root.img
dmsetup remove i
losetup -d "$loop"
losetup -d "$loop_f"
losetup -d "$loop_i"
kernel_is_quiet
