#!/bin/sh
# As zone-daemon, with 200 kills (torture c5).
#@ needs: el2
#@ tier: all
#@ boot: own
#@ timeout: 2400
. ./lib.sh
kill_guest
daemon_kills 200
kill_guest_ends
