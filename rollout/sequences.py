"""The tokens of episodes as an engine saw them: one sequence a segment, to be scored again by a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BASE = frozenset({"default", "0"})
"""Versions that are the weights a run began with: vLLM calls them `default`, an online service 0."""
GREEDY = 1e-5
"""Temperatures below it are greedy to vLLM: its logprobs are then those of temperature 1, nothing cut off."""

_Span = tuple[int, int, Mapping[str, Any]]
"""Where a turn's sampled tokens start in its segment, how many of them count, and the turn."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A segment's tokens and those of them whose logprobs one version of the weights can tell again."""

    episode_id: str
    token_ids: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    """Positions of the tokens to score, rising; the token before one is what predicts it."""
    recorded: npt.NDArray[np.float64]
    """The engine's logprob of each of them."""
    temperature: npt.NDArray[np.float32]
    top_p: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    """How each was sampled: 1.0, 1.0 and 0 take the model's distribution as it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to score by version, and what is not and why."""

    by_version: Mapping[str, Sequence[Scored]]
    skipped: Mapping[str, int]
    """Sampled tokens by cause."""


def plan(rows: Iterable[Mapping[str, Any]], versions: Iterable[str], processed: bool = True) -> Plan:
    """The segments of rows (`episode_id` and `turns`) as sequences, by version of the weights; all of BASE are one.

    Exact is a turn's first span: its prompt was read with the weights that sampled it. Tokens after a change of weights
    within a turn were sampled over a KV cache of the weights before it: they are skipped, as are those of versions that
    are not in `versions`, turns without logprobs and turns drawn under a grammar, whose logprobs are of what the
    grammar left of the distribution. `processed` False is for engines that record raw logprobs.
    """
    known = frozenset(versions)
    chosen: dict[str, list[Scored]] = {}
    skipped: Counter[str] = Counter()
    for row in rows:
        turns = row["turns"]
        for segment in sorted({turn["segment"] for turn in turns}):
            kept = [turn for turn in turns if turn["segment"] == segment]
            if any(turn["completion_ids"] is None or turn["prompt_ids"] is None for turn in kept):
                continue
            for version, scored in _segment(row["episode_id"], kept, known, skipped, processed):
                chosen.setdefault(version, []).append(scored)
    return Plan(chosen, dict(skipped))


def _segment(
    episode_id: str, turns: Sequence[Mapping[str, Any]], known: frozenset[str], skipped: Counter[str], processed: bool
) -> list[tuple[str, Scored]]:
    """What of a segment each version can tell."""
    ids: list[int] = []
    parts: dict[str, list[_Span]] = {}
    for turn in turns:
        ids += turn["prompt_ids"]
        start, count = len(ids), len(turn["completion_ids"])
        ids += turn["completion_ids"]
        if turn["logprobs"] is None:
            skipped["no logprobs"] += count
            continue
        if turn.get("constrained"):
            skipped["drawn under a grammar"] += count
            continue
        version, end = _first_span(turn, count)
        skipped["after a change of weights within a turn"] += count - end
        if version in known and start:
            parts.setdefault(version, []).append((start, end, turn))
        else:
            skipped[f"weights of version {version} are not known"] += end
    token_ids = np.asarray(ids, np.int64)
    return [(version, _scored(episode_id, token_ids, part, processed)) for version, part in parts.items()]


def _first_span(turn: Mapping[str, Any], count: int) -> tuple[str, int]:
    """Version of a turn's first tokens and how many they are; a turn that tells none is taken for the base's."""
    spans = turn["versions"]
    name, end = (spans[0]["version"], spans[0]["end"]) if spans else ("default", count)
    return ("default" if name in BASE else name), end


def _scored(
    episode_id: str,
    token_ids: npt.NDArray[np.int64],
    part: Sequence[tuple[int, int, Mapping[str, Any]]],
    processed: bool,
) -> Scored:
    counts = [end for _, end, _ in part]
    drawn = [_drawn(turn["sampling"]) if processed else (1.0, 1.0, 0) for _, _, turn in part]
    return Scored(
        episode_id,
        token_ids,
        np.concatenate([np.arange(start, start + end) for start, end, _ in part]),
        np.concatenate([np.asarray(turn["logprobs"][:end], np.float64) for _, end, turn in part]),
        np.repeat(np.asarray([entry[0] for entry in drawn], np.float32), counts),
        np.repeat(np.asarray([entry[1] for entry in drawn], np.float32), counts),
        np.repeat(np.asarray([entry[2] for entry in drawn], np.int64), counts),
    )


def _drawn(sampling: Mapping[str, Any]) -> tuple[float, float, int]:
    """Temperature, top_p and top_k as vLLM applies them before it takes logprobs."""
    if sampling["temperature"] < GREEDY:
        return 1.0, 1.0, 0
    return sampling["temperature"], sampling["top_p"], max(0, sampling["top_k"])
