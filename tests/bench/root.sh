# What root runs for `make bench`: the guests of $CONFIGS one after the other, on one image in tmpfs. The
# harness puts the settings in front of this text: CONFIGS, CMDLINE (of the guests), MODE, CPUS, MEMORY (in
# MiB), LIMIT (seconds for a guest), SIZES, STORM and STATS (yes or no). Lines for the harness begin with
# "bench: "; all others are only kept in the log.
files=/mnt/files
tools=/srv/zones/rootfs.img
image=/dev/shm/bench.img
qemu_dir=/mnt/qemu
cr=$(printf '\r')
say() { printf 'bench: %s\n' "$*"; }

# uptime: seconds since boot, without starting a program
uptime() {
    read -r now _ </proc/uptime
    echo "$now"
}

# Passes a guest's console on, with root's time at its first line, and with EL2's counters at its marks.
follow() {
    while IFS= read -r line; do
        line=${line%"$cr"}
        case $line in
        *"bench: first")
            read -r now _ </proc/uptime
            say "first $now"
            ;;
        *"bench: count-"*)
            say "${line#*bench: }"
            [ "$STATS" = yes ] && stats
            ;;
        *"bench: "*) say "${line#*bench: }" ;;
        *) printf '%s\n' "$line" ;;
        esac
    done
}

# EL2's counters, as one line of JSON.
stats() {
    if text=$(timeout 60 ringctl stats --json 2>&1); then
        say "stats $(printf '%s' "$text" | tr -d '\n\r')"
    else
        say "note ringctl stats: $(printf '%s' "$text" | tr '\n\r' '  ')"
    fi
}

# timed COMMAND...: runs a guest with its console followed, for $LIMIT seconds at most: not by `timeout`, a
# program more to start before its first line.
timed() {
    rm -f /tmp/late
    (
        sleep "$LIMIT" || exit
        : >/tmp/late
        kill "$(cat /tmp/guest.pid)"
    ) &
    limit=$!
    # That has started, too.
    sleep 0.2
    read -r now _ </proc/uptime
    say "start $now"
    {
        "$@" 2>&1 </dev/null &
        echo $! >/tmp/guest.pid
        wait $!
        status=$?
        [ ! -e /tmp/late ] || status=124
        printf '\nbench: end %s\n' $status
    } | follow
    pkill -P $limit 2>/dev/null
    kill $limit 2>/dev/null
    wait $limit 2>/dev/null
}

ringvisor_guest() { # ENGINE
    cat >/tmp/bench.toml <<T
name = "bench"
cpus = $CPUS
memory = "${MEMORY}M"
kernel = "/srv/zones/Image"
initrd = "$files/initrd"
cmdline = "$CMDLINE"
on_reboot = "stop"
on_crash = "stop"
[[disk]]
path = "$image"
serial = "data"
engine = "$1"
[[disk]]
path = "$tools"
readonly = true
serial = "tools"
T
    pgrep -x ringd >/dev/null || ringd --daemonize || {
        say "note ringd does not start: $(tail -n 3 /run/ringd/ringd.log | tr '\n' ' ')"
        return
    }
    timed ringctl zone run /tmp/bench.toml
    # Still there only when the time was up.
    ringctl zone stop bench >/dev/null 2>&1
}

kvm_guest() { # AIO CACHE
    export LD_LIBRARY_PATH=$qemu_dir/usr/lib/aarch64-linux-gnu
    # Guest memory from huge pages, as ringvisor's.
    timed "$qemu_dir/usr/bin/qemu-system-aarch64" -no-user-config -nodefaults -display none -serial stdio \
        -machine virt,gic-version=3,memory-backend=ram -accel kvm -cpu host -smp "$CPUS" -m "$MEMORY" \
        -object "memory-backend-file,id=ram,size=${MEMORY}M,mem-path=/dev/hugepages,share=on" \
        -kernel /srv/zones/Image -initrd "$files/initrd" -append "$CMDLINE" \
        -drive "if=none,id=data,format=raw,file=$image,aio=$1,cache=$2" \
        -device virtio-blk-device,drive=data,serial=data \
        -drive "if=none,id=tools,format=raw,file=$tools,readonly=on" \
        -device virtio-blk-device,drive=tools,serial=tools
    unset LD_LIBRARY_PATH
}

loop_device() {
    device=$(losetup -f --show "$image") || { say "note losetup failed"; return; }
    say "start $(uptime)"
    cp "$files/bench.conf" "$files/jobs.sh" /tmp/
    # As many CPUs as a guest has; the loop driver's own threads run where they like, as ringd and QEMU do.
    timeout "$LIMIT" taskset -c "0-$((CPUS - 1))" sh /tmp/jobs.sh "$device"
    say "end $?"
    losetup -d "$device"
}

# Sizes at EL2 and of the daemon, without and with zones of one CPU and 64 MiB that do nothing.
sizes() {
    ringd --daemonize || return
    size() { # WHEN
        say "size $1 $(ringctl info --json | tr -d '\n\r')"
        # Of its processes together.
        say "rss $1 $(for pid in $(pidof ringd); do cat "/proc/$pid/status"; done |
            awk '/^VmRSS/ { rss += $2 } /^RssAnon/ { anon += $2 } END { print rss, anon }')"
    }
    size 0
    for zone in 1 2; do
        ringctl zone start --name "size$zone" --cpus 1 --memory 64M --kernel "$files/idle.bin" >/dev/null 2>&1 ||
            say "note sizes: zone $zone does not start"
        size "$zone"
    done
    ringctl zone stop size1
    ringctl zone stop size2
}

# Four vCPUs that keep their zone's GIC busy, while root raises interrupts in it by the console's input. They
# execute nothing at addresses that EL2 has, too: instructions are told apart by their address.
storm() {
    ringd --daemonize || return
    ringctl zone start --name storm --cpus 4 --memory 64M --kernel "$files/storm.bin" --load 0x41000000 >/dev/null 2>&1 ||
        { say "note the storm does not start"; return; }
    sleep 0.2
    say "storm-begin"
    for _ in 1 2 3 4 5 6 7 8; do
        echo storm | timeout 0.1 ringctl zone console storm >/dev/null 2>&1
    done
    say "storm-end"
    ringctl zone stop storm
}

say "note root: $(uname -rv), $(nproc) CPUs, $(awk '/^MemTotal/ { print $2 }' /proc/meminfo) KiB"
[ "$SIZES" = yes ] && sizes
[ "$STORM" = yes ] && storm
[ -n "$CONFIGS" ] || exit 0
dd if=/dev/zero of=$image bs=1M count=256 2>/dev/null || say "note no room for the image: $(df /dev/shm | tail -n 1)"
# From here on in root's page cache, as plain QEMU's files are in the host's.
cat "$tools" /srv/zones/Image "$files/initrd" >/dev/null
for config in $CONFIGS; do
    say "config $config $(cat /proc/loadavg)"
    case $config in
    ours-*) ringvisor_guest "${config#ours-}" ;;
    kvm-*)
        if ! mountpoint -q $qemu_dir; then
            mkdir -p $qemu_dir
            device=$(findfs LABEL=ringvisor-qemu) && mount -t ext4 -o ro "$device" $qemu_dir ||
                say "note the disk with QEMU cannot be mounted"
            cat $qemu_dir/usr/bin/qemu-system-aarch64 >/dev/null
        fi
        [ -c /dev/kvm ] || say "note root has no /dev/kvm"
        how=${config#kvm-}
        kvm_guest "${how%-*}" "${how#*-}"
        ;;
    loop) loop_device ;;
    *) say "note unknown configuration $config" ;;
    esac
done
exit 0
