# What the tests in root share; read by `. ./lib.sh`. `sh lib.sh clean` is run after each test.

fail() {
    echo "FAIL: $*"
    exit 1
}

# is WHAT ACTUAL EXPECTED
is() {
    [ "$2" = "$3" ] || fail "$1 is '$2', expected '$3'"
}

# at_least WHAT ACTUAL MINIMUM
at_least() {
    [ "$2" -ge "$3" ] || fail "$1 is $2, expected at least $3"
}

# clock: sets $clock to the seconds since boot, without a process: to start one takes tens of milliseconds
# under emulation.
clock() {
    read -r clock _ </proc/uptime
    clock=${clock%.*}
}

# within SECONDS COMMAND...: repeats the command until it succeeds. For what a zone's console says there is
# says_within, which costs less.
within() {
    limit=$1
    shift
    clock
    end=$((clock + limit))
    until "$@"; do
        clock
        [ "$clock" -lt "$end" ] || fail "not within $limit s: $*"
        sleep 0.3
    done
}

# irq_count PATTERN [CPU]: how often the interrupts matching PATTERN in /proc/interrupts came, on all CPUs or
# one
irq_count() {
    awk -v pattern="$1" -v only="${2:--1}" '
        NR == 1 { cpus = NF; for (i = 1; i <= NF; i++) id[i] = substr($i, 4); next }
        $0 ~ pattern { for (i = 1; i <= cpus; i++) if (only == -1 || id[i] == only) sum += $(i + 1) }
        END { print sum + 0 }' /proc/interrupts
}

# online CPU 0|1
online() {
    echo "$2" >"/sys/devices/system/cpu/cpu$1/online" || fail "CPU $1 does not go to state $2"
}

# Makes the harness type a line on root's console. Each text works once in a test.
type_line() {
    . /run/ringvisor/conf
    for _ in 1 2 3; do
        printf '\n%s test type %s %s\n' "$NONCE" "$TEST" "$*" >/dev/console
        sleep 0.03
    done
}

# No complaint of the kernel so far.
kernel_is_quiet() {
    dmesg | grep -E 'BUG:|WARNING:|Call trace:|rcu.*detected (expedited )?stall|(soft|hard) (lockup|LOCKUP)|Oops|unexpected IRQ|nobody cared' &&
        fail "the kernel complained"
    return 0
}

# --- Zones ---

# On root's disk: a zone's disks do not fit in memory.
Z=/srv/test

# No process of the daemon is there. The keeper, which outlives it while there are zones, has another name.
no_daemon() { ! pgrep -x ringd >/dev/null; }

# Starts the daemon if it does not run.
daemon() {
    pgrep -x ringd >/dev/null || ringd --daemonize || { cat /run/ringd/ringd.log; fail "ringd does not start"; }
}

# guest_disk FILE [AUTORUN]: a fresh root disk for a guest, with the script AUTORUN (a file) to run at its
# start
guest_disk() {
    mkdir -p "$(dirname "$1")"
    cp --sparse=always /srv/zones/rootfs.img "$1" 2>/dev/null || cp /srv/zones/rootfs.img "$1" || fail "no room for $1"
    [ -z "${2:-}" ] || debugfs -w -R "write $2 autorun" "$1" 2>/dev/null || fail "cannot write into $1"
}

# zone_file NAME CPUS MEMORY [DISK...]: writes $Z/NAME.toml
zone_file() {
    name=$1
    mkdir -p "$Z"
    {
        echo "name = \"$name\""
        echo "cpus = $2"
        echo "memory = \"$3\""
        echo "kernel = \"/srv/zones/Image\""
        echo "initrd = \"/srv/zones/initrd.cpio.gz\""
        echo "cmdline = \"console=ttyAMA0 root=/dev/vda rw quiet kpti=off init_on_alloc=0\""
        shift 3
        for disk in "$@"; do
            printf '[[disk]]\npath = "%s"\n' "$disk"
        done
    } >"$Z/$name.toml"
}

