#!/bin/sh
# Build the wheel, install it into an empty environment with the newest
# release of everything it requires but torch, and use it from another folder.
# usage: sh tools/try_wheel.sh PYTHON
set -eu
root=$(pwd)
python=$root/$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --wheel --outdir "$work" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip --disable-pip-version-check --quiet"
$pip install "$(grep -i '^torch==' constraints.txt)"
$pip install "$work"/vae_notes-*.whl
cd "$work"
"$work/venv/bin/python" "$root/tests/smoke.py"
