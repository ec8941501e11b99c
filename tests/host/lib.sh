# What the tests on the host share. $HARNESS is the harness program, $PROJECT the project's directory.
set -uo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAIL: $*"
    exit 1
}

# is WHAT ACTUAL EXPECTED
is() {
    [[ $2 == "$3" ]] || fail "$1 is '$2', expected '$3'"
}

# has FILE TEXT
has() {
    grep -qF -- "$2" "$1" || { cat "$1"; fail "no '$2' in the output"; }
}
