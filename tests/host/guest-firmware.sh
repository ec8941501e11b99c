#!/bin/bash
# Debian's U-Boot in a zone's flash comes to its prompt, and finds the flash and the firmware configuration
# device that it finds under QEMU.
#@ needs: el2
#@ timeout: 900
#@ tier: all
. tests/host/lib.sh
firmware=$("$(dirname "$HARNESS")/image" --project "$PROJECT" firmware) || fail "no firmware"
files=$work/files
mkdir -p "$files"
cp "$firmware"/* "$files/"

# What U-Boot says under QEMU of the same machine. Its maximum times are those of a chip (docs/zone-file.md).
mkfifo "$work/typed"
timeout 120 qemu-system-aarch64 -M virt,gic-version=3 -cpu cortex-a57 -m 256M -nographic -nic none \
    -global virtio-mmio.force-legacy=false -bios "$files/u-boot.bin" <"$work/typed" >"$work/qemu" 2>&1 &
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
printf 'flinfo; qfw cpus; echo all''-said\r' >&3
reaches '^all-said'
kill $qemu
exec 3>&-
# same FILE: the lines that have to be the same
same() {
    tr -d '\r' <"$1" | grep -E '^(DRAM|Flash|Bank #|  Intel|  [0-9A-F]{8}  |.* cpu\(s\))' | sed 's/ RO / /g; s/ *$//'
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
ringd --daemonize || exit 1
truncate -s 2M u-boot.vars
ringctl zone start --name f --cpus 1 --memory 256M --firmware /mnt/files/u-boot.bin --variables u-boot.vars || exit 1
mkfifo /tmp/typed
ringctl zone console f </tmp/typed >/dev/null 2>&1 &
exec 3>/tmp/typed
says 200 'stop autoboot'
printf x >&3
says 60 '^=> *$'
type 'flinfo; qfw cpus; echo all''-said'
says 200 '^all-said'
ringctl zone console f --dump >/tmp/first
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
