#!/bin/bash
# A zone's disks on Debian's arm64 `qemu-storage-daemon` in root: a raw image, a qcow2 image, and one of an
# NBD server. A guest verifies what it writes with fio while the servers, the NBD connection and the daemon
# are killed and come back; it sees pauses and no error. Then the raw image grows, and the guest is shown it
# (torture c5, e1).
#@ timeout: 1500
#@ tier: all
. tests/host/lib.sh
storage=$("$(dirname "$HARNESS")/image" --project "$PROJECT" storage) || fail "no storage programs"
mkdir "$work/files"
cp tests/system/lib.sh "$work/files/"

cat >"$work/script" <<'S'
cd /mnt/files && . ./lib.sh
trap '[ $? = 0 ] || { tail -n 40 /run/ringd/ringd.log /tmp/*.log; ringctl disk stats; ringctl zone console guest1 --dump | tail -n 20; }' EXIT
for disk in /sys/block/vd*; do
    [ "$(cat "$disk/serial")" != storage ] || { mkdir -p /p; mount -o ro "/dev/${disk##*/}" /p; }
done
[ -x /p/usr/bin/qemu-storage-daemon ] || fail "no disk with qemu-storage-daemon"
with() { LD_LIBRARY_PATH=/p/usr/lib/aarch64-linux-gnu:/p/usr/lib "/p/usr/bin/$@"; }
with qemu-storage-daemon --version
mkdir -p $Z
truncate -s 16M $Z/raw.img $Z/nbd.img
# A killed server loses qcow2 tables that it has not written: preallocate all of them.
with qemu-img create -q -f qcow2 -o preallocation=metadata $Z/qcow2.img 16M || fail "qemu-img"

# storage NAME BLOCKDEV [OPTION...]: a server at /run/NAME.sock, started again when it was killed: several
# times, for the last one's I/O may still hold the image's lock.
storage() {
    name=$1 blockdev=$2
    shift 2
    while :; do
        with qemu-storage-daemon --blockdev "$blockdev" "$@" --pidfile /run/$name.pid --export \
            "vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=/run/$name.sock,writable=on,num-queues=2" \
            </dev/null >>/tmp/$name.log 2>&1
        sleep 1
    done &
}
serve() {
    case $1 in
    raw) storage raw driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename=$Z/raw.img \
        --chardev pipe,id=qmp,path=/run/qmp --monitor chardev=qmp ;;
    qcow2) storage qcow2 driver=qcow2,node-name=disk,file.driver=file,file.filename=$Z/qcow2.img ;;
    nbd) storage nbd driver=nbd,node-name=disk,server.type=unix,server.path=/run/nbd-server.sock,export=disk,reconnect-delay=300 ;;
    esac
}
nbd_server() {
    rm -f /run/nbd-server.sock
    with qemu-nbd -f raw -x disk -t -k /run/nbd-server.sock $Z/nbd.img </dev/null >>/tmp/nbd-server.log 2>&1 &
    nbd_server=$!
    within 60 test -S /run/nbd-server.sock
}
kill_server() {
    pid=$(cat /run/$1.pid)
    rm -f /run/$1.pid
    kill -KILL "$pid" || fail "no server $1 to kill"
    within 60 not_there "$pid"
}
not_there() { [ ! -d "/proc/$1" ]; }
mkfifo /run/qmp.in /run/qmp.out
nbd_server
for name in raw qcow2 nbd; do
    serve $name
    within 60 test -S /run/$name.sock
done

