"""Drift of a run: where histories were told anew between two turns, why, and what each policy for it would cost.

An engine that takes token ids never breaks a segment; endpoints that render the history themselves do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
from rich.console import Group, RenderableType
from rich.table import Table

from rollout.breaks import BREAKS, DRIFT, Breaks, cut
from rollout.database import Database
from rollout.episode_view import visible
from rollout.flat_turns import FIELDS, FlatTurns, Ints, flat_turns, ranges
from rollout.leaves import leaves

pa = cast(Any, pyarrow)
"""It has no types."""
Numbers = dict[str, Any]
_ROWS = 256
_BREAK = ("turns", "segment_break")
_WANTED = [("episode_id",), _BREAK, *(("turns", *field) for field in FIELDS)]
_AROUND = 4
"""Ids that are shown where a history differs first."""


def drift(database: Database) -> Numbers | None:
    """The drift of a run as JSON values; None when no segment broke, which is found out without reading a token.

    `breaks` by cause; `episodes` that have one; `policies` by name: for those episodes, samples an episode, tokens in
    all and sampled tokens lost; `examples` by cause: where the first such prompt differs from its history. Segments
    whose ids or logprobs are unknown are in none of the policies.
    """
    causes: Counter[str] = Counter()
    for batch in leaves(database.files(), [_BREAK]):
        causes.update(cause for cause in _causes(batch["turns"]) if cause is not None)
    if not causes:
        return None
    whole = {name: Counter[str]() for name in BREAKS}
    examples: dict[str, Numbers] = {}
    episodes = 0
    for batch in leaves(database.files(), _WANTED, _ROWS):
        broken = batch.filter(pa.array(_broken(batch["turns"])))
        if not len(broken):
            continue
        turns = flat_turns(broken["turns"])
        episodes += len(broken)
        for name in BREAKS:
            whole[name].update(_cost(turns, name))
        for cause, example in _examples(broken, turns):
            examples.setdefault(cause, example)
    return {
        "breaks": dict(causes.most_common()),
        "episodes": episodes,
        "policies": {
            name: {"samples": cost["samples"] / episodes, "tokens": cost["tokens"], "lost": cost["lost"]}
            for name, cost in whole.items()
        },
        "examples": examples,
    }


def render_drift(values: Numbers) -> RenderableType:
    """The drift of a run for a terminal."""
    table = Table(box=None, pad_edge=False)
    for name in ("breaks as", "samples an episode", "tokens", "sampled tokens lost"):
        table.add_column(name, justify="left" if name == "breaks as" else "right")
    for name, cost in values["policies"].items():
        table.add_row(name, f"{cost['samples']:.2f}", f"{cost['tokens']:,}", f"{cost['lost']:,}")
    causes = ", ".join(f"{visible(cause)} {count:,}" for cause, count in values["breaks"].items())
    shown = [f"segment breaks in {values['episodes']:,} episodes: {causes}"]
    for cause, example in values["examples"].items():
        ids = f"{example['history']} became {example['prompt']}"
        shown.append(f"first, {visible(cause)}: {example['episode_id']}, token {example['token']:,}: ids {ids}")
    return Group(table, *shown)


def _causes(turns: Any) -> list[str | None]:
    return turns.flatten().field("segment_break").to_pylist()


def _broken(turns: Any) -> list[bool]:
    """By row: whether a segment broke."""
    lengths: list[int] = turns.value_lengths().fill_null(0).to_pylist()
    causes = iter(_causes(turns))
    return [sum(next(causes) is not None for _ in range(length)) > 0 for length in lengths]


def _cost(turns: FlatTurns, breaks: Breaks) -> dict[str, int]:
    usable = np.ones(turns.chains, bool)
    usable[turns.chain[~(turns.has_ids & turns.has_logprobs)]] = False
    pieces = cut(turns, usable, breaks, DRIFT)
    sampled = int(turns.sampled_length[usable[turns.chain]].sum())
    return {
        "samples": int(pieces.sample.max(initial=-1)) + 1,
        "tokens": int(pieces.length.sum()),
        "lost": sampled - int(pieces.length[pieces.sampled].sum()),
    }


def _examples(batch: Any, turns: FlatTurns) -> Iterator[tuple[str, Numbers]]:
    """Causes and the first difference of each break where both sides are known."""
    causes = np.array(_causes(batch["turns"]), object)[turns.place]
    for turn in np.flatnonzero(causes != np.array(None)):
        if turn == 0 or turns.row[turn - 1] != turns.row[turn] or not turns.has_ids[turn - 1 : turn + 1].all():
            continue
        before: Ints = np.arange(int(np.searchsorted(turns.chain, turns.chain[turn - 1])), int(turn))
        starts = np.stack([turns.prompt_start[before], turns.sampled_start[before]], 1).ravel()
        lengths = np.stack([turns.prompt_length[before], turns.sampled_length[before]], 1).ravel()
        history = turns.ids[ranges(starts, lengths)]
        prompt = turns.ids[turns.prompt_start[turn] :][: turns.prompt_length[turn]]
        size = min(len(history), len(prompt))
        differ = np.flatnonzero(history[:size] != prompt[:size])
        at = int(differ[0]) if len(differ) else size
        yield (
            str(causes[turn]),
            {
                "episode_id": batch["episode_id"][int(turns.row[turn])].as_py(),
                "token": at,
                "history": history[at : at + _AROUND].tolist(),
                "prompt": prompt[at : at + _AROUND].tolist(),
            },
        )
