"""What a commit costs after many: `python -m scripts.commit_cost`.

Commits to a table on this disk as a driver does, merging sixteen small files at a time (the files themselves are only
named, not written), and prints the median of the last hundred commits. At the end it deletes what of the log lies
before the last checkpoint, as `Committer.sweep` does once it is `dataset.keep_hours` old, and measures once more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from rollout.dataset import Committer, RowFile

LAST = 100
"""Commits a figure is the median of."""
TOGETHER = 16
"""Files that are merged at a time, and merged ones that are merged again."""
ROWS = 10


def main() -> None:
    """Prints a line for every thousand commits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--commits", type=int, default=3000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        committer = Committer(f"{scratch}/episodes", "run")
        committer.take_over()
        log = Path(committer.folder, "_delta_log")
        took: list[tuple[float, float]] = []
        for number in range(1, options.commits + 1):
            took.append(_commit(committer, number))
            if number % TOGETHER == 0:
                _merge(committer, number)
            if number in (200, 500) or number % 1000 == 0:
                _tell(f"{number:,} commits", log, took)
        checkpoint = max(path.name for path in log.glob("*.checkpoint.parquet"))[:20]
        for path in log.iterdir():
            if path.name[0].isdigit() and path.name[:20] < checkpoint:
                path.unlink()
        more = range(options.commits + 1, options.commits + LAST + 1)
        _tell("without the older log", log, [_commit(committer, number) for number in more])


def _commit(committer: Committer, number: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor that one commit took."""
    clock, processor = time.perf_counter(), time.process_time()
    committer.commit([RowFile(f"part-{number}.parquet", 1000, ROWS)])
    return time.perf_counter() - clock, time.process_time() - processor


def _merge(committer: Committer, number: int) -> None:
    for rows, name in ((ROWS, "merged"), (TOGETHER * ROWS, "large")):
        files = [file for file in committer.files() if file.rows == rows]
        if len(files) >= TOGETHER:
            size = sum(file.size for file in files)
            committer.replace(files, RowFile(f"part-{name}-{number}.parquet", size, len(files) * rows))


def _tell(what: str, log: Path, took: list[tuple[float, float]]) -> None:
    clock, processor = (1000 * statistics.median(column) for column in zip(*took[-LAST:], strict=True))
    print(f"{what}: {clock:.1f} ms a commit, {processor:.1f} ms of CPU, {len(list(log.iterdir())):,} log entries")


if __name__ == "__main__":
    main()
