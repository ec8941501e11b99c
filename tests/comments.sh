#!/bin/bash
# Comments and docstrings end at column 110, as code does: rustfmt leaves them as they are.
set -euo pipefail
cd "$(dirname "$0")/.."

# Prints FILE:LINE of each comment that is longer. A table's row and an address cannot be wrapped.
long() {
    perl -CSD -ne '
        chomp;
        my $mark = $ARGV =~ /\.rs$/ ? qr{//} : qr{//|#};
        print "$ARGV:$.: ${\length} characters\n"
            if length > 110 && /^\s*$mark/ && !m{^\s*(//[/!]|#) ?\|} && !m{://[^ ]*$};
        close ARGV if eof;' "$@"
}

# Control: without it, a pattern that matches nothing would always pass.
control=$(mktemp)
trap 'rm -f "$control"' EXIT
printf '    // %0110d\n# %0108d\n/// %0107d\n' 0 0 0 >"$control"
if [[ $(long "$control" | wc -l) != 2 ]]; then
    echo "the check does not see the comments that are too long in its own control"
    exit 1
fi

mapfile -d '' files < <(find src tests tools .ci \( -name target -o -name corpus \) -prune -o \
    \( -name '*.rs' -o -name '*.sh' -o -name '*.py' -o -path '.ci/run' -o -path 'tools/exec' \) -type f -print0)
found=$(long "${files[@]}")
if [[ $found ]]; then
    echo "$found"
    echo "$(wc -l <<<"$found") comments are longer than 110 characters"
    exit 1
fi
