#!/usr/bin/env bash
# The main job, end to end, on this machine: conf/demo.yaml with the bundled model. Arguments are passed on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$here/scripts/setup.sh"
cd "$here"
run=runs/demo-$(date +%Y%m%d-%H%M%S)
export PATH="$here/.venv/bin:$PATH"
exec rollout run conf/demo.yaml run.dir="$run" "$@"
