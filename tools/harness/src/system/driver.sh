# Runs the tests in $tests ("NAME:SECONDS ...") one after the other; the harness puts the list in front of
# this text.
. /run/ringvisor/conf
mark() {
    for _ in 1 2 3; do
        printf '\n%s test %s\n' "$NONCE" "$*" >/dev/console
        sleep 0.03
    done
}
cd /mnt/files || exit 1
for test in $tests; do
    name=${test%:*}
    mark begin "$name"
    # A session of its own: programs in the background may not read the console.
    TEST=$name setsid -w timeout -k 5 "${test#*:}" /bin/sh "./$name.sh" </dev/null 2>&1
    status=$?
    sh ./lib.sh clean >/dev/null 2>&1
    mark end "$name" $status
done
exit 0
