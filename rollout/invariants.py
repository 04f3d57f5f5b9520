"""What must hold in every row of a dataset (docs/design.md, Invariants), as far as rows can show it.

Pure functions over batches of rows; what they find names the episode. Tokens are looked at as flat arrays, never as
Python objects. The prefix property is seen by its counts: rows hold only what each prompt appended, so the engine's own
count of prompt tokens is met only when every prompt was all that came before it in its segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.findings import Checked, Finding, Known
from rollout.row_rules import RULES, Row, prompt_tokens
from rollout.samples import to_samples

pa = cast(Any, pyarrow)
"""It has no types."""
ABOVE_ONE = 1e-4
"""A logprob may be above 0 by what float32 rounds."""
_PACKED = ("prompt_ids", "completion_ids", "logprobs")
ORPHANS = "a child has its parent"
_SOUND = "what an engine can have sampled"


def check_rows(batch: Any, known: Known) -> tuple[list[Finding], Checked]:
    """Everything that must hold within a row, for a batch with the dataset's columns, and what was looked at.

    Turns without ids (an endpoint that tells none) are held to what they have.
    """
    tokens = _Tokens.of(batch)
    rows = _rows(batch, tokens)
    findings = [
        Finding(name, row["episode_id"], detail)
        for row in rows
        for rule, name in RULES.items()
        for detail in rule(row, known)
    ]
    findings += _without_parents(rows)
    findings += [Finding(_SOUND, rows[row]["episode_id"], detail) for row, detail in tokens.unsound(known.vocabulary)]
    wrong = {finding.episode_id for finding in findings}
    whole = tokens.told(len(rows)) & np.array([row["episode_id"] not in wrong for row in rows], np.bool_)
    masked, checked = _check_masks(
        batch.filter(pa.array(whole)), [row for row, kept in zip(rows, whole, strict=True) if kept]
    )
    return findings + masked, sum((_continued(row) for row in rows), checked)


def orphan(episode_id: str, parent: str) -> Finding:
    """A child whose parent is not there."""
    return Finding(ORPHANS, episode_id, f"its parent {parent} has no row before it")


def _without_parents(rows: Sequence[Row]) -> Iterator[Finding]:
    """Children stand behind their parents. Those at the head of a batch may have theirs at the end of another."""
    before: set[str] = set()
    begun = False
    for row in rows:
        parent = row["parent_episode_id"]
        begun = begun or parent is None
        if begun and parent is not None and parent not in before:
            yield orphan(row["episode_id"], parent)
        before.add(row["episode_id"])


@dataclass(frozen=True, slots=True)
class _Packed:
    """A list column of all turns of a batch, flat."""

    lengths: npt.NDArray[np.int64]
    """By turn; -1 for null."""
    ends: npt.NDArray[np.int64]
    """Where each turn's values end."""
    values: npt.NDArray[Any]

    @staticmethod
    def of(column: Any) -> _Packed:
        lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.cumsum(np.maximum(lengths, 0))
        return _Packed(lengths, ends, column.flatten().to_numpy(zero_copy_only=False))

    def turns(self, wrong: npt.NDArray[np.bool_]) -> list[int]:
        """Turns that hold a value which is wrong."""
        return np.unique(np.searchsorted(self.ends, np.flatnonzero(wrong), "right")).tolist()


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Ids and logprobs of all turns of a batch."""

    rows: npt.NDArray[np.int64]
    """The row of each turn."""
    prompts: _Packed
    sampled: _Packed
    logprobs: _Packed

    @staticmethod
    def of(batch: Any) -> _Tokens:
        turns = batch["turns"]
        counts = turns.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        flat = turns.flatten()
        return _Tokens(np.repeat(np.arange(len(counts)), counts), *(_Packed.of(flat.field(name)) for name in _PACKED))

    def told(self, rows: int) -> npt.NDArray[np.bool_]:
        """Which of so many rows have ids and logprobs at every turn."""
        silent = (self.sampled.lengths < 0) | (self.prompts.lengths < 0) | (self.logprobs.lengths < 0)
        return np.bincount(self.rows, silent, rows) == 0

    def unsound(self, vocabulary: int | None) -> Iterator[tuple[int, str]]:
        """Row and what is wrong of every turn that no engine can have sampled, as `rollout.soundness` sees it."""
        firsts = np.searchsorted(self.rows, self.rows)
        for turn, what in self._wrong(vocabulary):
            yield int(self.rows[turn]), f"turn {turn - int(firsts[turn])}: {what}"

    def _wrong(self, vocabulary: int | None) -> Iterator[tuple[int, str]]:
        sampled, logprobs = self.sampled, self.logprobs
        yield from ((turn, "nothing was sampled") for turn in np.flatnonzero(sampled.lengths == 0).tolist())
        for turn in np.flatnonzero((logprobs.lengths >= 0) & (logprobs.lengths != sampled.lengths)).tolist():
            yield turn, f"{logprobs.lengths[turn]} logprobs for {max(sampled.lengths[turn], 0)} sampled tokens"
        for name, ids in (("prompt", self.prompts), ("sampled", sampled)):
            outside = ids.values < 0
            if vocabulary is not None:
                outside |= ids.values >= vocabulary
            yield from ((turn, f"{name} ids that are none of the model's") for turn in ids.turns(outside))
        unreal = ~np.isfinite(logprobs.values) | (logprobs.values > ABOVE_ONE)
        yield from ((turn, "a logprob that is none") for turn in logprobs.turns(unreal))


def _rows(batch: Any, tokens: _Tokens) -> list[Row]:
    """The batch's rows with numbers of tokens in place of tokens: `rollout.row_rules` says how."""
    turns = batch["turns"]
    flat = turns.flatten()
    light = [entry.name for entry in flat.type if entry.name not in _PACKED]
    lists = [flat.field(name) for name in light]
    light_turns: list[Row] = pa.StructArray.from_arrays(lists, light).to_pylist()
    for turn, appended, sampled in zip(
        light_turns, tokens.prompts.lengths.tolist(), tokens.sampled.lengths.tolist(), strict=True
    ):
        turn["appended"] = appended if appended >= 0 else None
        turn["sampled"] = sampled if sampled >= 0 else None
    kept = [name for name in batch.schema.names if name != "turns"]
    rows: list[Row] = batch.select(kept).to_pylist(maps_as_pydicts="lossy")
    edges: list[int] = np.searchsorted(tokens.rows, np.arange(len(rows) + 1)).tolist()
    for row, (first, end) in zip(rows, pairwise(edges), strict=True):
        row["turns"] = light_turns[first:end]
    return rows


