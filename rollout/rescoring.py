"""Judging the episodes of a run again, without generating: a new version of their scores.

Each judged episode gets exactly one score in a version, whatever is killed in between: scores are committed as rows
are, and what has one is not judged again when the same is asked once more. In memory is what is in work and what waits
for its commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from rollout.database import Database
from rollout.dataset import Committer, write_file
from rollout.errors import BoundaryError, ResourceDown, RolloutError
from rollout.progress import Done
from rollout.recorded import Played, judged_batches, played
from rollout.replaying import World, diverged, judge
from rollout.rows import utf8
from rollout.scores import SCORES, Version, overlaid
from rollout.storage import Place, absolute, inside
from rollout.thread import DISK_SECONDS, threaded
from rollout.trajectory import Failure, FailureKind, Score
from rollout.window import windowed

COMMIT_ROWS = 4096
COMMIT_SECONDS = 10.0
"""Scores are committed when there are so many, or when the oldest has waited so long."""

Judge = Callable[[Played], Awaitable[Score]]


@dataclass(slots=True)
class Judged:
    """What a version has so far."""

    scored: int = 0
    failed: int = 0
    before: int = 0
    """Episodes that had a score of this version already."""
    failures: dict[str, int] = field(default_factory=dict[str, int])
    """By what was said, the first few."""


def weighed(score: Score, weights: Mapping[str, float]) -> Score:
    """The score with the sum of weight times component as its reward; a component without a weight counts nothing.

    Raises ResourceDown when the score lacks a component that has a weight: nothing stands for what was not judged.
    """
    if missing := sorted(weights.keys() - score.components.keys()):
        raise ResourceDown(f"the score has no component '{missing[0]}'")
    reward = math.fsum(weight * score.components[name] for name, weight in weights.items())
    return Score(reward, score.components, score.metrics)


def judge_of(version: Version, world: World | None) -> Judge:
    """How a version judges an episode: by the world's verifier, or from the scores its row comes with."""
    weights = version.weights

    async def score(episode: Played) -> Score:
        found = episode.score if world is None else await judge(world, episode)
        return found if weights is None else weighed(found, weights)

    return score


async def rescore(
    run: Place,
    version: Version,
    judging: Judge,
    seed: int,
    concurrency: int,
    attempts: int = 1,
    told: Callable[[Judged], None] = lambda _: None,
) -> Judged:
    """Gives every judged episode that has none yet a score of the version; `seed` is the run's.

    `told` hears of every commit. A verifier that fails `attempts` times leaves a score without a reward and with its
    failure. Raises RolloutError when somebody else scores the same version, or for the disk.
    """
    place = absolute(inside(run, version.table))
    committer = await threaded(partial(Committer, place, version.name, SCORES), DISK_SECONDS, "opening scores")
    await threaded(committer.take_over, DISK_SECONDS, "opening scores")
    rows = _Rows(run, version, seed)
    done = await threaded(partial(committer.done, rows.stride), DISK_SECONDS, "reading scores")
    result, waiting, since = Judged(before=len(done)), list[dict[str, Any]](), time.monotonic()

    async def flush() -> None:
        nonlocal waiting, since
        table = pa.Table.from_pylist([utf8(row) for row in waiting], schema=SCORES)
        await threaded(lambda: committer.commit([write_file(place, table)]), DISK_SECONDS, "committing scores")
        waiting, since = [], time.monotonic()
        told(result)

    try:
        async with aclosing(windowed(rows.batches(done), partial(_judged, judging, attempts), concurrency)) as scored:
            async for row in scored:
                waiting.append(row)
                _count(result, row)
                if len(waiting) >= COMMIT_ROWS or time.monotonic() - since >= COMMIT_SECONDS:
                    await flush()
        if waiting:
            await flush()
    finally:
        rows.close()
    return result


class _Rows:
    """The judged episodes that a version covers."""

    def __init__(self, run: Place, version: Version, seed: int) -> None:
        self._run, self._version, self._seed = run, version, seed
        self._database = Database(run)
        highest = self._database.rows("SELECT max(sample_index) AS highest FROM episodes")[0]["highest"]
        self.stride: int = (highest or 0) + 1
        """More than any sample index, also where a run was forced to another number of samples."""

    def batches(self, done: Done) -> Iterator[Sequence[Played]]:
        """Episodes that have no score yet. A base without a score for one gives none either."""
        version = self._version
        for table in judged_batches(self._database.files()):
            based = overlaid(self._run, table, None if version.resource else version.base)
            yield [
                played(row, self._seed)
                for row in based.to_pylist()
                if row["reward"] is not None
                and version.first_task <= row["task_index"] < (version.end_task or math.inf)
                and row["task_index"] * self.stride + row["sample_index"] not in done
            ]

    def close(self) -> None:
        self._database.close()


async def _judged(judging: Judge, attempts: int, episode: Played) -> dict[str, Any]:
    """The row of one episode's score."""
    began, score, failure = time.monotonic(), None, None
    for _ in range(max(1, attempts)):
        try:
            score, failure = await judging(episode), None
            break
        except BoundaryError as error:
            failure = error.failure
            if diverged(failure):
                break
        except RolloutError as error:
            failure = Failure(FailureKind.VERIFY, "weights", str(error))
            break
    return {
        "episode_id": episode.lease.episode_id,
        "task_index": episode.lease.task.index,
        "sample_index": episode.lease.sample_index,
        "reward": score.reward if score else None,
        "reward_components": list(score.components.items()) if score else None,
        "metrics": list(score.metrics.items()) if score else None,
        "failure": failure and {**asdict(failure), "kind": failure.kind.value},
        "seconds": time.monotonic() - began,
        "scored_at": int(time.time() * 1e6),
    }


def _count(result: Judged, row: dict[str, Any]) -> None:
    result.scored += row["failure"] is None
    if (failure := row["failure"]) is not None:
        result.failed += 1
        said = f"{failure['kind']} at {failure['where']}: {failure['message']}"
        if said in result.failures or len(result.failures) < 5:
            result.failures[said] = result.failures.get(said, 0) + 1
