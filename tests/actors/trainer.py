"""A trainer for tests, in a process of its own: pulls, publishes and tells one line of JSON about each.

    python trainer.py CONF '{"steps": 3, "groups": 4, "folders": [...], ...}' KEY=VALUE ...

Before each step it waits for a line on its stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from actors.online import Batch, open_service, open_service_sync
from rollout.errors import RolloutError


def tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def about(batch: Batch) -> dict[str, Any]:
    rows = batch.rows.select(["group_id", "task_index", "sample_index", "reward", "step", "drop_reason"]).to_pylist()
    versions = [turn["versions"] for turns in batch.rows["turns"].to_pylist() for turn in turns]
    return {
        "groups": batch.group_ids,
        "cursor": batch.cursor,
        "version": batch.version,
        "behind": batch.behind,
        "rows": rows,
        "spans": [[span["version"] for span in spans] for spans in versions],
        "samples": batch.samples().num_rows,
    }


async def train(conf: str, overrides: list[str], asked: dict[str, Any]) -> None:
    """Steps of one pull and one publish; the last pull may stay without one."""
    folders, groups = asked.pop("folders"), asked.pop("groups")
    async with open_service(conf, overrides, **asked) as service:
        tell(open=service.version)
        while line := await asyncio.to_thread(sys.stdin.readline):
            verb, _, rest = line.strip().partition(" ")
            try:
                if verb == "pull":
                    tell(**about(await service.pull(groups)))
                elif verb == "publish":
                    tell(published=await service.publish(rest or folders[service.version % len(folders)]))
                elif verb == "both":
                    pulled, version = await asyncio.gather(
                        service.pull(groups), service.publish(folders[service.version % len(folders)])
                    )
                    tell(**about(pulled), published=version)
                else:
                    tell(**service.report())
            except RolloutError as error:
                tell(error=f"{type(error).__name__}: {error}")
    tell(closed=True)


def train_blocking(conf: str, overrides: list[str], asked: dict[str, Any]) -> None:
    """The same through the blocking API; it does as it is told with "pull" alone."""
    groups = asked.pop("groups")
    asked.pop("folders")
    with open_service_sync(conf, overrides, **asked) as service:
        tell(open=service.version)
        for _ in sys.stdin:
            tell(**about(service.pull(groups)))
    tell(closed=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    if given.pop("blocking", False):
        train_blocking(sys.argv[1], sys.argv[3:], given)
    else:
        asyncio.run(train(sys.argv[1], sys.argv[3:], given))
