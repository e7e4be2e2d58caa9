#!/usr/bin/env bash
# Makes the virtual environment hold exactly what requirements.lock says, and this checkout.
# Does nothing when it already does; a half-made environment, or one of a moved checkout, is made anew.
# Called by `make setup` with PYTHON (3.11 or newer, empty: none found) and VENV.
set -euo pipefail

die() { echo "geminid: $*" >&2; exit 1; }

[ -n "${PYTHON:-}" ] || die "no Python 3.11 or newer on the path; install one, or: make PYTHON=/path/to/python setup"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || die "$PYTHON is not Python 3.11 or newer"

python="$VENV/bin/python"
log="$VENV/setup.log"
digest() { "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }
stamped() { [ -f "$VENV/$1" ] && [ "$(cat "$VENV/$1")" = "$2" ]; }

# two makes at once must not build the same environment
if command -v flock >/dev/null; then
    exec 9<"${BASH_SOURCE[0]}"
    flock 9
fi

run() { # quiet, but a failure shows its last lines
    "$@" >>"$log" 2>&1 9<&- || {
        tail -n 15 "$log" >&2
        die "setup failed (all of it: $log); make setup tries again"
    }
}
pip() { run "$python" -m pip --disable-pip-version-check --no-input install "$@"; }

if ! stamped .made "$PWD" || ! "$python" -c '' 2>/dev/null; then
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$PYTHON cannot make virtual environments (no venv or ensurepip; on Debian and Ubuntu: apt install python3-venv)"
    rm -rf "$VENV"
    mkdir -p "$VENV"
    run "$PYTHON" -m venv "$VENV"
fi

lock=$(digest requirements.lock)
if ! stamped .locked "$lock"; then
    echo "geminid: installing the locked packages into $VENV (about a minute)"
    : >"$log"
    pip --require-hashes -r requirements.lock
    echo "$PWD" >"$VENV/.made"
    echo "$lock" >"$VENV/.locked"
fi

project=$(digest pyproject.toml)
if ! stamped .installed "$project"; then
    pip --no-deps --no-build-isolation -e .
    echo "$project" >"$VENV/.installed"
fi
