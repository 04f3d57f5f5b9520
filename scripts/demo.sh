#!/usr/bin/env bash
# The main job, end to end, on this machine: conf/demo.yaml with the bundled model. Arguments are passed on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$here/scripts/setup.sh"
# From the checkout itself short paths will do, and the commands it prints can be typed as they are.
[ "$PWD" = "$here" ] && at= || at="$here/"
exec "$at.venv/bin/rollout" run "${at}conf/demo.yaml" run.dir="${at}runs/demo-$(date +%Y%m%d-%H%M%S)" "$@"
