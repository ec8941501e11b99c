#!/bin/bash
# The test guest in a zone with flash, started by U-Boot from a disk: commands, and any stores to both banks.
# They hurt no one else: the firmware, the next zone of the same variables, and the daemon go on.
#@ needs: el2
#@ timeout: 600
#@ tier: all
. tests/host/lib.sh
firmware=$("$(dirname "$HARNESS")/image" --project "$PROJECT" firmware) || fail "no firmware"
files=$work/files
mkdir -p "$files"
cp "$firmware/u-boot.bin" build/guest-test.bin "$files/"
sectors=$(printf '%x' $((($(stat -c %s build/guest-test.bin) + 511) / 512)))

cat >"$work/script" <<S
sectors=$sectors
S
cat >>"$work/script" <<'S'
cd /srv && mkdir -p test && cd test || exit 1
fail() { echo "FAIL: $*"; tail -n 30 /tmp/console; exit 1; }
# says SECONDS PATTERN: waits until a line of the console matches
says() {
    tries=0
    until tr -d '\r' </tmp/console | grep -qE "$2"; do
        tries=$((tries + 1))
        [ $tries -lt $(($1 * 2)) ] || fail "not within $1 s: $2"
        sleep 0.5
    done
}
ringd --daemonize || exit 1
pid=$(ringctl info --json | tr -d ' ,' | sed -n 's/^"ringd_pid"://p')
truncate -s 2M vars
for round in 1 2; do
    rm -f /tmp/typed
    mkfifo /tmp/typed
    ringctl zone start --name f --cpus 2 --memory 256M --firmware /mnt/files/u-boot.bin --variables vars \
        --disk /mnt/files/guest-test.bin,readonly || exit 1
    ringctl zone wait f &
    zone=$!
    ringctl zone console f </tmp/typed >/tmp/console 2>&1 &
    exec 3>/tmp/typed
    says 100 'stop autoboot'
    printf x >&3
    says 20 '^=> *$'
    printf 'virtio scan; virtio read ${kernel_addr_r} 0 %s; setenv bootargs test=flash; booti ${kernel_addr_r} - ${fdt_addr}\r' \
        $sectors >&3
    says 300 '^guest-test: (PASS|FAIL)'
    wait $zone || fail "the guest did not power off: $?"
    tr -d '\r' </tmp/console | sed -n '/^guest-test: at/,$p'
done
[ "$(ringctl info --json | tr -d ' ,' | sed -n 's/^"ringd_pid"://p')" = "$pid" ] || fail "the daemon has restarted"
ringctl zone list
grep -E 'seccomp|WARN|ERROR' /run/ringd/ringd.log
exit 0
S
"$HARNESS" exec --script "$work/script" --files "$files" --timeout 500 >"$work/out" 2>&1 </dev/null
status=$?
tr -d '\r' <"$work/out"
is "status" $status 0
is "passes" "$(grep -c '^guest-test: PASS' "$work/out")" 2
grep -qE '^not ok|seccomp|WARN|ERROR' "$work/out" && fail "the guest or the log complains"
exit 0
