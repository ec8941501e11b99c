# Negative control, in root: zone-daemon with a daemon that forgets what was in flight. Such a daemon must
# fail it: by requests that are never answered, or by data. FILES has the system tests and that daemon; see
# the stage of the same name.
cd /mnt/files || exit 1
mkdir -p /tmp/forgets
cp ringd-forgets /tmp/forgets/ringd
chmod 755 /tmp/forgets/ringd
PATH=/tmp/forgets:$PATH timeout -k 5 300 sh ./zone-daemon.sh >/tmp/control 2>&1
status=$?
cat /tmp/control
[ $status != 0 ] || { echo "FAIL: a daemon without an in-flight log passes zone-daemon"; exit 1; }
# For the right reason: daemons were killed and started, and then a request or its data was lost.
kills=$(grep -c 'the daemon died: starting it again' /run/ringd/ringd.log)
[ "$kills" -gt 0 ] || { echo "FAIL: no daemon was killed"; exit 1; }
case $(tail -1 /tmp/control) in
"FAIL: not within"*served*) reason="no disk is served any more" ;;
"FAIL: the guest saw errors" | "FAIL: hash of"*) reason="wrong data" ;;
*) [ $status = 124 ] && reason="a request was never answered" ;;
esac
echo "after $kills kills: ${reason:-}"
[ -n "${reason:-}" ]
