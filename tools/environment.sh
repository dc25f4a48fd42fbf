#!/bin/sh
# Make the virtual environment in which the book is built and tested.
# usage: [PYTHON=python3.12] sh tools/environment.sh FOLDER
set -eu
venv=$1

fail() { printf '\nvae_notes: %s\n' "$*" >&2; exit 1; }
new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer."
else
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        if new_enough "$candidate"; then PYTHON=$candidate; break; fi
    done
    [ -n "${PYTHON:-}" ] || fail "no Python 3.11 or newer was found.
Install one, or name it: make test PYTHON=/path/to/python3.12"
fi

echo "Setting up $venv with $("$PYTHON" --version); the first time takes a few minutes."
"$PYTHON" -m venv --clear "$venv" || fail "could not make a virtual environment.
On Debian and Ubuntu: apt install python3-venv"

# torch first and alone, so that nothing else can pull in another build of it.
pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
for requirement in torch "-e .[dev]"; do
    $pip install --constraint constraints.txt $requirement || fail "pip could not install '$requirement'.
The lines above name what is missing. If a pinned version has no wheel for this
Python or system, change its line in constraints.txt; if there is no network,
put the wheels in a folder and set PIP_FIND_LINKS=that_folder PIP_NO_INDEX=1."
done
