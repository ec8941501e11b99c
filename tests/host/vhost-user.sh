#!/bin/bash
# `ringd serve` with QEMU as its front end: Debian's kernel in a plain virtual machine (no EL2) writes, reads
# and trims its disk by two queues; the server is killed and started again in the middle, and nothing is lost.
#@ timeout: 300
#@ tier: all
. tests/host/lib.sh
cache=${RINGVISOR_CACHE:-$PROJECT/.cache}
kernel=$(ls -d "$cache"/kernel-cloud-*/Image | head -1)
initramfs=$(ls -d "$cache"/root-initramfs-cloud-* | head -1)
[[ -n $kernel && -n $initramfs ]] || fail "no kernel in $cache; make all makes it"
ringd=${RINGD:-$PROJECT/target/debug/ringd}
[[ -n ${RINGD:-} ]] || cargo build -q -p ringd || fail "ringd does not build"

# Root's initramfs with another first program.
mkdir "$work/overlay"
cat >"$work/overlay/init" <<'S'
#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir -p /proc /sys /dev /usr/bin
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
PATH=/usr/bin:/bin:/sbin
$bb --install -s /usr/bin
modprobe virtio_pci; modprobe virtio_blk
until [ -b /dev/vda ]; do sleep 0.1; done
echo "queues $(ls /sys/block/vda/mq | wc -l), $(cat /sys/block/vda/size) sectors, serial $(cat /sys/block/vda/serial)"
echo "cache $(cat /sys/block/vda/queue/write_cache), discards of $(cat /sys/block/vda/queue/discard_max_bytes)"
dd if=/dev/urandom of=/tmp.img bs=1M count=8 2>/dev/null
written=$(md5sum </tmp.img)
# Both queues concurrently, in a loop, until the guest is asked to stop.
for part in 0 1; do
    (
        round=0
        until [ -e /stop ]; do
            dd if=/tmp.img of=/dev/vda bs=64k seek=$((part * 128)) oflag=direct conv=notrunc 2>/dev/null ||
                { echo "WRITE FAILED"; break; }
            read=$(dd if=/dev/vda bs=64k skip=$((part * 128)) count=128 iflag=direct 2>/dev/null | md5sum)
            [ "$read" = "$written" ] || { echo "READ DIFFERS"; break; }
            round=$((round + 1))
            [ $round != 2 ] || echo "part $part is busy"
        done
        echo "part $part: $([ $round -gt 2 ] && echo enough) rounds"
    ) &
done
read line
touch /stop
wait
blkdiscard -o 4194304 -l 4194304 /dev/vda 2>/dev/null || echo "no blkdiscard here"
sync
dmesg | grep -E "I/O error|blk_update" && echo "KERNEL SAW ERRORS"
echo "guest: done $written"
poweroff -f
S
chmod +x "$work/overlay/init"
(cd "$work/overlay" && echo init | cpio -o -H newc --quiet) >"$work/overlay.cpio"
cat "$initramfs" "$work/overlay.cpio" >"$work/initrd"

truncate -s 32M "$work/disk.img"
serve() {
    "$ringd" serve --vhost-user "$work/sock" --disk "$work/disk.img" --serial served --queues 2 >>"$work/server" 2>&1 &
    server=$!
}
await() { # TEXT
    for _ in $(seq 1 1200); do
        grep -qF -- "$1" "$work/guest" && return
        sleep 0.1
    done
    cat "$work/guest" "$work/server"
    fail "the guest did not say '$1'"
}
serve
mkfifo "$work/console"
exec 3<>"$work/console"
: >"$work/guest"
qemu-system-aarch64 -no-user-config -nodefaults -display none -M virt,memory-backend=ram -cpu cortex-a57 -smp 2 \
    -object memory-backend-memfd,id=ram,size=256M,share=on -m 256M -kernel "$kernel" -initrd "$work/initrd" \
    -append "console=ttyAMA0 quiet" -serial stdio -chardev socket,id=disk,path="$work/sock",reconnect=1 \
    -device vhost-user-blk-pci,chardev=disk,num-queues=2 <&3 >"$work/guest" 2>&1 &
qemu=$!
trap 'kill $qemu $server 2>/dev/null; rm -rf "$work"' EXIT
await "part 0 is busy"
await "part 1 is busy"
for _ in 1 2 3; do
    kill -KILL "$server"
    wait "$server" 2>/dev/null
    sleep 0.5
    serve
    sleep 3
done
echo >&3
await "guest: done"
wait "$qemu" || fail "QEMU ended with status $?"
tr -d '\r' <"$work/guest" >"$work/said"
cat "$work/said" "$work/server"
has "$work/said" "queues 2, 65536 sectors, serial served"
has "$work/said" "cache write back"
has "$work/said" "part 0: enough rounds"
has "$work/said" "part 1: enough rounds"
for bad in "WRITE FAILED" "READ DIFFERS" "KERNEL SAW ERRORS"; do
    grep -qF "$bad" "$work/said" && fail "$bad"
done
has "$work/server" "resuming the requests in flight"
is "what is in the image" "$(head -c 4194304 "$work/disk.img" | md5sum)" "$(head -c 12582912 "$work/disk.img" | tail -c 4194304 | md5sum)"
exit 0
