#!/usr/bin/env bash
# Makes the environments of those that benchmarks/train_step.py measures beside us: torch and transformers in
# .venv-peers, Levanter in .venv-levanter. Apart from ours and from each other, for each pins what it needs.
# On Linux torch's wheel brings CUDA along (several GB); PIP_INDEX_URL may name an index with wheels for the CPU alone.
# Called by `make setup-peers` with VENV.
set -euo pipefail

die() { echo "geminid: $*" >&2; exit 1; }

make_environment() { # folder, packages...
    local folder=$PWD/$1
    shift
    [ -f "$folder/.made" ] && [ "$(cat "$folder/.made")" = "$PWD $*" ] && return
    rm -rf "$folder"
    "$VENV/bin/python" -m venv "$folder"
    echo "geminid: installing $* into ${folder##*/}"
    "$folder/bin/python" -m pip --disable-pip-version-check --no-input --quiet install "$@" || die "$* could not be installed"
    echo "$PWD $*" >"$folder/.made"
}

make_environment "$VENV-peers" torch==2.13.0 transformers==5.24.0
# gitpython and the others: imported by Levanter, but not named among what it needs
make_environment "$VENV-levanter" marin-levanter==0.2.20.dev202606180959 gitpython
