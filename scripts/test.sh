#!/usr/bin/env bash
# All checks: lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
basedpyright
# Two files at a time: tests of clusters mostly wait for processes to start.
exec python -m pytest -n 2 --dist loadfile "$@"