# test_guest NAME MEMORY CMDLINE [DISK...]: writes $Z/NAME.toml of a zone with one CPU and the guest that has
# no operating system
test_guest() {
    mkdir -p "$Z"
    [ -e "$Z/guest-test.bin" ] || cp /srv/zones/guest-test.bin "$Z" || fail "no guest-test.bin next to the zone files"
    zone=$1
    {
        printf 'name = "%s"\ncpus = 1\nmemory = "%s"\nkernel = "guest-test.bin"\ncmdline = "%s"\n' "$1" "$2" "$3"
        shift 3
        for disk in "$@"; do
            printf '[[disk]]\npath = "%s"\n' "$disk"
        done
    } >"$Z/$zone.toml"
}

# zone_state NAME
zone_state() {
    ringctl zone list | awk -v name="$1" '$1 == name { for (i = 2; i <= NF; i++)
        if ($i ~ /^(created|running|paused|stopped|crashed)$/) { print $i; exit } }'
}

zone_is() { [ "$(zone_state "$1")" = "$2" ]; }

# image_hash FILE: its MD5. What is compared is not hostile, and SHA-256 takes three times as many
# instructions.
image_hash() { md5sum <"$1" | cut -d ' ' -f 1; }

# clean IMAGE [stopped]: its ext4 has no error. A guest that was stopped did not unmount it: its journal is
# replayed first.
clean() {
    if [ "${2:-}" = stopped ]; then
        e2fsck -p "$1" >/tmp/e2fsck 2>&1
        [ $? -le 1 ] || { cat /tmp/e2fsck; fail "the journal of $1 cannot be replayed"; }
    fi
    e2fsck -fn "$1" >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck; fail "the file system in $1 is not clean"; }
}

# be BYTES NUMBER: the number's bytes, the first one the highest
be() {
    shift_by=$(($1 * 8 - 8))
    while [ $shift_by -ge 0 ]; do
        # In octal by arithmetic: a subshell for each byte takes longer than all the rest.
        byte=$((($2 >> shift_by) & 255))
        printf "\\$((byte >> 6))$((byte >> 3 & 7))$((byte & 7))"
        shift_by=$((shift_by - 8))
    done
}

