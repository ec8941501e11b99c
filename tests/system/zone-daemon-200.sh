#!/bin/sh
# As zone-daemon, with 200 kills.
#@ needs: el2
#@ tier: all
#@ boot: own
#@ timeout: 2000
. ./lib.sh
daemon_kills 200 600
