#!/bin/sh
# A guest's disk is migrated under fio verify: from a raw image to qcow2, on to a vhost-user server, and back
# to a raw image. The daemon is killed while it copies, the server too; one migration is cancelled, another
# fails by its target. The guest sees no error; at the end the hashes of source, target and guest are the same
# (torture c5, e1).
#@ needs: el2
#@ tier: all
#@ boot: own
#@ timeout: 900
. ./lib.sh
mkdir -p $Z
df -h $Z | tail -n 1
SIZE=48
dd if=/dev/urandom of=$Z/vdb.img bs=1M count=$SIZE 2>/dev/null
qcow2 $Z/next.qcow2 $SIZE
truncate -s ${SIZE}M $Z/served.img $Z/last.img $Z/other.img
truncate -s 4K $Z/vdc.img
serve() {
    ringd serve --vhost-user /run/disk.sock --disk $Z/served.img --queues 4 >>/tmp/server 2>&1 &
    server=$!
}
{
    verify_loop vdc 'blkdiscard -o 30M -l 1M /dev/vdb || echo "blkdiscard failed"; echo "fio: run $runs"' vdb \
        0:64k:512:1 20M:512k:4k:32 40M:2M:512-128k:64
    verify_end vdb
    guest_ends
} >/tmp/autorun
guest_disk $Z/root.img /tmp/autorun
zone_file guest1 2 256M root.img vdb.img vdc.img
ringd --daemonize --supervise || fail "ringd does not start"
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^io: begins'
runs() { ringctl zone console guest1 --dump | tr -d '\r' | grep -c '^fio: run '; }
run_after() { [ "$(runs)" -gt "$1" ]; }
goes_on() { runs=$(runs); within 200 run_after "$runs"; }
kill_daemon() { kill -KILL "$(sed -n 's/.* ready pid=\([0-9]*\) .*/\1/p' $LOG | tail -1)" || fail "no worker to kill"; }
copied() { ringctl disk list --json | tr -d ' ,' | sed -n 's/^"copied"://p'; }
has_copied() { [ "$(copied || echo 0)" -gt "$1" ] 2>/dev/null; }

# Invalid targets are refused, and nothing changes.
truncate -s 1M $Z/small.img
ringctl disk migrate guest1 vdb $Z/small.img 2>/tmp/error && fail "a small target is taken"
grep -q 'disk in slot 1: the target has 1048576 bytes, expected at least' /tmp/error || { cat /tmp/error; fail "the message"; }
ringctl disk migrate guest1 vdb vhost-user:/run/disk.sock 2>/tmp/error && fail "a missing server is taken"
grep -q '/run/disk.sock: cannot connect' /tmp/error || { cat /tmp/error; fail "the message"; }
# Cancelled.
ringctl disk migrate guest1 vdb $Z/other.img --no-wait || fail "migrate"
ringctl disk detach guest1 vdb 2>/tmp/error && fail "a disk is detached while it is migrated"
grep -q 'it is being migrated to' /tmp/error || { cat /tmp/error; fail "the message"; }
ringctl disk migrate guest1 vdb --cancel || fail "migrate --cancel"
ringctl disk list | grep -q "$Z/vdb.img" || fail "the disk is not where it was"
goes_on

# To qcow2, with the daemon killed while it copies, twice; ringctl waits for all of it.
ringctl disk migrate guest1 vdb $Z/next.qcow2,format=qcow2 >/tmp/migrate 2>&1 &
migrate=$!
within 60 has_copied 1000000
kill_daemon
within 60 has_copied 1000000
kill_daemon
wait $migrate || { cat /tmp/migrate $LOG; fail "migrate to qcow2"; }
cat /tmp/migrate
grep -q "migrated to $Z/next.qcow2" /tmp/migrate || fail "ringctl does not say so"
at_least "daemons that went on" "$(grep -c 'continuing a migration' $LOG)" 1
goes_on
# The source is no longer in use.
rm $Z/vdb.img

# To a server, which is killed meanwhile and comes back.
serve
within 20 test -S /run/disk.sock
ringctl disk migrate guest1 vdb vhost-user:/run/disk.sock >/tmp/migrate 2>&1 &
migrate=$!
within 60 has_copied 1000000
kill -KILL $server
wait $server 2>/dev/null
serve
wait $migrate || { cat /tmp/migrate $LOG; fail "migrate to a server"; }
goes_on
kill_daemon
goes_on

# Back to a file.
ringctl disk migrate guest1 vdb $Z/last.img,engine=threads >/tmp/migrate 2>&1 || { cat /tmp/migrate $LOG; fail "migrate to a file"; }
goes_on
kill $server
wait $server 2>/dev/null
rm -f /run/disk.sock
# A target that fails: its server does not come back.
truncate -s ${SIZE}M $Z/served.img
serve
within 20 test -S /run/disk.sock
ringctl disk migrate guest1 vdb vhost-user:/run/disk.sock >/tmp/migrate 2>&1 &
migrate=$!
within 60 has_copied 1000000
kill -KILL $server
wait $migrate && fail "a migration to a server that is gone succeeds"
cat /tmp/migrate
grep -q "stays where it is: the target failed" /tmp/migrate || fail "the message"
goes_on
printf 'end\n' | dd of=$Z/vdc.img conv=notrunc 2>/dev/null
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n '/^io: /,$p' >/tmp/text
cat /tmp/text
grep -q "^fio: [1-9][0-9]* runs verified" /tmp/text || fail "fio"
grep -qE "guest saw errors|failed" /tmp/text && fail "the guest saw errors"
is "hash of the image" "$(image_hash $Z/last.img)" "$(sed -n 's/^hash of vdb: //p' /tmp/text)"
grep -E 'seccomp|panicked' $LOG /tmp/server && fail "the log complains"
clean $Z/root.img
kernel_is_quiet
