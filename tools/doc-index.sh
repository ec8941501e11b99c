#!/bin/bash
# Writes index.html into the directory of `cargo doc`'s output: all packages, with their descriptions.
# Usage: tools/doc-index.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
field() { sed -n "s/^$2 = \"\(.*\)\"$/\1/p" "$1" | head -n 1; }
{
    echo '<!DOCTYPE html><meta charset="utf-8"><title>ringvisor</title><h1>ringvisor</h1><dl>'
    for manifest in Cargo.toml tools/*/Cargo.toml; do
        name=$(field "$manifest" name)
        page=${name//-/_}/index.html
        [[ -e $1/$page ]] || continue
        echo "<dt><a href=\"$page\">$name</a> ($(dirname "$manifest"))<dd>$(field "$manifest" description)"
    done
    echo '</dl>'
} >"$1/index.html"
echo "$1/index.html"
