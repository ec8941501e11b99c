#!/bin/sh
# The PL011: what is typed on root's console arrives, and by interrupt.
#@ on: a57
#@ all: generic max
. ./lib.sh
before=$(irq_count 'uart-pl011|ttyAMA0')
type_line "one, two: three"
read -r line </dev/console || fail "nothing was read"
is "line" "$line" "one, two: three"
at_least "interrupts" $(($(irq_count 'uart-pl011|ttyAMA0') - before)) 1
