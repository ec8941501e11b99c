#!/bin/bash
# What documents name must exist: repository paths in backquotes, functions beside a path, and targets of
# relative links with their headings.
#
#   tests/doc-paths.sh [FILE...]     without FILE: README.md, CHANGELOG.md, documents below docs/ and tools/
set -euo pipefail
cd "$(dirname "$0")/.."

# Paths in backquotes of a document: below a folder of the repository or of the document, or a file at the
# top. Not patterns with <kind>. A glob must match something. Fenced blocks are left out; lines are joined,
# for text in backquotes may go over their end.
paths() {
    sed '/^```/,/^```/d' "$1" | tr '\n' ' ' | grep -o '`[^`]*`' | tr -d '`' | sed 's/[ :#].*//' |
        grep -E '^((src|tests|tools|docs|platform|\.ci|\.cargo)/|(Cargo|rustfmt|rust-toolchain|\.clippy)\.toml|Makefile|linker\.ld)' |
        grep -v '[<{]' | sort -u || true
}

# Targets of relative links.
links() {
    sed '/^```/,/^```/d' "$1" | grep -o '](\([^)]*\))' | sed 's/^](//; s/)$//' | grep -v -E '^[a-z]+://' | sort -u || true
}

# Headings of a document as anchors of links.
anchors() {
    sed '/^```/,/^```/d' "$1" | grep '^#' | sed -E 's/^#+ +//' | tr '[:upper:]' '[:lower:]' |
        sed -E 's/[^a-z0-9 _-]//g; s/ /-/g'
}

# Files and what is said to be in them, "FILE... NAME...": `file.rs` (`name`), and rows of tables with the
# columns "function" and "file".
definitions() {
    sed '/^```/,/^```/d' "$1" | tr '\n' ' ' | grep -oE '`[a-z][^` ]*\.rs` \(`[A-Za-z_:]+`' | tr -d '`(' || true
    awk -F'|' '/^\|/ && $3 ~ /^ *function *$/ && $4 ~ /^ *file *$/ { table = 1 } !/^\|/ { table = 0 }
        table && /`/ { row = $4 " " $3; gsub(/[`,]/, "", row); print row }' "$1"
}

# Prints what a document names and does not exist.
check() {
    local file=$1 name target anchor words files
    while read -r name; do
        compgen -G "${name%/}" >/dev/null || compgen -G "$(dirname "$file")/${name%/}" >/dev/null ||
            echo "$file: there is no $name"
    done < <(paths "$file")
    while read -ra words; do
        files=()
        for name in "${words[@]}"; do
            if [[ $name == */* ]]; then
                files+=("$name")
            elif ! grep -qsE "(fn|struct|trait|const) ${name##*::}\b" "${files[@]}"; then
                echo "$file: ${files[*]} has no ${name##*::}"
            fi
        done
    done < <(definitions "$file")
    while read -r name; do
        target=${name%%#*}
        anchor=$(sed -n 's/^[^#]*#//p' <<<"$name")
        target=${target:+$(dirname "$file")/$target}
        target=${target:-$file}
        if [[ ! -e $target ]]; then
            echo "$file: the link $name leads nowhere"
        elif [[ $anchor ]] && ! anchors "$target" | grep -qxF -- "$anchor"; then
            echo "$file: $target has no heading $anchor"
        fi
    done < <(links "$file")
}

# Negative control: a document that names what is not there.
control=$(mktemp)
trap 'rm -f "$control"' EXIT
printf '# A heading\n`a b\nc` `src/no/such.rs` `src/lib.rs` `Makefile` [a](no-such.md) [b](#no-such) [c](#a-heading)\n' >"$control"
printf '`src/lib.rs` (`no_such`)\n\n| a | function | file |\n|---|---|---|\n| b | `None::such` | `src/lib.rs` |\n' >>"$control"
if [[ $(check "$control" | wc -l) != 5 ]]; then
    echo "a document that names a path, a file, a heading and functions that are not there is not noticed:"
    check "$control"
    exit 1
fi

if [[ $# -gt 0 ]]; then
    files=("$@")
else
    mapfile -t files < <(git ls-files 'README.md' 'CHANGELOG.md' 'docs/*.md' 'tools/*.md')
fi
missing=$(for file in "${files[@]}"; do check "$file"; done)
if [[ $missing ]]; then
    echo "$missing"
    exit 1
fi
echo "${#files[@]} documents name only what is there"
