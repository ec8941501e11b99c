#!/bin/sh
# The daemon is killed five times, soon after each start, in the middle of a guest's I/O, and its supervisor
# starts it again: the guest sees no error and reads what it wrote, on both engines, on raw and qcow2, at
# depths from 1 to 256 (torture c5, e1).
#@ needs: el2
#@ boot: disks
#@ timeout: 400
. ./lib.sh
kill_guest
daemon_kills 5
kill_guest_ends
