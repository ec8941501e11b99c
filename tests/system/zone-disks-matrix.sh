#!/bin/sh
# fio with verify in a guest, random seeds: block sizes from 512 bytes to 1 MiB by depths from 1 to 256 (as
# far as 8 MiB have blocks) by both engines by all kinds of images, each disk beside all the others (torture
# e1). What the guest reads at the end is what root has; of qcow2 images, what another guest reads by the
# other engine.
#@ needs: el2
#@ tier: all
#@ boot: own
#@ timeout: 4000
. ./lib.sh
cat >/tmp/autorun <<'S'
. /mnt/kinds
dmesg -C
for bs in 512 4k 64k 1M 512-1M; do
    case $bs in
    512) block=512 ;;
    4k) block=4096 ;;
    64k) block=65536 ;;
    *) block=1048576 ;;
    esac
    for most in 1 8 64 256; do
        # No more can be in flight than there are blocks, and images have 16 MiB.
        blocks=$((8388608 / block))
        depth=$((most < blocks ? most : blocks))
        size=$((most < 64 ? 64 : most))
        size=$((block * (size < blocks ? size : blocks)))
        seed=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
        set -- --size=$size --rw=randwrite --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --randseed=$seed
        case $bs in
        *-*) set -- "$@" --bsrange=$bs --iodepth=$depth ;;
        *) set -- "$@" --bs=$bs --iodepth=$depth ;;
        esac
        for disk in $disks; do
            # A device refuses blocks smaller than its own.
            logical=$(cat /sys/block/$disk/queue/logical_block_size)
            [ "$logical" = 512 ] || [ "${bs#512}" = "$bs" ] || continue
            set -- "$@" --name=$disk --filename=/dev/$disk --offset=$((most % 5))M
        done
        fio "$@" >/tmp/fio.out 2>&1 || { cat /tmp/fio.out; echo "fio: failed with $bs, depth $depth, seed $seed"; break 2; }
        echo "verified: $bs, depth $depth, seed $seed"
    done
done
sync
echo 3 >/proc/sys/vm/drop_caches
for disk in $disks; do echo "hash of $disk: $(md5sum </dev/$disk | cut -d ' ' -f 1)"; done
dmesg | grep -E 'I/O error|Buffer I/O|hung_task' && echo "guest saw errors"
poweroff
sleep 100
S
cat >/tmp/reader <<'S'
. /mnt/kinds
for disk in $disks; do echo "hash of $disk: $(md5sum </dev/$disk | cut -d ' ' -f 1)"; done
poweroff
sleep 100
S
mkdir -p $Z
cd $Z || exit 1
export DM_DISABLE_UDEV=1
dd if=/dev/urandom of=base.img bs=1M count=16 2>/dev/null
mkdir -p memory
mount -t tmpfs -o size=64M none memory
zone_file guest1 2 512M root.img
zone_file reader 1 256M reader.img
disks='' hashed=''
letter=b
# disk PATH [LINE...]: another disk of the guest
disk() {
    disks="$disks vd$letter"
    [ "${hash_of:-}" = "" ] || hashed="$hashed vd$letter=$hash_of"
    printf '[[disk]]\n' >>guest1.toml
    printf 'path = "%s"\n' "$1" >>guest1.toml
    shift
    printf '%s\n' "$@" >>guest1.toml
    letter=$(printf %s "$letter" | tr a-y b-z)
}
for engine in io_uring threads; do
    other=threads
    [ $engine = io_uring ] || other=io_uring
    engine_is="engine = \"$engine\""
    for name in direct buffered lower loop dm memory/m; do
        cp base.img ${name}_$engine.img
    done
    hash_of=direct_$engine.img
    disk direct_$engine.img "$engine_is"
    hash_of=buffered_$engine.img
    disk buffered_$engine.img "$engine_is" 'cache = "writeback"'
    hash_of=memory/m_$engine.img
    disk memory/m_$engine.img "$engine_is"
    # A loop device of 4 KiB blocks, and one of 512 bytes below a linear target.
    loop=$(losetup -f --show -b 4096 loop_$engine.img)
    hash_of=loop_$engine.img
    disk "$loop" "$engine_is"
    below=$(losetup -f --show dm_$engine.img)
    echo "0 32768 linear $below 0" | dmsetup create dm_$engine || fail "dmsetup create"
    hash_of=dm_$engine.img
    disk /dev/mapper/dm_$engine "$engine_is"
    qcow2 alone_$engine.qcow2 16
    qcow2 middle_$engine.qcow2 16 lower_$engine.img raw
    qcow2 chain_$engine.qcow2 16 middle_$engine.qcow2 qcow2
    for name in alone chain; do
        hash_of=
        echo "vd$letter ${name}_$engine.qcow2 $other" >>qcow2s
        disk ${name}_$engine.qcow2 "$engine_is" 'format = "qcow2"'
    done
done
echo "disks='$disks'" >/tmp/kinds
guest_disk root.img /tmp/autorun
debugfs -w -R "write /tmp/kinds mnt/kinds" root.img 2>/dev/null
daemon
ringctl zone run guest1.toml >/tmp/console 2>&1 </dev/null
status=$?
tr -d '\r' </tmp/console >/tmp/text
grep -E '^(verified|fio|hash|guest)' /tmp/text
is "status of zone run" $status 0
is "combinations that were verified" "$(grep -c ^verified: /tmp/text)" 20
grep -q "guest saw errors" /tmp/text && fail "the guest saw errors"
said() { sed -n "s/^hash of $2: //p" "$1"; }
sync
for pair in $hashed; do
    case ${pair#*=} in
    dm_*) file=/dev/mapper/$(basename "${pair#*=}" .img) ;;
    *) file=${pair#*=} ;;
    esac
    is "hash of ${pair#*=}" "$(image_hash "$file")" "$(said /tmp/text "${pair%%=*}")"
done
clean root.img

# qcow2, by the other engine and read-only.
letter=b
rm -f /tmp/kinds
while read -r was path engine; do
    printf '[[disk]]\npath = "%s"\nformat = "qcow2"\nreadonly = true\nengine = "%s"\n' "$path" "$engine" >>reader.toml
    echo "vd$letter $was" >>pairs
    letter=$(printf %s "$letter" | tr a-y b-z)
done <qcow2s
echo "disks='$(awk '{ printf "%s ", $1 }' pairs)'" >/tmp/kinds
guest_disk reader.img /tmp/reader
debugfs -w -R "write /tmp/kinds mnt/kinds" reader.img 2>/dev/null
ringctl zone run reader.toml >/tmp/console 2>&1 </dev/null || { cat /tmp/console; fail "zone run of the reader"; }
tr -d '\r' </tmp/console >/tmp/text2
while read -r now was; do
    is "hash of qcow2 $was" "$(said /tmp/text2 "$now")" "$(said /tmp/text "$was")"
done <pairs
clean reader.img
is "the lower backing files" "$(image_hash lower_io_uring.img) $(image_hash lower_threads.img)" "$(image_hash base.img) $(image_hash base.img)"
dmsetup remove_all
losetup -D
umount memory
kernel_is_quiet
