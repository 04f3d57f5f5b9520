"""The turns of many rows as flat columns: one numpy array a property, and all tokens in one pool.

What is derived from turns is computed on these arrays, so that nothing costs a Python object a token or a turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

pc = cast(Any, pyarrow.compute)
"""It has no types."""
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
FIELDS = (
    ("segment",),
    ("prompt_ids",),
    ("completion_ids",),
    ("logprobs",),
    ("versions",),
    ("reward",),
    ("trainable",),
    ("sampling", "temperature"),
)
"""Of a turn: what is needed here."""


@dataclass(frozen=True, slots=True)
class FlatTurns:
    """T turns, ordered by row, then segment, then as they were played. Starts are places in the pools."""

    rows: int
    row: Ints
    place: Ints
    """Of the turn among all turns as they were given."""
    segment: Ints
    chain: Ints
    """Number of the turn's segment among all segments of all rows, from 0."""
    prompt_start: Ints
    prompt_length: Ints
    sampled_start: Ints
    sampled_length: Ints
    logprob_start: Ints
    has_ids: Bools
    has_logprobs: Bools
    """One logprob for each sampled token."""
    trainable: Bools
    reward: NDArray[np.float64]
    """NaN: none."""
    temperature: NDArray[np.float64]
    span_start: Ints
    span_count: Ints
    ids: NDArray[np.int32]
    """Pool of all prompts and completions."""
    logprobs: NDArray[np.float32]
    spans: Any
    """Pool of version spans, a struct array."""

    @property
    def chains(self) -> int:
        """How many segments there are in all."""
        return int(self.chain[-1]) + 1 if len(self.chain) else 0


def flat_turns(turns: Any) -> FlatTurns:
    """The dataset's column `turns` (an Arrow list array, or what of its fields is needed here) as flat columns."""
    lengths = _lengths(turns)
    entries = turns.flatten()
    fields: dict[str, Any] = dict(zip((field.name for field in entries.type), entries.flatten(), strict=True))
    row = np.repeat(np.arange(len(lengths)), lengths)
    segment = _numbers(fields["segment"], 0).astype(np.int64)
    order = np.lexsort((np.arange(len(row)), segment, row))
    prompts, sampled, logprobs, spans = (
        fields[name] for name in ("prompt_ids", "completion_ids", "logprobs", "versions")
    )
    prompt_length, sampled_length, span_count = (_lengths(column) for column in (prompts, sampled, spans))
    logprob_length = _lengths(logprobs)
    prompt_pool, sampled_pool = (np.asarray(column.flatten(), np.int32) for column in (prompts, sampled))
    row, segment = row[order], segment[order]
    new = np.ones(len(row), bool)
    new[1:] = (row[1:] != row[:-1]) | (segment[1:] != segment[:-1])
    return FlatTurns(
        rows=len(lengths),
        row=row,
        place=order,
        segment=segment,
        chain=np.cumsum(new) - 1,
        prompt_start=_starts(prompt_length)[order],
        prompt_length=prompt_length[order],
        sampled_start=_starts(sampled_length)[order] + len(prompt_pool),
        sampled_length=sampled_length[order],
        logprob_start=_starts(logprob_length)[order],
        has_ids=(_valid(prompts) & _valid(sampled))[order],
        has_logprobs=(_valid(logprobs) & (logprob_length == sampled_length))[order],
        trainable=_numbers(fields["trainable"], True).astype(bool)[order],
        reward=_numbers(fields["reward"], np.nan)[order],
        temperature=_numbers(pc.struct_field(fields["sampling"], "temperature"), np.nan)[order],
        span_start=_starts(span_count)[order],
        span_count=span_count[order],
        ids=np.concatenate([prompt_pool, sampled_pool]),
        logprobs=np.asarray(logprobs.flatten(), np.float32),
        spans=spans.flatten(),
    )


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """The numbers of all the ranges [start, start + length), one range after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def _starts(lengths: Ints) -> Ints:
    return np.cumsum(lengths) - lengths


def _lengths(lists: Any) -> Ints:
    return _numbers(pc.list_value_length(lists), 0).astype(np.int64)


def _numbers(column: Any, null: float) -> NDArray[Any]:
    return column.fill_null(null).to_numpy(zero_copy_only=False)


def _valid(column: Any) -> Bools:
    return column.is_valid().to_numpy(zero_copy_only=False)
