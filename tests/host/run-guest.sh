#!/bin/bash
# `make run`: the daemon and the example guest start; the guest's console is entered, used and left; from the
# host one logs into the guest by ssh, as `make run` says, by QEMU's network, root and root's bridge: data
# arrives as it was sent both ways, and a session goes on while the daemon is killed; poweroff ends it all.
#@ needs: el2
#@ timeout: 600
. tests/host/lib.sh
export WORK=$work
cat >"$work/session" <<'S'
#!/bin/bash
# session LOGIN PHASE: what is done by ssh
login="$1 -o ConnectTimeout=10 -o LogLevel=ERROR"
case $2 in
copy)
    for ((try = 0; try < 60; try++)); do
        name=$($login hostname </dev/null 2>>"$WORK/ssh") && break
        sleep 1
    done
    [[ ${name-} == guest ]] || { echo "no login: $(tail -n 3 "$WORK/ssh")"; exit 1; }
    head -c 2M /dev/urandom >"$WORK/data"
    sent=$(sha256sum <"$WORK/data")
    got=$($login 'cat >/tmp/data; sha256sum </tmp/data' <"$WORK/data")
    back=$($login 'cat /tmp/data' </dev/null | sha256sum)
    [[ $sent == "$got" && $sent == "$back" ]] || { echo "sent $sent, got $got, back $back"; exit 1; }
    ;;
begin)
    $login 'for tick in $(seq 15); do echo tick $tick; sleep 1; done' </dev/null >"$WORK/ticks" 2>&1 &
    until grep -q 'tick 2' "$WORK/ticks"; do sleep 0.2; done
    ;;
end)
    for ((try = 0; try < 120; try++)); do
        grep -q 'tick 15' "$WORK/ticks" && break
        sleep 1
    done
    [[ $(grep -c '^tick' "$WORK/ticks") == 15 ]] || { cat "$WORK/ticks"; exit 1; }
    ;;
esac
S
chmod +x "$work/session"
cat >"$work/expect" <<'S'
set timeout 200
proc await {text code} {
    expect {
        timeout { exit $code }
        eof { exit $code }
        -ex $text { return }
    }
}
proc session {phase code} {
    global login
    if {[catch {exec $::env(WORK)/session $login $phase >@ stdout} error]} {
        puts "session $phase: $error"
        exit $code
    }
}
spawn bash -c {"$HARNESS" run; echo "status-$?"}
expect {
    timeout { exit 2 }
    -re {to log into the guest: (ssh [^\r\n]*)} { set login $expect_out(1,string) }
}
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
session copy 12
session begin 13
send "kill -KILL \$(ringctl info --json | tr -d ' ,' | sed -n 's/^\"ringd_pid\"://p')\r"
await "root@root" 14
session end 15
send "ringctl net list\r"
await "ringvisor0" 16
await "root@root" 17
send "poweroff\r"
await "status-0" 11
catch { expect eof }
S
start=$SECONDS
expect "$work/expect" >"$work/out" 2>&1 || fail "expect $?, $(cat "$work/out")"
cat "$work/out"
echo "took $((SECONDS - start)) s"
exit 0
