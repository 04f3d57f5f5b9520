"""Where a sequence of tokens reappears, with small differences, at the start of another one.

An endpoint that renders the history anew gives mostly the same ids: some tokens of a word joined otherwise, a line end
lost. Those places are found here, by the shortest difference first and never by more than a limit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Block = tuple[int, int, int]
"""Place in the history, place in the prompt, how many tokens are equal from there."""
_ANCHOR = 4
"""So many tokens in a row (or all that are left) must agree behind a difference: one alone is chance."""


def blocks(history: Ids, prompt: Ids, limit: int) -> list[Block] | None:
    """The blocks in which `prompt` repeats the whole of `history`, in order; None when it does not.

    Between the blocks, at most `limit` tokens in all are left out or put in, and never more than half of the history:
    that would be another text. What of the prompt follows the last block
    is new. Time is linear in the length and quadratic in the limit.
    """
    found: list[Block] = []
    here, there, left = 0, 0, min(limit, len(history) // 2)
    while True:
        size = _agreement(history[here:], prompt[there:])
        if size:
            found.append((here, there, size))
        here, there = here + size, there + size
        if here == len(history):
            return found
        step = _difference(history[here:], prompt[there:], left)
        if step is None:
            return None
        here, there, left = here + step[0], there + step[1], left - sum(step)


def _agreement(first: Ids, second: Ids) -> int:
    size = min(len(first), len(second))
    differ = first[:size] != second[:size]
    return int(differ.argmax()) if differ.any() else size


def _difference(history: Ids, prompt: Ids, limit: int) -> tuple[int, int] | None:
    """How many tokens to leave out and to put in until both agree again: the fewest in sum, within the limit."""
    for total in range(1, limit + 1):
        for out in range(min(total, len(history)) + 1):
            rest = history[out : out + _ANCHOR]
            into = total - out
            if np.array_equal(rest, prompt[into : into + len(rest)]):
                return out, into
    return None
