#!/bin/bash
# `make exec`: the script's status and output, FILES, paths with spaces and commas, two machines at a time.
#@ timeout: 300
. tests/host/lib.sh
files="$work/my, files"
mkdir -p "$files/sub"
echo "contents" >"$files/sub/a file"
script="$work/a script.sh"
cat >"$script" <<'S'
echo "files: $(cat '/mnt/files/sub/a file')"
echo "names: $(ls -A /mnt/files)."
echo "cpus: $(nproc)"
echo "no end of line" | tr -d '\n'
exit 42
S
"$HARNESS" exec --script "$script" --files "$files" --smp 2 --timeout 250 >"$work/one" 2>&1 </dev/null &
one=$!
SCRIPT=$script FILES=$files SMP=1 TIMEOUT=250 "$HARNESS" exec >"$work/two" 2>&1 </dev/null
is "status of the second" $? 42
wait $one
is "status of the first" $? 42
has "$work/one" "files: contents"
has "$work/one" "names: sub."
has "$work/one" "cpus: 2"
has "$work/two" "cpus: 1"
has "$work/two" "no end of line"
grep -q '^@' "$work/one" && fail "a mark is shown"
exit 0
