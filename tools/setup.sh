#!/usr/bin/env bash
# Make the virtual environment in $1: this package, editable, with what $2 asks for: `light` has all that the demo needs,
# `full` what development needs, torch included. Going from light to full adds to the same environment.
set -euo pipefail
venv=$1
case ${2:-full} in
    light) extra=all ;;
    full) extra=dev ;;
    *) echo "tools/setup.sh VENV [light|full], not '$2'" >&2; exit 2 ;;
esac
python=${PYTHON:-}
[ -n "$python" ] || { echo "stepladder needs Python 3.11 or newer; none was found on PATH" >&2; exit 1; }

if [ ! -x "$venv/bin/python" ]; then
    # Debian splits venv from python3; virtualenv from PyPI does the same job there.
    "$python" -m venv "$venv" 2>/dev/null || {
        rm -rf "$venv"
        "$python" -m pip install --quiet --user --break-system-packages virtualenv
        "$python" -m virtualenv --quiet "$venv"
    }
fi
pip() { "$venv/bin/python" -m pip "$@" --disable-pip-version-check; }

# Where pip is told of wheels on this machine (PIP_FIND_LINKS) or of another index (PIP_EXTRA_INDEX_URL), a build of
# torch without CUDA is taken from there; uv looks at neither, and would fetch gigabytes. What is installed uv keeps.
if [ "$extra" = dev ] && ! "$venv/bin/python" -c 'from importlib.metadata import version; version("torch")' 2>/dev/null
then
    pip install --quiet --no-deps 'torch==2.13.0'
fi

# uv installs the same packages ten times faster; where it cannot be had, pip does the work.
if pip install --quiet uv 2>/dev/null &&
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --editable ".[$extra]"; then
    exit 0
fi
pip install --editable ".[$extra]"