def _continued(row: Row) -> Checked:
    if not row["turns"] or (read := prompt_tokens(row)) is None:
        return Checked(episodes=1)
    count = len({turn["segment"] for turn in row["turns"]})
    counted = row["prompt_tokens"] > 0
    return Checked(
        episodes=1,
        segments=count,
        continued=count if counted and row["prompt_tokens"] == read else 0,
        uncounted=0 if counted else count,
    )


def _check_masks(batch: Any, rows: Sequence[Row]) -> tuple[list[Finding], Checked]:
    """The loss masks of the samples that a trainer gets of the rows: ones on as many tokens as the engine sampled in
    turns that are to be trained on."""
    samples = to_samples(pa.Table.from_batches([batch]))
    masks = samples["loss_mask"].combine_chunks()
    owners = np.repeat(np.arange(len(masks)), masks.value_lengths().to_numpy(zero_copy_only=False))
    sums = np.bincount(owners, masks.flatten().to_numpy(zero_copy_only=False), len(masks)).astype(np.int64)
    ones: dict[str, int] = {}
    for name, count in zip(samples["episode_id"].to_pylist(), sums.tolist(), strict=True):
        ones[name] = ones.get(name, 0) + count
    sampled: dict[str, int] = {}
    for row in rows:
        if (name := row["episode_id"]) in ones:
            left_out = sum(turn["sampled"] or 0 for turn in row["turns"] if not turn["trainable"])
            sampled[name] = sampled.get(name, 0) + row["completion_tokens"] - left_out
    findings = [
        Finding("loss mask", name, f"{ones[name]} ones for {count} tokens that the engine sampled")
        for name, count in sampled.items()
        if ones[name] != count
    ]
    return findings, Checked(sampled=sum(sampled.values()), ones=sum(ones.values()))
