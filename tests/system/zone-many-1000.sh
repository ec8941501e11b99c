#!/bin/sh
# As zone-many, 1000 times.
#@ needs: el2
#@ tier: all
#@ timeout: 7200
ROUNDS=1000 exec sh ./zone-many.sh
