#!/bin/bash
# Makes the committed corpora anew from themselves and from what `run.sh` has found: of each target a set of
# short inputs that reaches everything, thinned out to so many.
# Usage: tools/fuzz/shrink.sh [inputs per target]
set -euo pipefail
cd "$(dirname "$0")"
most=${1:-50}
host=$(rustc -vV | sed -n 's/^host: //p')
export ASAN_OPTIONS=detect_leaks=0
for folder in corpus/*; do
    target=${folder#corpus/}
    all=$(mktemp -d)
    "target/$host/release/$target" -set_cover_merge=1 -max_len=512 "$all" "$folder" "target/corpus/$target" 2>"$all.log" ||
        { tail "$all.log"; exit 1; }
    # What has a name was written by hand.
    find "$folder" -type f -name 'found-*' -delete
    # Evenly from the shortest to the longest.
    find "$all" -type f -printf '%s %f\n' | sort -n | awk -v most="$most" '
        { name[NR] = $2 } END { step = NR > most ? NR / most : 1; for (i = 1; int(i) <= NR; i += step) print name[int(i)] }' |
        while read -r name; do cp "$all/$name" "$folder/found-${name:0:12}"; done
    echo "$target: $(find "$folder" -type f | wc -l) inputs"
    rm -rf "$all" "$all.log"
done
