#!/bin/bash
# `make run` without a guest: a shell on root's console, and the terminal as before after poweroff and after
# Ctrl-A X.
#@ tier: all
#@ timeout: 400
. tests/host/lib.sh
cat >"$work/expect" <<'S'
set timeout 150
proc await {text code} {
    expect {
        timeout { exit $code }
        eof { exit $code }
        -ex $text { return }
    }
}
# Repeated, because dash loses a SIGINT that arrives while it starts a program (between vfork and exec).
proc interrupt {code} {
    for {set round 0} {$round < 30} {incr round} {
        send "\003"
        expect {
            -timeout 5
            timeout { }
            eof { exit $code }
            -ex "root@root" { return }
        }
    }
    exit $code
}
spawn bash -c {stty sane; stty -a >$WORK/before; "$HARNESS" run --zone none; echo "status-$?"; stty -a >$WORK/after}
# Each line is typed when the shell asks for it: what comes between a program's end and the prompt may be
# lost.
await "root@root" 3
send "echo \$((6 * 7))-works\r"
await "42-works" 5
# Ctrl-C ends a program in root, not QEMU.
await "root@root" 8
send "sh -c 'echo sleep\$((7 * 7)); sleep 1000'\r"
await "sleep49" 9
interrupt 10
send "echo \$((6 * 8))-interrupted\r"
await "48-interrupted" 6
await "root@root" 11
if {[lindex $argv 0] == "poweroff"} { send "poweroff\r" } else { send "\001x" }
await "status-0" 7
catch { expect eof }
S
export WORK=$work
for how in poweroff escape; do
    expect "$work/expect" $how >"$work/out" 2>&1 || fail "$how: expect $?, $(cat "$work/out")"
    has "$work/out" "Ctrl-A X"
    diff "$work/before" "$work/after" || fail "$how: the terminal was left in another state"
done
exit 0
