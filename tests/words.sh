#!/bin/bash
# Words that docs/glossary.md has replaced: tests/words.txt says which, and what to write instead.
set -euo pipefail
cd "$(dirname "$0")/.."
table=tests/words.txt
# Where the old words stand on purpose: their own tables, and what tells how things were.
except='^(docs/glossary\.md|docs/notes/|docs/decisions/|CHANGELOG\.md|tests/words\.|tools/fuzz/corpus/)'

mapfile -d '' files < <(find src tests tools docs platform README.md CHANGELOG.md Makefile .ci -name target -prune -o \
    \( -name '*.rs' -o -name '*.sh' -o -name '*.py' -o -name '*.gdb' -o -name '*.md' -o -name '*.toml' -o -name '*.txt' \
    -o -name 'Makefile' -o -path '.ci/run' \) -type f -print0 | grep -zvE "$except")

status=0
rows=0
while IFS= read -r row; do
    [[ -z $row || $row == \#* ]] && continue
    pattern=${row%% | *}
    row=${row#* | }
    instead=${row%% | *}
    example=${row#* | }
    # Control: each pattern finds its own example, else it would always pass.
    if ! grep -qE -- "$pattern" <<<"$example"; then
        echo "$table: $pattern does not match its example: $example"
        status=1
    fi
    rows=$((rows + 1))
    if grep -nE -- "$pattern" "${files[@]}"; then
        echo "    ^ instead: $instead (docs/glossary.md)"
        status=1
    fi
done <"$table"
if ((rows == 0)); then
    echo "$table: no row was understood"
    status=1
fi
exit $status
