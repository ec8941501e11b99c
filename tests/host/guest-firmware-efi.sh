#!/bin/bash
# EDK2 in a zone's flash: it comes to its shell, finds the zone's disk, and keeps variables across a reset of
# the guest, a daemon that is killed while the guest waits for it, and the zone's end; by GRUB on a disk it
# boots the kernel of that disk.
#@ needs: el2
#@ timeout: 900
#@ tier: all
. tests/host/lib.sh
image() { "$(dirname "$HARNESS")/image" --project "$PROJECT" "$1"; }
firmware=$(image firmware) || fail "no firmware"
disk=$(image bootable) || fail "no disk"
files=$work/files
mkdir -p "$files"
cp "$firmware/QEMU_EFI.fd" "$files/"
cp --sparse=always "$disk" "$files/disk"

cat >"$work/script" <<'S'
cd /srv && mkdir -p test && cd test || exit 1
fail() { echo "FAIL: $*"; ringctl zone console f --dump | tail -n 40; exit 1; }
# says SECONDS PATTERN [TIMES]: waits until the console has said so so many times
says() {
    tries=0
    until [ "$(ringctl zone console f --dump | grep -oE "$2" | wc -l)" -ge "${3:-1}" ]; do
        tries=$((tries + 1))
        [ $tries -lt $(($1 * 2)) ] || fail "not within $1 s: $2"
        sleep 0.5
    done
    echo "EDK2 says '$2' at $(cut -d' ' -f1 /proc/uptime)"
}
type() { printf '%s\r' "$*" >&3; }
ringd --daemonize --supervise || exit 1
worker() { ringctl info --json | tr -d ' ,' | sed -n 's/^"ringd_pid"://p'; }
truncate -s 2M vars
truncate -s 64M empty
cp --sparse=always /mnt/files/disk disk

# start DISK: GRUB fails with 256 MiB, under QEMU, too.
start() {
    ringctl zone start --name f --cpus 1 --memory 512M --firmware /mnt/files/QEMU_EFI.fd --variables vars \
        --disk $1 || exit 1
    opens
}
opens() {
    rm -f /tmp/typed
    mkfifo /tmp/typed
    ringctl zone console f </tmp/typed >/dev/null 2>&1 &
    exec 3>/tmp/typed
}
# shell N P: waits for the N-th shell, whose prompt is the P-th of all
shell() {
    says 200 'UEFI Interactive Shell' $1
    says 60 'Shell> ' $2
}
guid=12345678-1234-1234-1234-123456789abc
start empty
shell 1 1
type 'map -r'
says 60 'BLK0' 2
says 60 'Shell> ' 2
type "setvar first -guid $guid -bs -rt -nv =0x4711"
says 60 'Shell> ' 3
type "setvar first -guid $guid"
says 60 'first - 0002 Bytes'

# The guest waits for a daemon that does nothing, and is served by the next one. The second line is typed
# while the first one is executed, for 8 s.
type 'stall 8000000'
type "setvar second -guid $guid -bs -rt -nv =0x4712"
sleep 3
pid=$(worker)
kill -STOP $pid
sleep 10
kill -KILL $pid
opens
says 60 'Shell> ' 6
type "setvar second -guid $guid"
says 60 'second - 0002 Bytes'
says 60 'Shell> ' 7
type 'reset'
shell 2 8
type "setvar first -guid $guid"
says 60 'first - 0002 Bytes' 2
ringctl zone stop f || exit 1

start empty
shell 1 1
type "setvar second -guid $guid"
says 60 'second - 0002 Bytes'
ringctl zone stop f || exit 1

start disk
says 200 'guest: Linux .* on /dev/vda1'
type 'cat /proc/cmdline; dmesg | grep "EFI v"'
says 60 'BOOT_IMAGE.*booted-by=grub' 2
says 20 'efi: EFI v'
ringctl zone wait f &
type 'touch /written && poweroff'
wait $! || fail "the guest did not power off: $?"
ringctl zone list
grep -E 'seccomp|WARN.*(cannot|refus)|ERROR' /run/ringd/ringd.log
exit 0
S
"$HARNESS" exec --script "$work/script" --files "$files" --timeout 700 >"$work/out" 2>&1 </dev/null
status=$?
tr -d '\r' <"$work/out"
is "status" $status 0
grep -qE 'seccomp|WARN|ERROR' "$work/out" && fail "the log complains"
exit 0
