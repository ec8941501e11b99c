#!/bin/bash
# Root's kernel starts another one by kexec (torture d7). Without zones that one is root as any other, with
# all CPUs, and runs a zone. With a zone at work EL2 resets the machine before the new kernel can take the
# zone's memory for its own: what the guest had flushed is there, and the file systems are clean once their
# journals are replayed.
#@ timeout: 600
#@ tier: all
. tests/host/lib.sh
storage=$("$(dirname "$HARNESS")/image" --project "$PROJECT" storage) || fail "no kexec"
mkdir "$work/files"
cp tests/system/lib.sh "$work/files/"
cat >"$work/script" <<'S'
cd /mnt/files && . ./lib.sh
state=/var/lib/ringvisor
round=$(cat $state/kexecs 2>/dev/null || echo 0)
echo "round $round: $(nproc) CPUs, $(cat /proc/cmdline)"
# next WORD: the next round, in a kernel whose command line has WORD
next() {
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial")" != storage ] || { mkdir -p /p; mount -o ro "/dev/${disk##*/}" /p; }
    done
    export LD_LIBRARY_PATH=/p/usr/lib/aarch64-linux-gnu:/p/usr/lib
    /p/usr/sbin/kexec --no-checks --load /srv/zones/Image --initrd=/sys/firmware/initrd \
        --command-line="$(cat /proc/cmdline) $1" || fail "kexec --load"
    echo $((round + 1)) >$state/kexecs
    touch $state/expect-reboot
    # Only the files that root itself has written: nothing of the images is synced on the guest's behalf.
    sync $state/* $state
    /p/usr/sbin/kexec --exec
    sleep 60
    fail "no other kernel"
}
runs_on() { is "kernels started" "$(grep -o 'kexec-[a-z]*' /proc/cmdline | tr '\n' ' ')" "$1"; }
case $round in
0)
    runs_on ""
    nproc >$state/cpus
    next kexec-first
    ;;
1)
    runs_on "kexec-first "
    is "CPUs of root" "$(nproc)" "$(cat $state/cpus)"
    cat >/tmp/autorun <<'G'
n=1
while :; do
    printf '%-4096s' $n | dd of=/dev/vdb bs=4k seek=$n conv=fsync,notrunc 2>/dev/null || { echo "write failed"; break; }
    echo $n >/count.new
    sync /count.new
    mv /count.new /count
    sync /
    echo "flushed $n"
    n=$((n + 1))
done
sleep 100
G
    guest_disk $Z/root.img /tmp/autorun
    truncate -s 16M $Z/data.img
    zone_file guest1 1 256M root.img data.img
    sync
    daemon
    ringctl zone start $Z/guest1.toml || fail "zone start"
    within 200 guest_says '^flushed 10'
    ringctl zone console guest1 --dump | tr -d '\r' | sed -n 's/^flushed \([0-9]*\)$/\1/p' | tail -n 1 >$state/flushed
    next kexec-second
    ;;
2)
    # From its start again: neither kernel was started by another.
    runs_on ""
    flushed=$(cat $state/flushed)
    at_least "flushed writes" "${flushed:-0}" 10
    clean $Z/root.img stopped
    at_least "the guest's count" "$(debugfs -R 'cat count' $Z/root.img 2>/dev/null)" "$flushed"
    number=1
    while [ "$number" -le "$flushed" ]; do
        is "block $number" "$(dd if=$Z/data.img bs=4k skip=$number count=1 2>/dev/null | tr -d ' ')" $number
        number=$((number + 1))
    done
    echo "$flushed flushed writes are there"
    ;;
esac
S
export QEMU_ARGS="-drive file=$storage,if=none,id=storage,format=raw,readonly=on -device virtio-blk-device,drive=storage,serial=storage"
BOOTARGS=retain_initrd FILES="$work/files" "$HARNESS" exec --script "$work/script" --timeout 550 >"$work/out" 2>&1 </dev/null
status=$?
[[ $status == 0 ]] || { cat "$work/out"; fail "status $status"; }
has "$work/out" "root's kernel was replaced while 1 zones exist"
grep -a "flushed writes are there" "$work/out"
