"""What becomes of segment breaks: turns cut into pieces, and pieces put together to samples.

A piece is a stretch of a prompt or of a completion. A sample is a list of pieces, so that every policy is the same
work on different lists:

    fork       a sample a segment: every sampled token is in exactly one
    realign    segments whose history differs in a few tokens only become one sample: what the next prompt holds stands
               there, and tokens that were not sampled like this have mask 0; other breaks fork
    truncate   the first segment alone: what came after the first break is lost
    per_turn   a sample a turn, the history before it has mask 0: tokens grow with the square of the turns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from rollout.flat_turns import Bools, FlatTurns, Ints, ranges
from rollout.realigning import Ids, blocks

Breaks = Literal["fork", "realign", "truncate", "per_turn"]
BREAKS: tuple[Breaks, ...] = ("fork", "realign", "truncate", "per_turn")
DRIFT = 16
"""Tokens that may differ in all at a break that `realign` mends."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """P pieces in the order of their samples, and within a sample of the text. None is empty."""

    sample: Ints
    """Ascending; samples of a row are neighbours, in order."""
    turn: Ints
    start: Ints
    """In the pool of ids."""
    length: Ints
    sampled: Bools
    """True where the policy sampled it and the sample trains on it."""

    def of(self, keep: Bools | Ints) -> Pieces:
        """Some of them."""
        return Pieces(self.sample[keep], self.turn[keep], self.start[keep], self.length[keep], self.sampled[keep])


def cut(turns: FlatTurns, usable: Bools, breaks: Breaks, drift: int) -> Pieces:
    """The samples of the segments that are `usable` (by chain), as pieces; a sample without a sampled token to train
    on is none.

    Sample numbers are consecutive from 0. `drift` is in tokens, for `realign` alone.
    """
    pieces = _forked(turns, usable[turns.chain])
    if breaks == "truncate":
        pieces = pieces.of(_first_chains(turns)[pieces.sample])
    elif breaks == "per_turn":
        pieces = _per_turn(turns, pieces)
    elif breaks == "realign":
        pieces = _realigned(turns, pieces, drift)
    pieces = pieces.of(pieces.length > 0)
    pieces = replace(pieces, sampled=pieces.sampled & turns.trainable[pieces.turn])
    sampling = np.zeros(int(pieces.sample.max(initial=-1)) + 1, bool)
    sampling[pieces.sample[pieces.sampled]] = True
    pieces = pieces.of(sampling[pieces.sample])
    return replace(pieces, sample=(np.cumsum(sampling) - 1)[pieces.sample])


def _forked(turns: FlatTurns, usable: Bools) -> Pieces:
    """Prompt and completion of each turn, one after the other; the sample is the segment."""
    turn = np.repeat(np.flatnonzero(usable), 2)
    sampled = np.arange(len(turn)) % 2 == 1
    start = np.where(sampled, turns.sampled_start[turn], turns.prompt_start[turn])
    length = np.where(sampled, turns.sampled_length[turn], turns.prompt_length[turn])
    return Pieces(turns.chain[turn], turn, start, length, sampled)


def _first_chains(turns: FlatTurns) -> Bools:
    """By chain: whether it is the first of its row."""
    row = turns.row[np.searchsorted(turns.chain, np.arange(turns.chains))]
    first = np.ones(len(row), bool)
    first[1:] = row[1:] != row[:-1]
    return first


def _per_turn(turns: FlatTurns, forked: Pieces) -> Pieces:
    """Each turn with all of its segment before it."""
    last = np.flatnonzero(forked.sampled)
    first = np.searchsorted(forked.sample, forked.sample[last])
    size = last + 1 - first
    pieces = forked.of(ranges(first, size))
    own = np.zeros(len(pieces.sample), bool)
    own[np.cumsum(size) - 1] = True
    return Pieces(np.repeat(forked.turn[last], size), pieces.turn, pieces.start, pieces.length, own)


def _realigned(turns: FlatTurns, forked: Pieces, drift: int) -> Pieces:
    """Rows with several segments are looked at one by one; the work in each is numpy's."""
    row = turns.row[forked.turn]
    opening = np.ones(len(row), bool)
    opening[1:] = forked.sample[1:] != forked.sample[:-1]
    several = np.bincount(row[opening], minlength=turns.rows)[row] > 1
    made = [forked.of(~several)]
    for here in np.unique(row[several]):
        first, end = (int(place) for place in np.searchsorted(row, [here, here + 1]))
        heads: list[int] = (first + np.flatnonzero(opening[first:end])).tolist()
        held = forked.of(np.arange(first, heads[1]))
        for head, tail in pairwise([*heads[1:], end]):
            segment = forked.of(np.arange(head, tail))
            joined = _join(turns.ids, held, segment, drift)
            if joined is None:
                made.append(held)
            held = segment if joined is None else joined
        made.append(held)
    whole = _joined(made)
    return whole.of(np.argsort(whole.sample, kind="stable"))


def _join(ids: Ids, held: Pieces, segment: Pieces, drift: int) -> Pieces | None:
    """A sample continued by a segment whose prompt tells its history anew; None when that differs too much."""
    opening, rest = segment.of(np.arange(1)), segment.of(np.arange(1, len(segment.sample)))
    first, size = int(opening.start[0]), int(opening.length[0])
    found = blocks(ids[ranges(held.start, held.length)], ids[first : first + size], drift)
    if found is None:
        return None
    parts: list[Pieces] = []
    told = 0
    for here, there, length in found:
        parts += [_stretch(opening, told, there), _stretch(held, here, here + length)]
        told = there + length
    whole = _joined([*parts, _stretch(opening, told, size), rest])
    if whole.sampled[0]:  # all before it fell out: what stands first follows from nothing, and nobody can train on it
        first_token, behind = _stretch(whole, 0, 1), _stretch(whole, 1, int(whole.length.sum()))
        whole = _joined([replace(first_token, sampled=np.zeros(1, bool)), behind])
    return replace(whole, sample=np.full_like(whole.sample, held.sample[0]))


def _stretch(pieces: Pieces, first: int, end: int) -> Pieces:
    """What of the pieces lies in tokens [first, end) of their text."""
    ends = np.cumsum(pieces.length)
    begins = ends - pieces.length
    low, high = np.maximum(begins, first), np.minimum(ends, end)
    inside = np.flatnonzero(low < high)
    parts = pieces.of(inside)
    return replace(parts, start=parts.start + (low - begins)[inside], length=(high - low)[inside])


def _joined(parts: Sequence[Pieces]) -> Pieces:
    return Pieces(
        np.concatenate([part.sample for part in parts]),
        np.concatenate([part.turn for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.length for part in parts]),
        np.concatenate([part.sampled for part in parts]),
    )
