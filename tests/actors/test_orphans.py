"""A driver that has ended is known to have ended: by that a model knows when to go."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray_jobs import PATIENCE, Head

pytestmark = pytest.mark.ray

PROGRAM = """
import os, subprocess, sys, time
import ray
from actors.orphans import is_gone, this_driver

ray.init(address=sys.argv[1], log_to_driver=False)
mine = this_driver()
if len(sys.argv) == 2:
    child = subprocess.run([sys.executable, "-c", os.environ["PROGRAM"], sys.argv[1], "ends"], capture_output=True)
    other = child.stdout.decode().split()[-1]
    deadline = time.monotonic() + 60
    while not is_gone(other) and time.monotonic() < deadline:
        time.sleep(0.2)
    print(other != mine, is_gone(other), is_gone(mine), is_gone("ffff0000"))
else:
    print(mine, flush=True)
    os._exit(1)  # as when it is killed: nobody is told
"""


def test_a_driver_is_gone_when_its_process_is(head: Head) -> None:
    env = {**head.env, "PROGRAM": PROGRAM}
    command = [sys.executable, "-c", PROGRAM, head.address]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr
