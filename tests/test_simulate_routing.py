"""The simulator as one would start it: what sticks finds its cache, and what is bounded stays balanced."""

import subprocess
import sys


def test_the_router_finds_as_much_cached_as_hashing_and_is_balanced_better() -> None:
    command = [
        sys.executable,
        "-m",
        "scripts.simulate_routing",
        "--replicas=24",
        "--slots=16",
        "--groups=288",
        "--room=1000000",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "│"]
    cached = {line[0]: float(line[2].rstrip("%")) for line in cells}
    ideal, balance = ({line[0]: float(line[at]) for line in cells} for at in (3, 4))
    assert cached["round robin"] < 60 < cached["router"]
    assert cached["power of two"] < 60
    assert cached["router"] > cached["session by hash"] - 1
    assert 0.97 < ideal["router"] < 1 == ideal["all in one"]
    assert 1 <= balance["router"] < 1.1 < balance["group by hash"]
    assert balance["router"] < balance["session by hash"]
