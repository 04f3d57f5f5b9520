"""The fault driver, in short: real jobs on a cluster of several nodes, broken while they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "faults.py"
KINDS = ("driver", "host", "verifier", "writer", "node", "garbage")
SEED = 1023
"""It and the next one have all of these between them, and short jobs."""


def test_whatever_is_broken_every_sample_has_one_true_row_and_no_session_stays_open() -> None:
    only = [f"--only={kind}" for kind in KINDS]
    command = [sys.executable, str(SCRIPT), "--runs=2", f"--seed={SEED}", "--workers=2", "--json", *only]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    struck = {**figures["faults"], **figures["faults_missed"]}
    assert struck.keys() == set(KINDS)
    assert figures["rows"] == figures["rows_wanted"]
    assert figures["sessions_opened"] == figures["sessions_closed"] + figures["sessions_died_with_host"]
    assert figures["violations"] == 0
