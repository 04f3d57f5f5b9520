"""Pieces of turns as the columns of samples, gathered from the pools without a Python object a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.breaks import Pieces
from rollout.flat_turns import Bools, FlatTurns, Ints, ranges

pa = cast(Any, pyarrow)
"""It has no types."""


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """What is derived from turns, N samples."""

    row: Ints
    """The row of each sample."""
    arrays: dict[str, Any]
    """Arrow arrays of length N by their names in SAMPLES."""


def columns(turns: FlatTurns, pieces: Pieces, masked: Bools) -> SampleColumns:
    """The samples that `pieces` describe; those of `masked` rows have a loss mask of 0 and no logprobs."""
    first = np.flatnonzero(np.diff(pieces.sample, prepend=-1))
    row = turns.row[pieces.turn[first]]
    length = np.add.reduceat(pieces.length, first) if len(first) else first
    place = np.cumsum(pieces.length) - pieces.length
    """Of each piece among all tokens of all samples."""
    begins = np.append(0, np.cumsum(length))
    opening = np.flatnonzero(pieces.sampled)
    opening = opening[np.diff(pieces.sample[opening], prepend=-1) > 0]
    counted = pieces.sampled & ~masked[turns.row[pieces.turn]]
    siblings = np.bincount(row, minlength=turns.rows)[row]
    arrays = {
        "segment": pa.array(np.arange(len(row)) - np.searchsorted(row, row), pa.int32()),
        "num_segments": pa.array(siblings, pa.int32()),
        "token_ids": _lists(begins, turns.ids[ranges(pieces.start, pieces.length)]),
        "loss_mask": _lists(begins, np.repeat(counted, pieces.length).astype(np.int8)),
        "logprobs": _lists(begins, _logprobs(turns, pieces, counted)),
        "versions": _versions(turns, pieces, place, begins),
        "prompt_length": pa.array(place[opening] - begins[:-1], pa.int32()),
        "temperature": pa.array(turns.temperature[pieces.turn[opening]], from_pandas=True),
        "step_rewards": _step_rewards(turns, pieces, row, begins),
        "weight": pa.array(1 / siblings),
    }
    return SampleColumns(row, arrays)


def _lists(begins: Ints, values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(begins, pa.int32()), pa.array(values))


def _logprobs(turns: FlatTurns, pieces: Pieces, counted: Bools) -> Any:
    """By token; 0.0 where it does not count."""
    turn = pieces.turn[counted]
    start = turns.logprob_start[turn] + pieces.start[counted] - turns.sampled_start[turn]
    values = np.zeros(int(pieces.length.sum()), np.float32)
    values[np.repeat(counted, pieces.length)] = turns.logprobs[ranges(start, pieces.length[counted])]
    return values


def _versions(turns: FlatTurns, pieces: Pieces, place: Ints, begins: Ints) -> Any:
    """Spans of weight versions: each where the piece that holds its tokens came to lie, cut where the piece is."""
    sampled = np.flatnonzero(pieces.sampled)
    turn = pieces.turn[sampled]
    span = ranges(turns.span_start[turn], turns.span_count[turn])
    piece = np.repeat(sampled, turns.span_count[turn])
    offset = pieces.start[piece] - turns.sampled_start[pieces.turn[piece]]
    """Of the piece in its completion."""
    name, start, end = turns.spans.flatten()
    low = np.maximum(np.asarray(start)[span], offset)
    high = np.minimum(np.asarray(end)[span], offset + pieces.length[piece])
    there = low < high
    sample = pieces.sample[piece]
    moved = (place[piece] - begins[sample] - offset)[there]
    found = [
        name.take(pa.array(span[there])),
        pa.array(low[there] + moved, pa.int32()),
        pa.array(high[there] + moved, pa.int32()),
    ]
    counts = np.bincount(sample[there], minlength=len(begins) - 1)
    return pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(counts)), pa.int32()),
        pa.StructArray.from_arrays(found, ["version", "start", "end"]),
    )


def _step_rewards(turns: FlatTurns, pieces: Pieces, row: Ints, begins: Ints) -> Any:
    """By token: the reward of a turn at the last token of it that the sample trains on, or else at the last one before
    it; before the first sampled tokens, at the last one of those. Null for episodes without step rewards.

    Turns of segments that became no sample have none.
    """
    rewarded = np.flatnonzero(~np.isnan(turns.reward))
    present = np.zeros(turns.chains, bool)
    present[turns.chain[pieces.turn]] = True
    rewarded = rewarded[present[turns.chain[rewarded]]]
    has = np.isin(row, turns.row[rewarded])
    length = np.where(has, np.diff(begins), 0)
    ends = np.append(0, np.cumsum(length))
    values = np.zeros(int(ends[-1]), np.float32)
    sampled = np.flatnonzero(pieces.sampled)
    turn = pieces.turn[sampled]
    at = np.searchsorted(turn, rewarded, side="right") - 1
    at = np.maximum(at, np.searchsorted(turns.row[turn], turns.row[rewarded]))
    sample = pieces.sample[sampled[at]]
    last = np.cumsum(pieces.length)[sampled[at]] - 1 - begins[sample]
    np.add.at(values, ends[sample] + last, turns.reward[rewarded])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values), mask=pa.array(~has))
