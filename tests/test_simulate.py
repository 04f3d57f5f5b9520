"""The simulator as one would start it; it checks by itself that every sample has its row."""

import subprocess
import sys


def test_the_simulator_plays_all_its_jobs_and_says_the_same_twice() -> None:
    command = [sys.executable, "-m", "scripts.simulate", "--episodes=1000", "--replicas=2", "--slots=16"]
    first, second = (subprocess.run(command, capture_output=True, text=True, timeout=100) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    lines = [line.split("│")[1:-2] for line in first.stdout.splitlines() if line.startswith("│")]
    assert len(lines) == 9
    assert lines == [line.split("│")[1:-2] for line in second.stdout.splitlines() if line.startswith("│")]
