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

# within SECONDS COMMAND...: repeats the command until it succeeds
within() {
    limit=$1
    shift
    end=$(($(date +%s) + limit))
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || fail "not within $limit s: $*"
        sleep 0.2
    done
}

# irq_count PATTERN [CPU]: how often the interrupts matching PATTERN in /proc/interrupts came, on all CPUs or one
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

# Asks the harness to type a line on root's console. Each text works once in a test.
type_line() {
    . /run/ringvisor/conf
    for _ in 1 2 3; do
        printf '\n%s test type %s %s\n' "$NONCE" "$TEST" "$*" >/dev/console
        sleep 0.03
    done
}

# No complaint of the kernel so far.
kernel_is_quiet() {
    dmesg | grep -E 'BUG:|WARNING:|Call trace:|rcu_.*stall|soft lockup|Oops|unexpected IRQ|nobody cared' &&
        fail "the kernel complained"
    return 0
}

# --- Zones ---

# On root's disk: a zone's disks do not fit in memory.
Z=/srv/test

# Starts the daemon if it does not run.
daemon() {
    pidof ringd >/dev/null || ringd --daemonize || { cat /run/ringd/ringd.log; fail "ringd does not start"; }
}

# guest_disk FILE [AUTORUN]: a fresh root disk for a guest, with the script AUTORUN (a file) to run at its start
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
        echo "cmdline = \"console=ttyAMA0 root=/dev/vda rw quiet\""
        shift 3
        for disk in "$@"; do
            printf '[[disk]]\npath = "%s"\n' "$disk"
        done
    } >"$Z/$name.toml"
}

# zone_state NAME
zone_state() {
    ringctl zone list | awk -v name="$1" '$1 == name { for (i = 2; i <= NF; i++)
        if ($i ~ /^(created|running|paused|stopped|crashed)$/) { print $i; exit } }'
}

zone_is() { [ "$(zone_state "$1")" = "$2" ]; }

if [ "${1:-}" = clean ]; then
    if pidof ringd >/dev/null; then
        for zone in $(ringctl zone list --json | tr ',{}' '\n\n\n' | sed -n 's/^ *"name" *: *"\(.*\)"/\1/p'); do
            timeout 10 ringctl zone stop "$zone"
        done
        pkill ringd
        sleep 0.2
        pkill -KILL ringd
    fi
    for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
        [ "$(cat "$cpu")" = 1 ] || echo 1 >"$cpu"
    done
    rm -rf "$Z"
fi
