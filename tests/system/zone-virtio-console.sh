#!/bin/sh
# A guest's virtio consoles: hvc0 on a pty and in a log file, the others by `ringctl zone console --port`.
# Ten kills of the daemon while the guest prints: the log has every byte once, the pty at least once, and no
# hangup.
# Then one console alone, whose size follows the terminal, and the driver's mistakes by the bare-metal guest.
#@ needs: el2
#@ timeout: 400
. ./lib.sh
KILLS=10
cat >/tmp/autorun <<'S'
exec 3<>/dev/hvc0
stty raw -echo <&3
echo "hvc: $(cat /sys/class/virtio-ports/*/dev | wc -l) ports"
echo "second console" >/dev/hvc1
read -r line <&3
echo "hvc: read $line"
(
    number=0
    while [ ! -e /run/end ]; do
        number=$((number + 1))
        echo "line $number of the guest's output"
        [ $((number % 50)) = 0 ] && usleep 20000
    done
    echo "last $number"
) >&3 &
while read -r line <&3; do
    echo "hvc: read $line"
    [ "$line" = stop ] && break
done
touch /run/end
wait
read -r line <&3
echo "hvc: size $(stty size <&3)"
dmesg | grep -E 'hung_task|blocked for more|virtio.*(error|fail)' && echo "guest saw errors"
echo "hvc: end"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
zone_file guest1 1 256M root.img
cp $Z/guest1.toml $Z/single.toml
printf 'console_log = "uart.log"\n' | cat - $Z/guest1.toml >/tmp/zone && cp /tmp/zone $Z/guest1.toml
printf '[[console]]\npty = true\nlog = "hvc0.log"\n[[console]]\n[[console]]\nsocket = "hvc2"\n' >>$Z/guest1.toml
no_daemon || fail "a daemon runs already"
# Other tests of this boot have written to the same log.
before_test=$(wc -l <$LOG 2>/dev/null || echo 0)
ringd --daemonize --supervise || fail "ringd does not start"
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^hvc: 3 ports'
PTY=/run/ringd/consoles/guest1.0
[ -c $PTY ] || fail "no pty at $PTY: $(ls -l /run/ringd/consoles)"
[ -S $Z/hvc2 ] || fail "no socket at $Z/hvc2"
ringctl zone console guest1 --port 1 --dump | grep -q '^second console' || fail "nothing on the second console"
ringctl zone console guest1 --port 3 --dump 2>/tmp/text && fail "a console that is not there"
grep -q 'no console 3: 3 are described' /tmp/text || { cat /tmp/text; fail "another message"; }

# Open from before the first line on: a pty without a program misses what is printed.
exec 5<>$PTY
cat <&5 >/tmp/pty &
reader=$!
printf 'go\n' >$PTY
says_within 60 '^hvc: read go'
printed() { [ "$(wc -c <$Z/hvc0.log)" -gt "$1" ]; }
within 60 printed 1000
for kill in $(seq $KILLS); do
    before=$(wc -c <$Z/hvc0.log)
    kill -KILL "$(worker)" || fail "no worker to kill"
    within 60 printed $((before + 2000))
done
kill -0 $reader || fail "the program at the pty has seen a hangup"
printf 'stop\n' >$PTY
says_within 60 '^hvc: read stop'
stty -F $PTY rows 43 cols 132
all_there() { grep -q '^last ' $Z/hvc0.log && grep -q '^last ' /tmp/pty; }
within 60 all_there
sleep 2
printf 'size\n' >$PTY
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' | sed -n '/^hvc: /p' | tee /tmp/text
grep -q '^hvc: end' /tmp/text || fail "the guest did not come to its end"
grep -q 'guest saw errors' /tmp/text && fail "the guest reports an error"
wait $reader
exec 5>&-
[ -e $PTY ] && fail "the pty is still there"
[ -e $Z/hvc2 ] && fail "the socket is still there"

