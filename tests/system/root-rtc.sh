#!/bin/sh
# The PL031: its time advances, and its alarm raises an interrupt.
#@ on: a57
#@ all: generic
. ./lib.sh
rtc=/sys/class/rtc/rtc0
[ -e $rtc ] || fail "no real-time clock"
first=$(cat $rtc/since_epoch)
at_least "seconds since 1970" "$first" 1700000000
sleep 2
passed=$(($(cat $rtc/since_epoch) - first))
at_least "seconds passed" $passed 1
at_least "seconds left over" $((10 - passed)) 0
before=$(irq_count rtc)
echo +2 >$rtc/wakealarm || fail "alarm cannot be set"
alarm_came() { [ "$(irq_count rtc)" -gt "$before" ]; }
within 10 alarm_came
