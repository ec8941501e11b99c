#!/bin/bash
# Root after a zone on the same CPU, and a zone after root: a debugger compares all registers at the entries.
# What the zone has written to (the test guest's group "inherited") is as at the CPU's first entry into root.
#@ needs: el2
#@ tier: all
#@ timeout: 900
. tests/host/lib.sh
cat >"$work/script" <<'S'
mkdir -p /srv/test
cp /srv/zones/guest-test.bin /srv/test
cat >/srv/test/heir.toml <<T
name = "heir"
cpus = 1
memory = "64M"
kernel = "guest-test.bin"
cmdline = "test=inherited"
T
ringd --daemonize || exit 1
ringctl zone run /srv/test/heir.toml || exit 1
until [ "$(cat /sys/devices/system/cpu/cpu1/online)" = 1 ]; do sleep 0.1; done
taskset -c 1 true && echo "root runs on its second CPU"
S
elf=${CARGO_TARGET_DIR:-target}/aarch64-unknown-none-softfloat/release/ringvisor
# compare NAME: with QEMU and CPU from the environment
compare() {
    rm -f "$work/gdb"
    SMP=2 QEMU_ARGS="-S -chardev socket,id=gdb,server=on,wait=off,path=$work/gdb -gdb chardev:gdb" \
        timeout 420 "$HARNESS" exec --script "$work/script" --timeout 400 >"$work/root" 2>&1 </dev/null &
    root=$!
    until [[ -S $work/gdb ]]; do
        kill -0 $root || { cat "$work/root"; fail "the machine does not start"; }
        sleep 0.1
    done
    timeout 420 gdb-multiarch -q -nx -batch -ex "set confirm off" -ex "set architecture aarch64" \
        -ex "set remotetimeout 120" -ex "add-symbol-file $elf -o 0x40200000" -ex "target remote $work/gdb" \
        -x tools/gdb/owners.py >"$work/out" 2>&1 </dev/null
    wait $root || { cat "$work/out" "$work/root"; fail "$1: root's script ends with $?"; }
    grep '^== ' "$work/out"
    has "$work/out" "== compared"
    has "$work/root" "guest-test: PASS"
    has "$work/root" "root runs on its second CPU"
    grep -qE '^== .* sees ' "$work/out" && fail "$1: state of another owner"
    (($(sed -n 's/^== .* enters root after a zone: \([0-9]*\) registers/\1/p' "$work/out") > 100)) || fail "$1: too few registers"
}
compare a57
QEMU=10 CPU=max compare "max on QEMU 10"
exit 0