grep -q '^hvc: size 43 132' /tmp/text || fail "another size"
# Every line once, in order.
awk '/^last / { if ($2 != count) { print "last line " $2 " of " count; exit 1 } ended = 1; next }
    $0 != "line " count + 1 " of the guest'\''s output" { print "line " count + 1 " is: " $0; exit 1 }
    { count++ } END { if (!ended) exit 1; print count " lines in the log" }' $Z/hvc0.log ||
    fail "the log is not what the guest printed"
# Nothing is missing from the pty: where a daemon was killed it goes back by at most one write.
cat >/tmp/follow.awk <<'A'
BEGIN {
    RS = "\001"
    getline log_text <log_file
    getline pty_text <"/tmp/pty"
    at = 1
    for (i = 1; i <= length(pty_text); i += n) {
        for (n = 64; n > 0 && substr(pty_text, i, n) != substr(log_text, at, n); n--) {}
        at += n
        if (n > 0)
            continue
        for (back = 1; back <= 1024; back++)
            if (back < at && substr(pty_text, i, 64) == substr(log_text, at - back, 64))
                break
        if (back > 1024) {
            print "byte " i " of the pty does not follow byte " at " of the log: " substr(pty_text, i, 64)
            exit 1
        }
        at -= back
        kills--
        print back " bytes came twice"
    }
    if (at <= length(log_text) || kills < 0) {
        print "the pty ends at byte " at " of " length(log_text) ", " kills " kills are left"
        exit 1
    }
}
A
awk -v kills="$KILLS" -v log_file=$Z/hvc0.log -f /tmp/follow.awk || fail "the pty is not what the guest printed"
grep -q '^hvc: end' $Z/uart.log || fail "the UART's log has no end"
tail -n +$((before_test + 1)) $LOG | grep -E 'seccomp|panicked|violated the virtio specification|WARN.*cannot' &&
    fail "the log complains"

# One console: its size is in the configuration space.
cat >/tmp/autorun <<'S'
exec 3<>/dev/hvc0
stty raw -echo <&3
echo "hvc: size $(stty size <&3)"
echo ready >&3
read -r line <&3
until [ "$(stty size <&3)" = "43 132" ]; do sleep 0.2; done
echo "hvc: size $(stty size <&3)"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
sed -i 's/^name = .*/name = "single"/' $Z/single.toml
ringctl zone start $Z/single.toml --console=pty || fail "zone start"
PTY=/run/ringd/consoles/single.0
says_within 200 '^hvc: size' 1 single
exec 4<>$PTY
printf 'go\n' >&4
stty rows 43 cols 132 <&4
timeout 100 ringctl zone wait single || { ringctl zone console single --dump; fail "zone wait"; }
exec 4>&-
ringctl zone console single --dump | grep '^hvc: size'
ringctl zone console single --port 0 --dump | grep -q '^ready' || fail "nothing is kept of an ended console"

# Emergency writes go to the UART's output; the driver's mistakes break its queue alone.
cp /srv/zones/guest-test.bin $Z || fail "no guest-test.bin next to the zone files"
cat >$Z/bare.toml <<'END'
name = "bare"
cpus = 1
memory = "64M"
kernel = "guest-test.bin"
cmdline = "test=console"
[[console]]
END
ringctl zone run $Z/bare.toml >/tmp/bare.log 2>&1 || { cat /tmp/bare.log; fail "zone run ends with $?"; }
grep -q '^guest-test: PASS' /tmp/bare.log || { cat /tmp/bare.log; fail "the bare-metal guest says no"; }
is "tests of the console device" "$(grep -c '^ok .* console: ' /tmp/bare.log)" 4
for text in 'guest-test: emergency write' 'guest-test: another'; do
    grep -q "^$text" /tmp/bare.log || { cat /tmp/bare.log; fail "no emergency write"; }
done
is "lines by the driver" "$(ringctl zone console bare --port 0 --dump | grep -c '^printed by a driver')" 200
kernel_is_quiet
