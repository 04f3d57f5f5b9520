#!/usr/bin/env bash
# Runs every example of conf/agents as a job, one after the other, into runs/examples. Those of a real model take longer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf runs/examples
for conf in conf/agents/*.yaml; do
    name=$(basename "$conf" .yaml)
    rollout run "agents/$name" "run.dir=runs/examples/$name"
    rollout verify "runs/examples/$name"
done
