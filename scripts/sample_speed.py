"""How fast rows become training samples: python -m scripts.sample_speed RUN [--rows 20000]

Repeats the rows of a run to the number asked for and derives samples from them under each policy for segment breaks.
"""

from __future__ import annotations

import argparse
import time

import pyarrow as pa

from rollout.breaks import BREAKS
from rollout.sample_reading import read_groups
from rollout.samples import to_samples


def main() -> None:
    """Prints a line a policy: samples a second (best of 3), and bytes of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--rows", type=int, default=20_000)
    asked = parser.parse_args()
    own = pa.concat_tables(read_groups(asked.run))
    rows = pa.concat_tables([own] * -(-asked.rows // own.num_rows)).slice(0, asked.rows)
    for breaks in BREAKS:
        took: list[float] = []
        for _ in range(3):
            begun = time.perf_counter()
            samples = to_samples(rows, breaks)
            took.append(time.perf_counter() - begun)
        rate = samples.num_rows / min(took)
        print(f"{breaks:9} {rate:10,.0f} samples/s  {samples.num_rows:,} samples  {samples.nbytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
