#!/bin/sh
# Prints a Python of 3.11 to 3.13 that really runs: $PYTHON if given, else .venv's, else the first on PATH.
# A name on PATH is not enough: version managers put one there for versions that are not active.
# 3.13 comes last: there a part of what Triton needs has to be compiled.
quick() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }
works() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }
if [ -n "$PYTHON" ]; then
    if works "$PYTHON"; then command -v "$PYTHON"; exit; fi
    echo "PYTHON=$PYTHON does not run, or is not Python 3.11, 3.12 or 3.13." >&2
    exit 1
fi
if works .venv/bin/python; then echo .venv/bin/python; exit; fi
for candidate in python3 python3.12 python3.11; do
    if quick "$candidate"; then command -v "$candidate"; exit; fi
done
for candidate in python3 python3.13; do
    if works "$candidate"; then command -v "$candidate"; exit; fi
done
echo "promptbus needs Python 3.11, 3.12 or 3.13, and none of them runs here. On Debian or Ubuntu:" >&2
echo "    sudo apt-get install python3 python3-venv" >&2
echo "Elsewhere: install one, then make setup PYTHON=/path/to/python3" >&2
exit 1