# qcow2 FILE MIB [BACKING FORMAT]: an empty qcow2 image of version 3 with clusters of 64 KiB, up to 512 MiB,
# over that file
qcow2() {
    put() { dd of="$qcow2_file" bs=1 seek="$1" conv=notrunc 2>/dev/null; }
    qcow2_file=$1
    rm -f "$1"
    truncate -s 256k "$1"
    {
        printf 'QFI\373'
        be 4 3
        if [ -n "${3:-}" ]; then be 8 512; be 4 ${#3}; else be 8 0; be 4 0; fi
        be 4 16
        be 8 $(($2 << 20))
        # No encryption; one table of L1, in the fourth cluster; the table of reference counts in the second.
        be 4 0; be 4 1; be 8 $((3 << 16)); be 8 $((1 << 16)); be 4 1
        # No snapshots, no features; counts of 16 bits; the header's length.
        be 4 0; be 8 0; be 8 0; be 8 0; be 8 0; be 4 4; be 4 104
        if [ -n "${3:-}" ]; then be 4 $((0xe2792aca)); be 4 ${#4}; printf %s "$4"; fi
    } | put 0
    [ -z "${3:-}" ] || printf %s "$3" | put 512
    be 8 $((2 << 16)) | put $((1 << 16))
    { be 2 1; be 2 1; be 2 1; be 2 1; } | put $((2 << 16))
}

# files: the daemon's open descriptors, the minimum of five samples: the connection of a `ringctl` that has
# just ended is closed a moment later.
files() {
    for _ in 1 2 3 4 5; do
        for pid in $(pgrep -x ringd); do ls "/proc/$pid/fd"; done | wc -l
        sleep 0.2
    done | sort -n | head -n 1
}

# worker: the process that serves the zones
worker() { ringctl info --json | tr -d ' ,' | sed -n 's/^"ringd_pid"://p'; }

# The log of a daemon in the background.
LOG=/run/ringd/ringd.log

# first_requests SLOT...: how often a new daemon has completed a first request of these slots, by the daemon's
# log
first_requests() { grep -c "first request completed .*slot=[$(echo "$*" | tr -d ' ')] " $LOG; }

# milliseconds_of LINE: the time at the beginning of a line of the log, in milliseconds
milliseconds_of() { date -d "${1%% *}" +%s%3N; }

# qcow2_data FILE MIB: what a `qcow2` image without a backing file holds
qcow2_data() {
    table=$(od -An -v -tu1 -j 196608 -N 8 "$1" | awk '{ print (($2 * 256 + $3) * 256 + $4) * 65536 + $5 * 256 + $6 }')
    # Runs of adjacent clusters: the first (0: none) and their number.
    od -An -v -w8 -tu1 -j $((table * 65536)) -N $(($2 * 128)) "$1" | awk '
        { at = (($2 * 256 + $3) * 256 + $4) * 65536 + $5 * 256 + $6; if ($8 % 2) at = 0 }
        count && at == (first ? first + count : 0) { count++; next }
        { if (count) print first, count; first = at; count = 1 }
        END { print first, count }' >/tmp/runs
    while read -r first count; do
        if [ "$first" = 0 ]; then
            dd if=/dev/zero bs=64K count="$count" 2>/dev/null
        else
            dd if="$1" bs=64K skip="$first" count="$count" 2>/dev/null
        fi
    done </tmp/runs
}

# --- Scripts for guests, printed: /autorun is made of them ---

# verify_loop END EACH DISKS JOB...: fio writes and verifies all jobs on all disks at once, with another seed
# each time, until the disk END begins with "end"; EACH is executed after each run. A job is
# OFFSET:SIZE:BLOCKS:DEPTH, BLOCKS a size or a range of sizes.
verify_loop() {
    printf "end='%s' each='%s' disks='%s'\n" "$1" "$2" "$3"
    shift 3
    printf "jobs='%s'\n" "$*"
    cat <<'S'
echo "io: begins"
seed=$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')
runs=0
until dd if=/dev/$end bs=512 count=1 iflag=direct 2>/dev/null | grep -q end; do
    seed=$((seed + 1))
    set -- --direct=1 --ioengine=libaio --rw=randwrite --verify=crc32c --verify_fatal=1 --randseed=$seed
    for disk in $disks; do
        for job in $jobs; do
            size=${job#*:}
            blocks=${size#*:}
            blocks=${blocks%:*}
            case $blocks in *-*) blocks=--bsrange=$blocks ;; *) blocks=--bs=$blocks ;; esac
            set -- "$@" --name=$disk-${job%%:*} --filename=/dev/$disk --offset=${job%%:*} --size=${size%%:*} $blocks \
                --iodepth=${job##*:}
        done
    done
    fio "$@" >/tmp/fio.out 2>&1 || { echo "fio: failed with seed $seed"; cat /tmp/fio.out; break; }
    runs=$((runs + 1))
    eval "$each"
done
echo "fio: $runs runs verified, seeds up to $seed"
S
}

# verify_end DISKS: whether the guest saw errors, and the hashes of its disks
verify_end() {
    printf "disks='%s'\n" "$1"
    cat <<'S'
dmesg | grep -E 'I/O error|Buffer I/O|hung_task|blocked for more' && echo "guest saw errors"
sync
echo 3 >/proc/sys/vm/drop_caches
for disk in $disks; do echo "hash of $disk: $(md5sum </dev/$disk | cut -c1-32)"; done
echo "io: ends"
S
}

# guest_ends: powers the guest off
guest_ends() { printf 'sync\npoweroff\nsleep 100\n'; }

# --- Kills of the daemon ---

# kill_guest: starts guest1 under a supervised daemon, whose I/O goes on until `kill_guest_ends`: fio writes
# and verifies at depths 1, 32 and 256 on both engines, raw (vdb, vdc) and qcow2 (vdd, vde).
kill_guest() {
    {
        verify_loop vdf "" "vdb vdc vdd vde" 0:64k:512:1 1M:512k:4k:32 2M:3M:8k:256
        verify_end "vdb vdc vdd vde"
        guest_ends
    } >/tmp/autorun
    guest_disk $Z/root.img /tmp/autorun
    truncate -s 8M $Z/vdb.img $Z/vdc.img
    qcow2 $Z/vdd.img 8
    qcow2 $Z/vde.img 8
    truncate -s 4K $Z/vdf.img
    zone_file guest1 1 256M root.img vdb.img
    for disk in 'vdc.img raw threads' 'vdd.img qcow2 io_uring' 'vde.img qcow2 threads' 'vdf.img raw io_uring'; do
        set -- $disk
        printf '[[disk]]\npath = "%s"\nformat = "%s"\nengine = "%s"\n' "$1" "$2" "$3" >>$Z/guest1.toml
    done
    no_daemon || fail "a daemon runs already"
    ringd --daemonize --supervise || fail "ringd does not start"
    ringctl zone start $Z/guest1.toml || fail "zone start"
    says_within 200 '^io: begins'
    within 100 served 1 0
}

# kill_guest_ends: ends the guest's I/O and checks its results; the log may have lines that match $WARNINGS
kill_guest_ends() {
    printf 'end\n' | dd of=$Z/vdf.img conv=notrunc 2>/dev/null
    ringctl zone wait guest1 || fail "zone wait"
    ringctl zone console guest1 --dump | tr -d '\r' | sed -n '/^io: begins/,$p' >/tmp/text
    cat /tmp/text
    grep 'disk request failed' $LOG | head
    grep -q "fio: [1-9][0-9]* runs verified" /tmp/text || fail "fio"
    grep -qE "guest saw errors|fio: failed" /tmp/text && fail "the guest saw errors"
    for disk in vdb vdc; do
        is "hash of $disk" "$(sed -n "s/^hash of $disk: //p" /tmp/text)" "$(md5sum <$Z/$disk.img | cut -c1-32)"
    done
    for disk in vdd vde; do
        is "hash of $disk" "$(sed -n "s/^hash of $disk: //p" /tmp/text)" "$(qcow2_data $Z/$disk.img 8 | md5sum | cut -c1-32)"
    done
    clean $Z/root.img
    grep -E 'seccomp|WARN.*(cannot|refus)' $LOG | grep -vE "${WARNINGS:-^$}" && fail "the log complains"
    kernel_is_quiet
}

guest_says() { ringctl zone console guest1 --dump | tr -d '\r' | grep -q "$1"; }

# says_within SECONDS PATTERN [LINES [ZONE]]: waits until so many lines of the zone's console, 1 of guest1,
# match. The console is followed, also from one daemon to the next, instead of asked for again and again.
says_within() {
    rm -f /tmp/followed
    mkfifo /tmp/followed
    timeout "$1" ringctl zone console "${4:-guest1}" </dev/null >/tmp/followed 2>&1 &
    follower=$!
    matched=$(grep -c -m "${3:-1}" -- "$2" </tmp/followed)
    kill $follower 2>/dev/null
    wait $follower 2>/dev/null
    [ "$matched" -ge "${3:-1}" ] || fail "not within $1 s: ${3:-1} lines of ${4:-guest1} with '$2', but $matched"
}

# tell_guest LINE: types it on guest1's console. A guest that waits for a line, instead of reading a disk
# again and again, executes nothing meanwhile.
tell_guest() { printf '%s\r' "$1" | timeout 10 ringctl zone console guest1 >/dev/null 2>&1 & }

# served SLOTS NUMBER: first_requests of the slots is greater than NUMBER
served() { [ "$(first_requests "$1")" -gt "$2" ]; }

# pauses: one line for each kill in /tmp/kills (times of day, in ms) after which a disk had requests waiting:
# the kill's number, and how many ms after it the first and the last disk had completed one. A disk without
# waiting requests is left out: its first completion depends on the guest.
pauses() {
    awk '
        # The day may end in between.
        function since(kill) { passed = (now - kills[kill] + 86400000) % 86400000; return passed < 43200000 ? passed : -1 }
        FNR == NR { kills[++count] = $1; next }
        { split(substr($1, 12), at, ":"); now = ((at[1] * 60 + at[2]) * 60 + at[3]) * 1000 }
        /the daemon died/ { for (kill = count; kill > 0 && since(kill) < 0;) kill-- }
        kill && /first request completed .*found=[1-9]/ {
            if (!(kill in first)) first[kill] = int(since(kill))
            last[kill] = int(since(kill))
        }
        END { for (kill = 1; kill <= count; kill++) if (kill in first) print kill, first[kill], last[kill] }
    ' /tmp/kills $LOG
}

# middle COLUMN FILE: the median of numbers in lines
middle() { awk -v column="$1" '{ print $column }' "$2" | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

# column NUMBER FILE: its numbers, sorted
column() { awk -v column="$1" '{ print $column }' "$2" | sort -n | tr '\n' ' ' | cut -c1-900; }

# daemon_kills KILLS: kills the daemon of `kill_guest` KILLS times, half a second after all disks are served
# again, and prints how long they were not served after each.
daemon_kills() {
    kills=$1
    : >/tmp/kills
    : >/tmp/readies
    : >/tmp/starts
    for kill in $(seq "$kills"); do
        sleep 0.5
        before=$(first_requests 1234)
        pid=$(sed -n 's/.* ready pid=\([0-9]*\) .*/\1/p' $LOG | tail -1)
        killed=$(date +%s%3N)
        kill -KILL "$pid" || fail "no worker to kill"
        echo $((killed % 86400000)) >>/tmp/kills
        within 100 served 1234 "$before"
        echo $(($(milliseconds_of "$(grep ' ready pid=' $LOG | tail -1)") - killed)) >>/tmp/readies
        # The time to start a program of this size now: this machine may be emulated, and busy.
        start=$(date +%s%3N)
        ringd --version >/dev/null
        echo $(($(date +%s%3N) - start)) >>/tmp/starts
    done
    guest_says '^io: ends' && fail "the guest's I/O ended before the kills: no proof"
    zone_is guest1 running || fail "after the kills the zone is $(zone_state guest1)"
    for slot in 1 2 3 4; do
        at_least "daemons that served slot $slot" "$(first_requests $slot)" $((1 + kills / 20))
    done
    # After each kill the next daemon should have been kept ready; the first kills may come before one is.
    at_least "daemons that had been kept ready" "$(grep -c 'kept ready, takes over' $LOG)" $((kills / 2))
    grep 'kept ready, has ended' $LOG && fail "a daemon that was kept ready has ended"
    pauses >/tmp/pauses
    median=$(middle 2 /tmp/pauses)
    start=$(middle 1 /tmp/starts)
    echo "$kills kills, $(wc -l </tmp/pauses) of them with requests waiting; ms from kill"
    echo "to the first such request's completion: $(column 2 /tmp/pauses)"
    echo "to that of the last disk: $(column 3 /tmp/pauses)"
    echo "to the next daemon's being ready: $(column 1 /tmp/readies)"
    echo "median $median ms; starting a program takes $start ms"
    at_least "kills with requests waiting" "$(wc -l </tmp/pauses)" $(((kills + 3) / 4))
    # One second, or 12 times the start of a program on a slow machine.
    limit=$((12 * start > 1000 ? 12 * start : 1000))
    [ "$median" -le $limit ] || fail "the disks wait $median ms for the next daemon, expected up to $limit"
    # The host may stall for a while: one in twenty is allowed.
    late=$(awk -v limit=$((3 * limit)) '$2 > limit' /tmp/pauses | wc -l)
    [ "$late" -le $((kills / 20)) ] || fail "the disks waited over $((3 * limit)) ms for $late daemons, expected up to $((kills / 20))"
}

if [ "${1:-}" = clean ]; then
    if pgrep ringd >/dev/null; then
        for zone in $(ringctl zone list --json | tr ',{}' '\n\n\n' | sed -n 's/^ *"name" *: *"\(.*\)"/\1/p'); do
            timeout 10 ringctl zone stop "$zone"
        done
        pkill ringd
        sleep 0.2
        pkill -KILL ringd
    fi
    # How zones of this test ended: nothing to the next one's daemon.
    rm -f /run/ringd/zones/*.ended
    for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
        [ "$(cat "$cpu")" = 1 ] || echo 1 >"$cpu"
    done
    rm -rf "$Z"
fi
