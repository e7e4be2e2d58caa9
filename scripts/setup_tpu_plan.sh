#!/usr/bin/env bash
# Makes the small environment in which `geminid plan compile` runs the TPU compiler: what the main environment has, and
# libtpu of the version that its jax names. Apart, because with libtpu installed every start of JAX looks for a TPU.
# libtpu is Google's, under its own licence (about 700 MB on disk). Called by `make setup-tpu-plan` with VENV.
set -euo pipefail

die() { echo "geminid: $*" >&2; exit 1; }

python="$PWD/$VENV/bin/python"
target="$PWD/$VENV-tpu-plan"
wanted=$("$python" -c '
import re
from importlib.metadata import requires
for line in requires("jax"):
    found = re.match(r"(libtpu==[\w.*]+); *extra == .tpu.", line)
    if found:
        print(found[1])') || die "no jax in $VENV; run: make setup"
[ -n "$wanted" ] || die "this jax names no libtpu; $VENV holds another jax than requirements.lock"
[ -f "$target/.made" ] && [ "$(cat "$target/.made")" = "$PWD $wanted" ] && exit 0

rm -rf "$target"
"$python" -m venv --without-pip "$target"
site=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/geminid.pth"
echo "$PWD" >>"$site/geminid.pth"
echo "geminid: installing $wanted into $VENV-tpu-plan"
"$python" -m pip --disable-pip-version-check --no-input --quiet --python "$target/bin/python" install --no-deps "$wanted" ||
    die "libtpu could not be installed; it exists for Linux on x86-64 alone"
echo "$PWD $wanted" >"$target/.made"
