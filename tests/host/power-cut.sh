#!/bin/bash
# A power cut of the machine: QEMU is killed while a guest writes, and everything that root had not written to
# its disk is gone. Each write that a completed FLUSH covered is there afterwards, on both engines, both ways
# to the file and in qcow2; the guest's file system is clean once its journal is replayed, and the guest
# starts again (torture e2, d7). The negative control: with a daemon that never calls `fdatasync` the same
# test finds that writes are missing (torture e3).
#@ timeout: 1800
#@ tier: all
. tests/host/lib.sh

# What both machines need: the disk that is kept between them, and how a guest is described.
cat >"$work/both.sh" <<'S'
fail() { echo "FAIL: $*"; exit 1; }
[ -x /mnt/files/ringd ] && export PATH=/mnt/files:$PATH
kept=''
for disk in /sys/block/vd*; do
    [ "$(cat "$disk/serial")" != kept ] || kept=/dev/${disk##*/}
done
[ -n "$kept" ] || fail "no disk to keep"
mkdir -p /srv/kept
# Nothing is written unless asked for: no write-back by age or amount, no commit of the journal by time.
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
echo 80 >/proc/sys/vm/dirty_background_ratio
echo 90 >/proc/sys/vm/dirty_ratio
zone_file() {
    cat <<T
name = "guest1"
cpus = 1
memory = "256M"
kernel = "/srv/zones/Image"
initrd = "/srv/zones/initrd.cpio.gz"
cmdline = "console=ttyAMA0 root=/dev/vda rw quiet kpti=off $1"
T
    disk() { printf '[[disk]]\npath = "/srv/kept/%s"\n' "$1"; shift; printf '%s\n' "$@"; }
    disk root.img 'cache = "writeback"'
    disk b.img 'cache = "writeback"' 'engine = "io_uring"'
    disk c.img 'cache = "writeback"' 'engine = "threads"'
    disk d.img 'cache = "none"'
    disk e.qcow2 'format = "qcow2"'
}
S

# The machine that is cut off.
cat >"$work/first.sh" <<'S'
mkfs.ext4 -q -F -E nodiscard "$kept" || fail "mkfs"
mount -o commit=3600 "$kept" /srv/kept || fail "mount"
cat >/tmp/autorun <<'G'
if grep -q afterwards /proc/cmdline; then
    for disk in vdb vdc vdd vde; do
        n=1
        while [ "$(dd if=/dev/$disk bs=4k skip=$n count=1 2>/dev/null | tr -d ' \0')" = $n ]; do n=$((n + 1)); done
        echo "$disk has $((n - 1))"
    done
    echo "file has $(tail -n 1 /cut)"
    poweroff
    sleep 100
fi
n=1
while :; do
    for disk in vdb vdc vdd vde; do
        printf '%-4096s' $n | dd of=/dev/$disk bs=4k seek=$n conv=fsync,notrunc 2>/dev/null
    done
    echo $n >>/cut
    sync /cut
    echo "flushed $n"
    # And writes without a flush.
    dd if=/dev/urandom of=/dev/vdb bs=64k seek=$((128 + n % 64)) count=1 oflag=direct 2>/dev/null
    n=$((n + 1))
done
G
cp --sparse=always /srv/zones/rootfs.img /srv/kept/root.img || fail "no room"
debugfs -w -R "write /tmp/autorun autorun" /srv/kept/root.img 2>/dev/null
dd if=/dev/zero bs=1M count=16 2>/dev/null | tee /srv/kept/b.img /srv/kept/c.img >/srv/kept/d.img
qcow2 /srv/kept/e.qcow2 16
sync
ringd --daemonize || fail "ringd does not start"
zone_file at-first >/tmp/guest1.toml
ringctl zone run /tmp/guest1.toml </dev/null
fail "the guest ended"
S

# The machine afterwards.
cat >"$work/second.sh" <<'S'
e2fsck -p "$kept"
[ $? -le 1 ] || fail "root's file system is broken"
mount "$kept" /srv/kept || fail "mount"
cd /srv/kept || exit 1
e2fsck -p root.img
[ $? -le 1 ] || fail "the guest's journal cannot be replayed"
e2fsck -fn root.img || fail "the guest's file system is not clean"
ringd --daemonize || fail "ringd does not start"
zone_file afterwards >/tmp/guest1.toml
ringctl zone run /tmp/guest1.toml </dev/null || fail "the guest does not work after the cut"
e2fsck -fn root.img || fail "the guest's file system is not clean in the end"
S

# cut NAME FILES: cuts a machine off; says in $flushed up to what its guest had flushed, at least
cut_off() {
    local name=$1 files=$2
    cat "$work/both.sh" <(sed -n '/^be()/,/^}/p;/^qcow2()/,/^}/p' tests/system/lib.sh) "$work/first.sh" >"$work/$name-1.sh"
    cat "$work/both.sh" "$work/second.sh" >"$work/$name-2.sh"
    local disk=$work/$name.img
    truncate -s 1G "$disk"
    export QEMU_ARGS="-drive file=$disk,if=none,id=kept,format=raw,cache=writeback -device virtio-blk-device,drive=kept,serial=kept"
    QEMU_ARGS+=" -pidfile $work/$name.pid" "$HARNESS" exec --script "$work/$name-1.sh" --files "$files" --timeout 600 \
        >"$work/$name-1" 2>&1 </dev/null &
    local machine=$!
    until grep -q '^flushed 25' "$work/$name-1"; do
        kill -0 $machine 2>/dev/null || { cat "$work/$name-1"; fail "the first machine ended"; }
        sleep 0.1
    done
    kill -KILL "$(cat "$work/$name.pid")"
    wait $machine
    flushed=$(tr -d '\r' <"$work/$name-1" | sed -n 's/^flushed \([0-9]*\)$/\1/p' | tail -n 1)
    "$HARNESS" exec --script "$work/$name-2.sh" --files "$files" --timeout 400 >"$work/$name-2" 2>&1 </dev/null
}

# missing NAME: names the places where something is missing that was flushed
missing() {
    local place has
    for place in vdb vdc vdd vde file; do
        has=$(tr -d '\r' <"$work/$1-2" | sed -n "s/^$place has \([0-9]*\)$/\1/p")
        [[ ${has:-0} -ge $flushed ]] || echo "$place has ${has:-nothing} of $flushed"
    done
}

mkdir "$work/none" "$work/control"
cut_off real "$work/none" || { cat "$work/real-2"; fail "after the cut: status $?"; }
gone=$(missing real)
[[ -z $gone ]] || { cat "$work/real-2"; fail "flushed and gone: $gone"; }
echo "$flushed writes to each of four disks and a file were flushed, and are there"

target=${CARGO_TARGET_DIR:-target}/control
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld cargo build -q --profile daemon --target aarch64-unknown-linux-musl \
    --target-dir "$target" -p ringd --bin ringd --features ringblk/skip-fdatasync || fail "the control does not build"
cp "$target/aarch64-unknown-linux-musl/daemon/ringd" "$work/control"
cut_off control "$work/control"
gone=$(missing control)
# With direct I/O nothing can be lost: the data is in QEMU's file, which outlives QEMU.
for place in vdb vdc vde file; do
    [[ $gone == *"$place has"* ]] || { cat "$work/control-2"; fail "$place: a daemon without fdatasync lost nothing"; }
done
echo "the control is noticed: $gone"
