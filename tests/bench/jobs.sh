#!/bin/sh
# jobs.sh DEVICE: runs the fio jobs of bench.conf on DEVICE and prints one line per result. The same file runs
# in guests and, for the loop device, in root.
#
# bench.conf: MODE   fio: for RUNTIME seconds each, after RAMP seconds that do not count;
#                    count: numbers of requests, as COUNTS lists them, between marks for the harness
#             JOBS   words NAME:RW:SIZE:DEPTH:PROCESSES
. "${0%/*}/bench.conf"
device=$1
export PATH=/usr/local/bin:/usr/bin:/bin
say() { printf 'bench: %s\n' "$*"; }

# run LIMIT OPTION...: fio's one line of results, in $line; its status, in $status
run() {
    limit=$1
    shift
    timeout "$limit" fio --name="$name" --filename="$device" --rw="$rw" --bs="$size" --iodepth="$depth" \
        --numjobs="$processes" --group_reporting --direct=1 --ioengine=libaio --norandommap --randrepeat=1 \
        --minimal "$@" >/tmp/fio.out 2>/tmp/fio.err
    status=$?
    line=$(grep '^3;' /tmp/fio.out | tail -n 1)
    [ "$status" = 0 ] || say "note $name: fio ended with status $status: $(tail -n 2 /tmp/fio.err | tr '\n' ' ')"
}

for job in $JOBS; do
    old=$IFS
    IFS=:
    # shellcheck disable=SC2086 # the fields are meant to be split
    set -- $job
    IFS=$old
    name=$1 rw=$2 size=$3 depth=$4 processes=$5
    case $MODE in
    fio)
        say "begin $name"
        run $((RUNTIME + RAMP + 60)) --time_based --runtime="$RUNTIME" --ramp_time="$RAMP"
        say "job $name $status $line"
        ;;
    count)
        # Once before, so that programs are in memory and QEMU has translated them.
        run "$LIMIT" --number_ios=50
        for count in $COUNTS; do
            say "count-begin $name $count"
            sleep 2
            run "$LIMIT" --number_ios="$count"
            say "count-end $name $count $status $line"
            sleep 2
        done
        ;;
    esac
done
say "done"
