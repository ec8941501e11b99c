#!/bin/bash
# Debian's U-Boot in a zone's flash: what it finds, compared with QEMU's; variables that outlive a reset of
# the guest, the zone, and a daemon that is killed while the guest waits for it; and a kernel that it loads
# from the guest's own disk.
#@ needs: el2
#@ timeout: 900
#@ tier: all
. tests/host/lib.sh
image() { "$(dirname "$HARNESS")/image" --project "$PROJECT" "$1"; }
firmware=$(image firmware) || fail "no firmware"
disk=$(image bootable) || fail "no disk"
files=$work/files
mkdir -p "$files"
cp "$firmware/u-boot.bin" "$files/"
cp --sparse=always "$disk" "$files/disk"

# What U-Boot says under QEMU of the same machine. Its maximum times are those of a chip (docs/zone-file.md).
mkfifo "$work/typed"
timeout 120 qemu-system-aarch64 -M virt,gic-version=3 -cpu cortex-a57 -m 256M -nographic -nic none \
    -global virtio-mmio.force-legacy=false -bios "$files/u-boot.bin" \
    -drive if=none,id=d,file="$files/disk",format=raw,readonly=on -device virtio-blk-device,drive=d \
    <"$work/typed" >"$work/qemu" 2>&1 &
qemu=$!
exec 3>"$work/typed"
# reaches FILE PATTERN: waits for what QEMU's guest says
reaches() {
    for _ in {1..300}; do
        tr -d '\r' <"$work/qemu" | grep -q "$1" && return
        sleep 0.2
    done
    cat "$work/qemu"
    fail "QEMU's U-Boot does not say '$1'"
}
reaches 'stop autoboot'
printf 'x' >&3
sleep 1
printf 'flinfo; virtio scan; virtio info; virtio part; ls virtio 0:1 /boot; qfw cpus; echo all''-said\r' >&3
reaches '^all-said'
kill $qemu
exec 3>&-
# same FILE: the lines that have to be the same
same() {
    tr -d '\r' <"$1" | grep -E '^(DRAM|Flash|Bank #|  Intel|  [0-9A-F]{8}  |Device 0|            (Type|Capacity)|Partition Map|  [12]\s|[ 0-9]+ +(Image|initrd|extlinux)|.* cpu\(s\))' | sed 's/ RO / /g; s/ *$//'
}
same "$work/qemu" >"$work/expected"
grep -q '^Bank # 2' "$work/expected" || fail "no flash under QEMU"

cat >"$work/script" <<'S'
cd /srv && mkdir -p test && cd test || exit 1
fail() { echo "FAIL: $*"; ringctl zone console f --dump | tail -n 30; exit 1; }
# says SECONDS PATTERN [LINES]: waits until so many lines of the console match
says() {
    tries=0
    until [ "$(ringctl zone console f --dump | tr -d '\r' | grep -cE "$2")" -ge "${3:-1}" ]; do
        tries=$((tries + 1))
        [ $tries -lt $(($1 * 2)) ] || fail "not within $1 s: $2"
        sleep 0.5
    done
}
type() { printf '%s\r' "$*" >&3; }
opens() {
    rm -f /tmp/typed
    mkfifo /tmp/typed
    ringctl zone console f </tmp/typed >/dev/null 2>&1 &
    exec 3>/tmp/typed
}
ringd --daemonize --supervise || exit 1
worker() { ringctl info --json | tr -d ' ,' | sed -n 's/^"ringd_pid"://p'; }
truncate -s 2M u-boot.vars
cp --sparse=always /mnt/files/disk disk

start() {
    ringctl zone start --name f --cpus 1 --memory 256M --firmware /mnt/files/u-boot.bin --variables u-boot.vars \
        --disk disk || exit 1
    opens
}
# autoboot N: stops U-Boot's N-th start at its prompt
autoboot() {
    says 100 'stop autoboot' $1
    printf x >&3
    says 20 '^=> *$'
}
start
autoboot 1
type 'flinfo; virtio scan; virtio info; virtio part; ls virtio 0:1 /boot; qfw cpus; echo all''-said'
says 60 '^all-said'
ringctl zone console f --dump >/tmp/first
# U-Boot does not report the error of a locked block.
type 'crc32 0 0x40000; protect off 0x0 +0x40000; erase 0x0 +0x40000; crc32 0 0x40000; echo locked''-said'
says 60 '^locked-said'
sums=$(ringctl zone console f --dump | grep -o '==> [0-9a-f]*')
[ "$(echo "$sums" | wc -l) $(echo "$sums" | sort -u | wc -l)" = "2 1" ] || fail "firmware has changed: $sums"
type 'setenv kept variable; saveenv && echo sa''ved'
says 60 '^saved'
type 'reset'
says 60 'Loading Environment from Flash... OK'
autoboot 2
type 'printenv kept'
says 20 '^kept=variable'

# The guest waits for a daemon that does nothing, and is served by the next one.
pid=$(worker)
type 'echo wai''ts; sleep 3; erase 0x04100000 +0x20000 && echo era''sed'
says 20 '^waits'
kill -STOP $pid
# The guest is at its command by then.
sleep 4
kill -KILL $pid
opens
says 60 '^erased'
type 'printenv kept'
says 20 '^kept=variable' 2

# The next zone of the same file.
ringctl zone stop f || exit 1
start
autoboot 1
type 'printenv kept'
says 20 '^kept=variable'
type 'boot'
says 200 'guest: Linux .* on /dev/vda1'
type 'cat /proc/cmdline'
says 20 'booted-by=extlinux' 3
ringctl zone stop f || exit 1

ringctl zone list
grep -E 'seccomp|WARN.*(cannot|refus)|ERROR' /run/ringd/ringd.log
tr -d '\r' </tmp/first | sed 's/^/zone: /'
exit 0
S
"$HARNESS" exec --script "$work/script" --files "$files" --timeout 700 >"$work/out" 2>&1 </dev/null
status=$?
tr -d '\r' <"$work/out" | grep -v '^zone: '
is "status" $status 0
tr -d '\r' <"$work/out" | sed -n 's/^zone: //p' >"$work/zone"
same "$work/zone" >"$work/actual"
diff "$work/expected" "$work/actual" || fail "U-Boot finds something else than under QEMU"
grep -q 'Buffer write timeout: 4195 ms' "$work/zone" || fail "no time for the next daemon"
grep -qE 'seccomp|WARN|ERROR' "$work/out" && fail "the log complains"
exit 0
