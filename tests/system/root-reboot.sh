#!/bin/sh
# Root restarts the machine and comes back with all its CPUs. In `make test` el2-log does so.
#@ on: a57
#@ all: generic max
#@ tier: all
#@ boot: own
#@ timeout: 250
. ./lib.sh
cpus=$(ls -d /proc/device-tree/cpus/cpu@* | wc -l)
is "number of CPUs" "$(nproc)" "$cpus"
if [ -e /var/lib/ringvisor/second ]; then
    kernel_is_quiet
    exit 0
fi
touch /var/lib/ringvisor/second /var/lib/ringvisor/expect-reboot
sync
reboot -f
sleep 60
fail "the machine did not restart"
