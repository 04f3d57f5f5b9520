#!/usr/bin/env bash
# Makes .venv ready: Python packages as pinned in requirements.lock, and this project. Does nothing when it is ready.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ready=.venv/ready-$(cat requirements.lock pyproject.toml scripts/setup.sh | sha256sum | cut -c1-16)
if [ -f "$ready" ] && .venv/bin/python -c "import rollout, sys; sys.exit(not rollout.__file__.startswith('$PWD/'))" 2>/dev/null; then
    exit 0
fi

for python in "${PYTHON:-python3.11}" python3.11 python3 python3.12 python3.13; do
    if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        break
    fi
    python=
done
if [ -z "$python" ]; then
    echo "setup: needs Python 3.11 or later (set PYTHON to one)" >&2
    exit 2
fi

echo "setup: installing into .venv (once, some minutes) ..." >&2
rm -f .venv/ready-*
"$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check -qq "$@"; }
torch=torch==2.13.0+cpu
# Where the registry at hand has no CPU build, PyTorch's own index does. Asked only then: pip asks every index for
# every package.
pip install --no-deps "$torch" 2>/dev/null ||
    pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
pip install --no-deps -r requirements.lock
pip install --no-deps -e .
touch "$ready"
