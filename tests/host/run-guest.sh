#!/bin/bash
# `make run`: the daemon and the example guest start; the guest's console is entered, used and left; poweroff
# ends it all.
#@ needs: el2
#@ timeout: 500
. tests/host/lib.sh
cat >"$work/expect" <<'S'
set timeout 200
proc await {text code} {
    expect {
        timeout { exit $code }
        eof { exit $code }
        -ex $text { return }
    }
}
spawn bash -c {"$HARNESS" run; echo "status-$?"}
await "ringctl zone console guest1" 3
await "root@root" 4
send "ringctl zone console guest1\r"
await "root@guest" 5
send "\r"
await "root@guest" 6
send "echo \$((6 * 7))-in-\$(hostname) on \$(findmnt -no SOURCE /)\r"
await "42-in-guest on /dev/vda" 7
send "\035"
await "root@root" 8
send "ringctl zone list\r"
await "running" 9
await "root@root" 10
send "poweroff\r"
await "status-0" 11
catch { expect eof }
S
start=$SECONDS
expect "$work/expect" >"$work/out" 2>&1 || fail "expect $?, $(cat "$work/out")"
cat "$work/out"
echo "took $((SECONDS - start)) s"
exit 0
