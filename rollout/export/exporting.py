"""`rollout export`: from the rows of a run to the file of a trainer, as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from rollout.advantages import Estimator, GroupChoice, with_advantages
from rollout.breaks import Breaks
from rollout.dataset import open_table
from rollout.errors import UserError
from rollout.export.chat import COLUMNS, Row
from rollout.export.forks import Chosen, Forks
from rollout.export.formats import ChatFormat, TokenFormat, find
from rollout.export.sample import samples_of
from rollout.export.writing import write_jsonl, write_parquet
from rollout.run_folder import read_run
from rollout.sample_reading import read_samples
from rollout.samples import Choice, LeftOut, left_out, summed, without_children
from rollout.scores import find as find_scores
from rollout.scores import overlaid
from rollout.storage import Place, inside

pa, pc = cast(Any, pyarrow), cast(Any, pyarrow.compute)
"""They have no types."""
_SUFFIXES = (".parquet", ".jsonl")
_ROWS = 64
"""Episodes with their messages that are Python objects at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person chose. None is the format's own choice."""

    to: str
    out: Place | None = None
    breaks: Breaks = "fork"
    truncated: Choice = "keep"
    forks: Forks | None = None
    advantages: Estimator = "grpo"
    zero_variance: GroupChoice = "keep"
    incomplete: GroupChoice | None = None
    """For groups with fewer scored episodes than the run plays for a task."""
    min_reward: float | None = None
    score: str | None = None
    """A version of the scores instead of the recorded ones."""


def export(run: Place, asked: Asked) -> str:
    """Writes what `asked` says of a run. Lines that say what was written, what was left out and by which choices.

    Raises UserError for choices that do not fit, for an episode or group that is to be an error, and when there is no
    run at `run`; then no file is written, and one that was there stays.
    """
    form = find(asked.to)
    path = asked.out or inside(run, f"export/{asked.to}{form.suffix}")
    if not str(path).endswith(_SUFFIXES if form.schema is not None else _SUFFIXES[1]):
        expected = " or ".join(_SUFFIXES) if form.schema is not None else _SUFFIXES[1]
        raise UserError(f"--out {path}: expected a name that ends in {expected}")
    lines = _samples(run, asked, form, path) if isinstance(form, TokenFormat) else _chats(run, asked, form, path)
    return "\n".join(f"{name:<12}{line}" for name, line in (("wrote", str(path)), *lines))


def _samples(run: Place, asked: Asked, form: TokenFormat, path: Place) -> list[tuple[str, str]]:
    if asked.min_reward is not None:
        raise UserError("--min-reward: only for formats of chats, for it would take groups apart")
    forks = asked.forks or ("keep" if form.forks else "error")
    incomplete = asked.incomplete or ("drop" if form.equal_groups else "keep")
    size: int = read_run(run).config["run"]["samples_per_task"]
    lost: list[LeftOut] = []

    def tables() -> Iterator[Any]:
        for table in read_samples(run, asked.breaks, truncated=asked.truncated, score=asked.score):
            made = with_advantages(
                table,
                asked.advantages,
                zero_variance=asked.zero_variance,
                incomplete=incomplete,
                group_size=size,
            )
            if form.equal_groups:
                made = without_children(made)
            lost.append(left_out(made))
            yield made

    chosen = Chosen(samples_of(tables()), forks, asked.to)
    _write(path, map(form.project, chosen), form.schema)
    causes = [
        f"{cause} {cost['episodes']:,} episodes ({cost['tokens']:,} tokens)" for cause, cost in summed(lost).items()
    ]
    if chosen.forked:
        causes.append(f"siblings of {chosen.forked:,} episodes ({chosen.lost:,} tokens)")
    scores = f"scores {asked.score}, " if asked.score else ""
    choices = scores + (
        f"breaks {asked.breaks}, truncated {asked.truncated}, forks {forks}, advantages {asked.advantages}, "
        f"zero_variance {asked.zero_variance}, incomplete {incomplete}"
    )
    held = f"{chosen.samples:,} of {chosen.episodes:,} episodes in {chosen.groups:,} groups"
    return [("samples", held), ("left out", ", ".join(causes) or "nothing"), ("chosen", choices)]


def _chats(run: Place, asked: Asked, form: ChatFormat, path: Place) -> list[tuple[str, str]]:
    written, lost = 0, Counter[str]()

    def kept() -> Iterator[Row]:
        nonlocal written
        for row in _rows(run, asked.score):
            if (cause := _unfit(row, asked, form)) is None:
                written += 1
                yield form.project(row)
            else:
                lost[cause] += 1

    _write(path, kept(), form.schema)
    causes = ", ".join(f"{cause} {count:,}" for cause, count in lost.items())
    return [("episodes", f"{written:,}"), ("left out", causes or "nothing")]


def _unfit(row: Row, asked: Asked, form: ChatFormat) -> str | None:
    """Why an episode has no place in the file, if it has none."""
    if not row["messages"]:
        return "no messages"
    if row["reward"] is None and not (form.unscored and asked.min_reward is None):
        return "unscored"
    below = asked.min_reward is not None and row["reward"] is not None and row["reward"] < asked.min_reward
    return "below --min-reward" if below else None


def _write(path: Place, rows: Iterator[Row], schema: Any) -> None:
    if str(path).endswith(".jsonl"):
        write_jsonl(path, rows)
    else:
        write_parquet(path, rows, schema)


def _rows(run: Place, score: str | None) -> Iterator[Row]:
    version = None if score is None else find_scores(run, score)
    dataset = cast(Any, open_table(run)).to_pyarrow_dataset()
    for batch in dataset.to_batches(
        columns=[*COLUMNS, "parent_episode_id"], batch_size=_ROWS, batch_readahead=1, fragment_readahead=1
    ):
        own = pa.Table.from_batches([batch]).filter(pc.field("parent_episode_id").is_null())
        yield from overlaid(run, own, version).to_pylist(maps_as_pydicts="lossy")
