#!/bin/sh
# A zone's disk on `ringd serve` in root: a guest verifies what it writes with fio by two queues while the
# server is killed, the daemon is killed, both are killed, and the server hangs. The guest sees pauses and no
# error, and the image has the guest's data. Mistakes in the zone file are reported by disk, key and value
# (torture c5, e1).
#@ needs: el2
#@ tier: all
#@ boot: own
#@ timeout: 900
. ./lib.sh
mkdir -p $Z
truncate -s 16M $Z/vdb.img
serve() { # [OPTION...]
    ringd serve --vhost-user /run/disk.sock --disk $Z/vdb.img --queues 4 "$@" >>/tmp/server 2>&1 &
    server=$!
}
connections() { grep -c 'connected to the disk.s server' $LOG; }
connected() { [ "$(connections)" -gt "$1" ]; }
# The disk's completed requests, by this daemon's counter.
requests() {
    ringctl disk stats --json | tr -d ' ,' | awk -F: '$1 == "\"slot\"" { slot = $2 }
        slot == 1 && ($1 == "\"reads\"" || $1 == "\"writes\"") { sum += $2 } END { print sum + 0 }'
}
{
    cat <<'S'
queue=/sys/block/vdb/queue
echo "disk: $(cat /sys/block/vdb/size) sectors, $(ls /sys/block/vdb/mq | wc -l) queues, $(cat $queue/write_cache)"
S
    verify_loop vdc "" vdb 0:64k:512:1 1M:1M:4k:32 4M:4M:512-128k:128
    cat <<'S'
blkdiscard -o 8M -l 1M /dev/vdb || echo "blkdiscard failed"
blkdiscard -z -o 9M -l 1M /dev/vdb || echo "zeroing failed"
S
    verify_end vdb
    guest_ends
} >/tmp/autorun
guest_disk $Z/root.img /tmp/autorun
truncate -s 4K $Z/vdc.img
zone_file guest1 2 256M root.img
printf '[[disk]]\nvhost_user = "/run/disk.sock"\n[[disk]]\npath = "vdc.img"\n' >>$Z/guest1.toml
ringd --daemonize --supervise || fail "ringd does not start"

# No server; a socket of another program; a key that is not allowed beside vhost_user.
ringctl zone start $Z/guest1.toml 2>/tmp/error && fail "a zone starts without its disk's server"
cat /tmp/error
grep -q 'disk\[1\].vhost_user.*/run/disk.sock.*No such file' /tmp/error || fail "a missing socket is not reported"
printf 'name = "x"\ncpus = 1\nmemory = "64M"\nkernel = "/srv/zones/Image"\n[[disk]]\nvhost_user = "/run/ringd/sock"\n' >$Z/x.toml
ringctl zone start $Z/x.toml 2>/tmp/error && fail "a zone starts with the daemon's own socket as a disk"
cat /tmp/error
grep -q 'disk\[0\].vhost_user.*/run/ringd/sock.*no vhost-user server' /tmp/error || fail "a wrong socket is not reported"
echo 'format = "raw"' >>$Z/x.toml
ringctl zone start $Z/x.toml 2>/tmp/error && fail "a zone starts with format beside vhost_user"
grep -q 'vhost_user.*expected no key format' /tmp/error || { cat /tmp/error; fail "an excess key is not reported"; }

serve
within 20 test -S /run/disk.sock
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^io: begins'
goes_on() { # the disk goes on
    before=$(requests)
    within 100 more_than "$before"
}
more_than() { [ "$(requests)" -gt "$1" ]; }
kill_server() {
    kill -KILL $server
    wait $server 2>/dev/null
}
kill_daemon() { kill -KILL "$(sed -n 's/.* ready pid=\([0-9]*\) .*/\1/p' $LOG | tail -1)" || fail "no worker to kill"; }
is_ready() { [ "$(grep -c ' ready pid=' $LOG)" -gt "$1" ]; }
for round in 1 2 3; do
    goes_on
    before=$(connections)
    kill_server
    sleep 1
    serve
    within 60 connected "$before"
    goes_on
    before=$(connections)
    kill_daemon
    within 60 connected "$before"
    goes_on
done
# Both are killed; the daemon is back first, and serves the zone's other disks without waiting for the server.
readies=$(grep -c ' ready pid=' $LOG)
before=$(connections)
kill_server
kill_daemon
within 60 is_ready "$readies"
within 60 zone_is guest1 running
sleep 1
serve
within 60 connected "$before"
goes_on
# A server that hangs for longer than the reply timeout.
kill -STOP $server
sleep 12
zone_is guest1 running || fail "the zone is $(zone_state guest1)"
kill -CONT $server
goes_on
guest_says '^io: ends' && fail "the guest's I/O ended before the kills: no proof"
printf 'end\n' | dd of=$Z/vdc.img conv=notrunc 2>/dev/null
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n '/^disk: /,$p' >/tmp/text
cat /tmp/text
grep -q "^disk: 32768 sectors, 2 queues, write back" /tmp/text || fail "the disk's shape"
grep -q "^fio: [1-9][0-9]* runs verified" /tmp/text || fail "fio"
grep -qE "guest saw errors|fio: failed|failed" /tmp/text && fail "the guest saw errors"
is "hash of the image" "$(md5sum <$Z/vdb.img | cut -c1-32)" "$(sed -n 's/^hash of vdb: //p' /tmp/text)"
is "what was discarded and zeroed" "$(tail -c +8388609 $Z/vdb.img | head -c 2097152 | tr -d '\0' | wc -c)" 0
kill $server
wait $server 2>/dev/null
rm -f /run/disk.sock
grep -E 'seccomp|panicked' $LOG /tmp/server && fail "the log complains"

# A server that hangs delays the stop of a zone by no more than the reply timeout.
serve
within 20 test -S /run/disk.sock
truncate -s 4K $Z/vdc.img
cat >/tmp/autorun <<'S'
echo "io: begins"
while dd if=/dev/urandom of=/dev/vdb bs=64k count=64 oflag=direct 2>/dev/null; do :; done
S
guest_disk $Z/root.img /tmp/autorun
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^io: begins'
goes_on
kill -STOP $server
sleep 1
start=$(date +%s)
timeout 100 ringctl zone stop guest1 || fail "zone stop"
echo "stopped in $(($(date +%s) - start)) s with a server that hangs"
kill -CONT $server
kill $server
kernel_is_quiet
