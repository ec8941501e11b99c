#!/bin/bash
# Everyday use of a disk: tar, git and SQLite in a guest, in a file system on a partition of each of three
# disks. What root finds in it has the hash that the guest computed; nothing outside of the partition has
# changed (torture e4). Debian's programs are on a block device of root's, which the guest has read-only.
#@ timeout: 1200
#@ tier: all
. tests/host/lib.sh
programs=$("$(dirname "$HARNESS")/image" --project "$PROJECT" programs) || fail "no programs"

cat >"$work/script" <<'S'
fail() { echo "FAIL: $*"; exit 1; }
cd "$(mkdir -p /srv/test && echo /srv/test)" || exit 1
programs=''
for disk in /sys/block/vd*; do
    [ "$(cat "$disk/serial")" != programs ] || programs=/dev/${disk##*/}
done
[ -n "$programs" ] || fail "no disk with programs"
cat >/tmp/autorun <<'G'
mkdir -p /p
mount -o ro /dev/vdb /p || echo "failed: mount of the programs"
export PATH=/p/usr/bin:$PATH LD_LIBRARY_PATH=/p/usr/lib/aarch64-linux-gnu HOME=/tmp
export GIT_EXEC_PATH=/p/usr/lib/git-core GIT_TEMPLATE_DIR=/p/usr/share/git-core/templates
work() {
    mkfs.ext4 -q -F /dev/$1 && mkdir -p /m/$1 && mount /dev/$1 /m/$1 && cd /m/$1 || return 1
    mkdir tree && tar -C /usr/bin -cf all.tar . && tar -C tree -xf all.tar && rm all.tar || return 1
    [ "$(ls tree | wc -l)" = "$(ls /usr/bin | wc -l)" ] || return 1
    git init -q repository && cd repository && git config user.email a@b && git config user.name a || return 1
    n=1
    while [ $n -le 5 ]; do
        mkdir -p d$n && seq $((n * 1000)) $((n * 1000 + 999)) >d$n/numbers && cp /usr/bin/dash d$n/ || return 1
        git add . && git commit -q -m "number $n" || return 1
        n=$((n + 1))
    done
    git gc -q && git fsck --full --strict 2>/dev/null && [ "$(git rev-list --count HEAD)" = 5 ] && cd .. || return 1
    {
        echo "create table t (a integer primary key, b text);"
        for n in $(seq 20); do
            echo "begin; with recursive r(x) as (select 1 union all select x + 1 from r where x < 100)"
            echo "insert into t (b) select hex(randomblob(40)) from r; commit;"
        done
        echo "delete from t where a % 3 = 0; update t set b = b || b where a % 5 = 0; vacuum;"
    } | sqlite3 data.db && [ "$(sqlite3 data.db 'pragma integrity_check; select count(*) from t')" = "ok
1334" ] || return 1
    sync
    echo 3 >/proc/sys/vm/drop_caches
    echo "tree of $1: $(find . -xdev -type f | wc -l) files $(find . -xdev -type f -exec sha256sum {} + | sort | sha256sum)"
    cd / && umount /m/$1
}
for disk in vdc1 vdd1 vde1; do
    work $disk || echo "failed: $disk"
done
dmesg | grep -E 'I/O error|Buffer I/O|EXT4-fs error' && echo "failed: errors"
poweroff
sleep 100
G
cp --sparse=always /srv/zones/rootfs.img root.img
debugfs -w -R "write /tmp/autorun autorun" root.img 2>/dev/null
# A partition between 8 and 120 MiB of 128; random bytes before and behind it.
for name in c d e; do
    truncate -s 128M $name.img
    dd if=/dev/urandom of=$name.img bs=1M count=8 conv=notrunc 2>/dev/null
    dd if=/dev/urandom of=$name.img bs=1M seek=120 count=8 conv=notrunc 2>/dev/null
    echo "start=16384, size=229376, type=83" | sfdisk -q --wipe=never $name.img || fail "sfdisk"
done
outside() { { dd if=$1.img bs=1M count=8; dd if=$1.img bs=1M skip=120; } 2>/dev/null | sha256sum; }
before="$(outside c) $(outside d) $(outside e)"
cat >guest1.toml <<T
name = "guest1"
cpus = 1
memory = "512M"
kernel = "/srv/zones/Image"
initrd = "/srv/zones/initrd.cpio.gz"
cmdline = "console=ttyAMA0 root=/dev/vda rw quiet kpti=off"
[[disk]]
path = "root.img"
[[disk]]
path = "$programs"
readonly = true
[[disk]]
path = "c.img"
[[disk]]
path = "d.img"
engine = "threads"
[[disk]]
path = "e.img"
cache = "writeback"
T
ringd --daemonize || fail "ringd does not start"
ringctl zone run guest1.toml >/tmp/console </dev/null || { cat /tmp/console; fail "zone run"; }
tr -d '\r' </tmp/console >/tmp/text
cat /tmp/text
grep -q '^failed' /tmp/text && fail "in the guest"
[ "$(outside c) $(outside d) $(outside e)" = "$before" ] || fail "bytes outside of a partition have changed"
mkdir -p m
for name in c d e; do
    loop=$(losetup -f --show --offset $((8 << 20)) --sizelimit $((112 << 20)) $name.img)
    e2fsck -fn "$loop" || fail "the file system in $name.img is not clean"
    mount -o ro "$loop" m || fail "mount"
    tree=$(cd m && find . -xdev -type f -exec sha256sum {} + | sort | sha256sum)
    files=$(find m -xdev -type f | wc -l)
    [ "$files" -ge 100 ] || fail "only $files files in $name.img"
    grep -qxF "tree of vd${name}1: $files files $tree" /tmp/text || fail "the tree in $name.img is another: $files files $tree"
    umount m
    losetup -d "$loop"
done
e2fsck -fn root.img || fail "the guest's file system is not clean"
S
export QEMU_ARGS="-drive file=$programs,if=none,id=programs,format=raw,readonly=on -device virtio-blk-device,drive=programs,serial=programs"
"$HARNESS" exec --script "$work/script" --timeout 900 >"$work/out" 2>&1 </dev/null || { cat "$work/out"; fail "status $?"; }
grep -E '^(tree|failed)' "$work/out"
exit 0
