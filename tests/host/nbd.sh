#!/bin/bash
# A zone's disk on /dev/nbd0 of root, by Debian's nbd-client from `qemu-nbd` on this machine over the
# machine's network. A guest verifies what it writes with fio while the daemon is killed, the server hangs,
# and the connection is cut: the disk stops (`on_error = "stop"`) and closes the device, continues when that
# is connected again and the disk resumed, and the guest sees pauses and no error. The same holds when the
# daemon dies meanwhile (torture e1).
#@ timeout: 1200
#@ tier: all
. tests/host/lib.sh
command -v qemu-nbd >/dev/null || fail "no qemu-nbd on this machine"
storage=$("$(dirname "$HARNESS")/image" --project "$PROJECT" storage) || fail "no storage programs"
mkdir "$work/files"
cp tests/system/lib.sh "$work/files/"
truncate -s 16M "$work/disk.img"
server=
trap '[[ -z $server ]] || kill -KILL $server 2>/dev/null; rm -rf "$work"' EXIT
serve() {
    qemu-nbd -f raw -x disk -t -b 127.0.0.1 -p "$port" "$work/disk.img" >>"$work/server" 2>&1 &
    server=$!
}
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
for _ in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 20000))
    listens && continue
    serve
    for _ in $(seq 100); do
        listens && break 2
        kill -0 $server 2>/dev/null || break
        sleep 0.1
    done
done
listens || { cat "$work/server"; fail "qemu-nbd does not start"; }

cat >"$work/script" <<'S'
cd /mnt/files && . ./lib.sh
trap '[ $? = 0 ] || { tail -n 40 /run/ringd/ringd.log; ringctl disk list; dmesg | tail; ringctl zone console guest1 --dump | tail -n 20; }' EXIT
for disk in /sys/block/vd*; do
    [ "$(cat "$disk/serial")" != storage ] || { mkdir -p /p; mount -o ro "/dev/${disk##*/}" /p; }
done
modprobe virtio_net
modprobe nbd nbds_max=1 max_part=0 || fail "no nbd in root's kernel"
busybox ip link set lo up
within 20 busybox ip link set eth0 up
busybox ip addr add 10.0.2.15/24 dev eth0
client() { LD_LIBRARY_PATH=/p/usr/lib/aarch64-linux-gnu:/p/usr/lib /p/usr/sbin/nbd-client "$@"; }
connect() { client -nonetlink -b 512 -N disk 10.0.2.2 PORT /dev/nbd0 </dev/null >>/tmp/client.log 2>&1; }
within 60 connect
within 20 sh -c '[ "$(cat /sys/block/nbd0/size)" = 32768 ]'
{
    verify_loop vdc 'echo "fio: run $runs"' vdb 0:64k:512:1 1M:512k:4k:32 4M:2M:512-128k:64
    verify_end vdb
    guest_ends
} >/tmp/autorun
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/vdc.img
zone_file guest1 2 256M root.img
printf '[[disk]]\npath = "/dev/nbd0"\non_error = "stop"\n[[disk]]\npath = "vdc.img"\n' >>$Z/guest1.toml
ringd --daemonize --supervise || fail "ringd does not start"
ringctl zone start $Z/guest1.toml || fail "zone start"
within 200 guest_says '^io: begins'
runs() { ringctl zone console guest1 --dump | tr -d '\r' | grep -c '^fio: run '; }
run_after() { [ "$(runs)" -gt "$1" ]; }
is_ready_after() { [ "$(grep -c ' ready pid=' $LOG)" -gt "$1" ]; }
goes_on() { runs=$(runs); within 200 run_after "$runs"; }
state() { ringctl disk list | awk '$NF == "/dev/nbd0" { print $7 }'; }
is_released() { [ "$(state)" = released ]; }
kill_worker() { kill -KILL "$(sed -n 's/.* ready pid=\([0-9]*\) .*/\1/p' $LOG | tail -1)" || fail "no worker to kill"; }
goes_on
for round in 1 2; do
    echo "host: cut"
    within 100 is_released
    ringctl disk resume guest1 vdb 2>/tmp/refused && fail "a device that is not there is resumed"
    grep -q "/dev/nbd0" /tmp/refused || fail "unclear: $(cat /tmp/refused)"
    # The next daemon does not find the device either, and keeps the zone.
    ready=$(grep -c ' ready pid=' $LOG)
    kill_worker
    within 100 is_ready_after "$ready"
    within 100 is_released
    echo "host: serve"
    within 100 connect
    within 20 sh -c '[ "$(cat /sys/block/nbd0/size)" = 32768 ]'
    ringctl disk resume guest1 vdb || fail "disk resume"
    goes_on
    is "state of the disk" "$(state)" active
    before=$(first_requests 1)
    kill_worker
    within 100 served 1 "$before"
    goes_on
    echo "host: hang"
    goes_on
done
printf 'end\n' | dd of=$Z/vdc.img conv=notrunc 2>/dev/null
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n '/^io: /,$p' >/tmp/text
cat /tmp/text
grep -q "^fio: [1-9][0-9]* runs verified" /tmp/text || fail "fio"
grep -qE "guest saw errors|failed" /tmp/text && fail "the guest saw errors"
grep -E 'seccomp|panicked' $LOG && fail "the log complains"
client -d /dev/nbd0
exit 0
S
sed -i "s/PORT/$port/" "$work/script"
export QEMU_ARGS="-drive file=$storage,if=none,id=storage,format=raw,readonly=on -device virtio-blk-device,drive=storage,serial=storage
    -netdev user,id=net -device virtio-net-device,netdev=net"
FILES="$work/files" "$HARNESS" exec --script "$work/script" --timeout 1000 >"$work/out" 2>&1 </dev/null &
machine=$!
done=0
while kill -0 $machine 2>/dev/null; do
    mapfile -t asked < <(grep -aoE '^host: (cut|serve|hang)' "$work/out")
    if ((${#asked[@]} > done)); then
        case ${asked[done]} in
        *cut)
            kill -KILL $server
            wait $server 2>/dev/null
            ;;
        *serve) serve ;;
        *hang)
            kill -STOP $server
            sleep 5
            kill -CONT $server
            ;;
        esac
        done=$((done + 1))
    fi
    sleep 0.2
done
wait $machine
status=$?
[[ $status == 0 ]] || { cat "$work/out" "$work/server"; fail "the script in root ended with status $status"; }
is "what the host was asked for" "$done" 6
grep -aE '^(fio: .*verified|hash)' "$work/out"
is "hash of the image" "$(sha256sum <"$work/disk.img" | cut -d ' ' -f 1)" "$(tr -d '\r' <"$work/out" | sed -n 's/^hash of vdb: //p')"
exit 0