{
    echo 'echo "disks: $(cat /sys/block/vd[bcd]/size | tr "\n" " ")"'
    verify_loop vde 'echo "fio: run $runs"' "vdb vdc vdd" 0:64k:512:1 1M:512k:4k:32 2M:2M:512-128k:64
    verify_end "vdb vdc vdd"
    cat <<'G'
until [ "$(cat /sys/block/vdb/size)" = 65536 ]; do sleep 0.2; done
dd if=/dev/urandom of=/dev/vdb bs=1M seek=31 count=1 oflag=direct 2>/dev/null && echo "the end of vdb was written"
G
    guest_ends
} >/tmp/autorun
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/vde.img
zone_file guest1 2 256M root.img
printf '[[disk]]\nvhost_user = "/run/%s.sock"\n' raw qcow2 nbd >>$Z/guest1.toml
printf '[[disk]]\npath = "vde.img"\n' >>$Z/guest1.toml
ringd --daemonize --supervise || fail "ringd does not start"
ringctl zone start $Z/guest1.toml || { cat $LOG /tmp/*.log; fail "zone start"; }
within 200 guest_says '^io: begins'
runs() { ringctl zone console guest1 --dump | tr -d '\r' | grep -c '^fio: run '; }
run_after() { [ "$(runs)" -gt "$1" ]; }
connections() { grep -c "connected to the disk.s server.*/run/$1.sock" $LOG; }
connected() { [ "$(connections $1)" -gt "$2" ]; }
goes_on() { runs=$(runs); within 200 run_after "$runs"; }
goes_on
for round in 1 2; do
    for name in raw qcow2 nbd; do
        echo "round $round: $name"
        before=$(connections $name)
        kill_server $name
        within 60 connected $name "$before"
    done
    goes_on
    echo "round $round: NBD"
    # The NBD connection is cut: the server behind the server goes, and comes back.
    kill -KILL $nbd_server
    sleep 1
    nbd_server
    goes_on
    echo "round $round: daemon"
    before=$(connections nbd)
    kill -KILL "$(sed -n 's/.* ready pid=\([0-9]*\) .*/\1/p' $LOG | tail -1)" || fail "no worker to kill"
    within 60 connected nbd "$before"
    goes_on
done
printf 'end\n' | dd of=$Z/vde.img conv=notrunc 2>/dev/null
within 200 guest_says '^io: ends'
with qemu-img convert -U -f qcow2 -O raw $Z/qcow2.img $Z/qcow2.raw || fail "qemu-img convert"
hashes="$(image_hash $Z/raw.img) $(image_hash $Z/qcow2.raw) $(image_hash $Z/nbd.img)"
# The raw image grows.
cat >/tmp/qmp <<'Q'
{"execute": "qmp_capabilities"}
{"execute": "block_resize", "arguments": {"node-name": "disk", "size": 33554432}}
Q
cat /tmp/qmp >/run/qmp.in
within 20 sh -c "[ \$(stat -c %s $Z/raw.img) = 33554432 ]"
# QEMU 7.2 sends no CONFIG_CHANGE: the size is read at the next connection.
before=$(connections raw)
kill_server raw
within 60 connected raw "$before"
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n '/^disks: /,$p' >/tmp/text
cat /tmp/text
grep -q "^disks: 32768 32768 32768 " /tmp/text || fail "the disks' sizes"
grep -q "^fio: [1-9][0-9]* runs verified" /tmp/text || fail "fio"
grep -qE "guest saw errors|failed" /tmp/text && fail "the guest saw errors"
is "hashes of the images" "$hashes" "$(sed -n 's/^hash of vd[bcd]: //p' /tmp/text | tr '\n' ' ' | sed 's/ $//')"
grep -q "the end of vdb was written" /tmp/text || fail "the new size cannot be used"
is "bytes of the image" "$(stat -c %s $Z/raw.img)" 33554432
grep -E 'seccomp|panicked' $LOG && fail "the log complains"
cat /tmp/*.log
kernel_is_quiet
S
export QEMU_ARGS="-drive file=$storage,if=none,id=storage,format=raw,readonly=on -device virtio-blk-device,drive=storage,serial=storage"
FILES="$work/files" "$HARNESS" exec --script "$work/script" --timeout 1300 >"$work/out" 2>&1 </dev/null 
status=$?
[[ $status == 0 ]] || { cat "$work/out"; fail "the script in root ended with status $status"; }
grep -E '^(fio|hash|disks)' "$work/out"
exit 0
