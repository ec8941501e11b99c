#!/bin/sh
# Another user of root's (torture i1): what is below the run directory, in hugetlbfs, behind the socket and at
# the metrics' port is not for it. Files that an earlier version left readable are tightened.
#@ needs: el2
#@ tier: all
#@ timeout: 240
. ./lib.sh
user() { setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"; }
user id -u | grep -q 65534 || fail "no command runs as another user"
mkdir -p /run/ringd
for file in lock ringd.log; do
    : >/run/ringd/$file
    chmod 644 /run/ringd/$file
done
ringd --daemonize --supervise --metrics 127.0.0.1:9100 || { cat /run/ringd/ringd.log; fail "ringd does not start"; }
truncate -s 1M $Z/secret-name.img 2>/dev/null || { mkdir -p $Z && truncate -s 1M $Z/secret-name.img; }
zone_file private 1 64M secret-name.img
ringctl zone start $Z/private.toml || fail "zone start"

huge=$(awk '$3 == "hugetlbfs" { print $2; exit }' /proc/mounts)
found=0
# The name of each is known to the other user; it need not list anything.
for path in $(find /run/ringd "$huge/ringd" ! -type d); do
    found=$((found + 1))
    case $path in
    # Process numbers and what the daemon does: ringctl says so to all.
    */state | */supervisor) continue ;;
    esac
    user cat "$path" >/dev/null 2>&1 && fail "another user reads $path"
    user sh -c "exec 3>>'$path'" 2>/dev/null && fail "another user writes $path"
    user flock -n "$path" true 2>/dev/null && fail "another user locks $path"
done
at_least "files that were tried" "$found" 6
for directory in $(find /run/ringd "$huge/ringd" -type d); do
    user ls "$directory" >/dev/null 2>&1 && fail "another user lists $directory"
    user touch "$directory/new" 2>/dev/null && fail "another user makes a file in $directory"
done
user ringctl zone list >/dev/null 2>&1 && fail "another user commands the daemon"
user busybox wget -qO- http://127.0.0.1:9100/metrics >/tmp/metrics || fail "no metrics"
grep -q 'zone="private"' /tmp/metrics || fail "the metrics lack the zone"
grep -e secret-name -e "$Z" /tmp/metrics && fail "the metrics name an image"
# The next daemon starts although the user tried.
kill -KILL "$(worker)"
up() { ringctl zone list 2>/dev/null | grep -q '^private'; }
within 30 up
ringctl zone stop private || fail "zone stop"
kernel_is_quiet
