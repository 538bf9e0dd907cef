#!/usr/bin/env bash
# Make the virtual environment in $1: this package, editable, with what development needs.
set -euo pipefail
venv=$1
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

# uv installs the same packages ten times faster; where it cannot be had, pip does the work.
if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv 2>/dev/null &&
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --editable '.[dev]'; then
    exit 0
fi
"$venv/bin/python" -m pip install --disable-pip-version-check --editable '.[dev]'
