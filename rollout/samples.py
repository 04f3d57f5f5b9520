"""Training samples: what a trainer reads, derived from rows and never stored as a second truth.

A sample is one sequence of tokens that the policy saw or wrote, in the order of the engine: `token_ids`, `loss_mask`,
`logprobs` and `versions` talk about the same positions. An episode without a segment break is one sample; what
becomes of breaks (`rollout.breaks`) and of episodes that did not end well is chosen here. What a choice left out
travels with the table: `left_out`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from rollout.breaks import BREAKS, DRIFT, Breaks, cut
from rollout.errors import UserError, nearest
from rollout.flat_turns import Bools, FlatTurns, Ints, flat_turns
from rollout.rows import SCHEMA  # pyright: ignore[reportUnknownVariableType]
from rollout.sample_columns import columns

pa, pc = cast(Any, pyarrow), cast(Any, pyarrow.compute)
"""They have no types."""
Choice = Literal["keep", "mask", "drop"]
"""keep: as any other. mask: the sample is there, so its reward counts in its group, but its loss mask is all 0. drop:
no sample."""
CHOICES: tuple[Choice, ...] = ("keep", "mask", "drop")
LeftOut = dict[str, dict[str, int]]
"""By cause: how many `episodes` it touched and how many sampled `tokens` it cost."""

SAMPLES = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("episode_id", pa.string()),
        pa.field("task_id", pa.string()),
        pa.field("group_id", pa.string()),  # all episodes of a task, or of an agent that they began runs of
        pa.field("sample_index", pa.int32()),  # of the episode in its group; several children of one have the same
        pa.field("parent_episode_id", pa.string()),  # of a child; null: a sample of the job
        pa.field("resource", pa.string()),
        pa.field("agent", pa.string()),
        pa.field("model", pa.string()),
        pa.field("segment", pa.int32()),  # of the sample among the siblings of its episode, from 0
        pa.field("num_segments", pa.int32()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.int8())),  # 1 on exactly the tokens that the policy sampled and that count
        pa.field("logprobs", pa.list_(pa.float32())),  # processed, natural log; 0.0 where the mask is 0
        pa.field(
            "versions", pa.list_(pa.struct([("version", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))
        ),
        pa.field("prompt_length", pa.int32()),  # tokens before the first sampled one
        pa.field("temperature", pa.float64()),
        pa.field("reward", pa.float64()),  # of the episode: equal in all siblings
        pa.field("step_rewards", pa.list_(pa.float32())),  # by token, at the last sampled one of a turn; null: none
        pa.field("weight", pa.float64()),  # of the sample in a mean over episodes: siblings add up to 1
        pa.field("advantage", pa.float64()),  # null until chosen
        pa.field("status", pa.string()),
        pa.field("stop_reason", pa.string()),
        pa.field("version_min", pa.string()),
        pa.field("version_max", pa.string()),
    ]
)


COLUMNS = (*(name for name in SAMPLES.names if name in cast(Any, SCHEMA).names), "turns")
"""Of the dataset: what samples are made of."""
_INFO = b"rollout.samples"
_STATUSES = ("truncated", "failed", "dropped")
_CHUNK = 512
"""Rows worked on at once: bounds what the arithmetic takes beside the result."""
_MOST = np.iinfo(np.int32).max
"""Tokens that one Arrow list array can hold."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How rows become samples."""

    breaks: Breaks = "fork"
    drift: int = DRIFT
    """Tokens, for `realign` alone."""
    truncated: Choice = "keep"
    failed: Choice = "drop"
    dropped: Choice = "drop"

    def __post_init__(self) -> None:
        """Raises UserError for a choice there is not."""
        if self.breaks not in BREAKS:
            raise UserError(f"breaks: there is no {self.breaks!r}{nearest(self.breaks, BREAKS)}")
        if self.drift < 0:
            raise UserError(f"drift: expected a number of tokens from 0 on, found {self.drift}")
        for name in _STATUSES:
            if (choice := getattr(self, name)) not in CHOICES:
                raise UserError(f"{name}: there is no {choice!r}{nearest(choice, CHOICES)}")


def to_samples(
    rows: Any,
    breaks: Breaks = "fork",
    *,
    drift: int = DRIFT,
    truncated: Choice = "keep",
    failed: Choice = "drop",
    dropped: Choice = "drop",
) -> Any:
    """Rows (an Arrow table with the dataset's columns, at least COLUMNS) as a table of SAMPLES, in order.

    `breaks` says what becomes of segment breaks, `drift` how many tokens may differ at one that `realign` mends. The
    others say what becomes of episodes by their status; a failed or dropped one that is kept has no reward unless it
    was scored. Completed and truncated rows without a reward, and segments without token ids or logprobs, give no
    sample; turns that are not trainable have mask 0. `left_out` of the result tells all of that. Raises UserError for
    a choice there is not.
    """
    choices = Choices(breaks, drift, truncated, failed, dropped)
    batches = rows.select(COLUMNS).to_batches(max_chunksize=_CHUNK)
    parts = [part for batch in batches for part in _parts(batch, choices)]
    info = {"breaks": breaks, "left_out": summed(found for _, found in parts)}
    tables = [SAMPLES.empty_table(), *(table for table, _ in parts)]
    return pa.concat_tables(tables).replace_schema_metadata({_INFO: json.dumps(info)})


def left_out(samples: Any) -> LeftOut:
    """What the choices of `to_samples` cost, by cause: truncated, failed, dropped (episodes left out or masked),
    unscored, no_token_ids, no_logprobs, nothing_sampled, untrained (tokens of turns that are not trainable),
    behind_break (truncate), realigned (tokens that became mask 0), children (`without_children`).

    Travels with the table through Arrow and Parquet files, and is empty where it was lost (a concatenation keeps the
    first table's): use `summed` over the parts.
    """
    metadata: dict[bytes, bytes] = samples.schema.metadata or {}
    return json.loads(metadata[_INFO])["left_out"] if _INFO in metadata else {}


def also_left_out(samples: Any, found: LeftOut) -> Any:
    """The table, which tells that a later step left out more."""
    metadata: dict[bytes, bytes] = samples.schema.metadata or {}
    info = json.loads(metadata.get(_INFO, b"{}")) | {"left_out": summed([left_out(samples), found])}
    return samples.replace_schema_metadata(metadata | {_INFO: json.dumps(info)})


def without_children(samples: Any) -> Any:
    """The samples of the job alone; those of the runs that its agents began are in `left_out`, as `children`."""
    own = samples["parent_episode_id"].is_null()
    theirs = samples.filter(pc.invert(own))
    if not theirs.num_rows:
        return samples
    tokens = int(pc.sum(pc.list_flatten(theirs["loss_mask"])).as_py() or 0)
    found = {"children": {"episodes": pc.count_distinct(theirs["episode_id"]).as_py(), "tokens": tokens}}
    return also_left_out(samples.filter(own), found)


def summed(parts: Iterable[LeftOut]) -> LeftOut:
    """What several tables left out together."""
    whole: LeftOut = {}
    for part in parts:
        for cause, found in part.items():
            entry = whole.setdefault(cause, {"episodes": 0, "tokens": 0})
            for unit, count in found.items():
                entry[unit] += count
    return whole


def _parts(batch: Any, choices: Choices) -> list[tuple[Any, LeftOut]]:
    """A batch of rows as tables of samples: one, or several where one cannot hold all their tokens."""
    turns = flat_turns(batch["turns"])
    found: LeftOut = {}
    by_row = _sampled(turns, np.ones(len(turns.row), bool))
    _count(found, "untrained", _sampled(turns, ~turns.trainable) > 0, _sampled(turns, ~turns.trainable))
    kept, masked = _by_status(batch, by_row, choices, found)
    usable = _complete(turns, kept, found)
    whole = np.bincount(turns.row[~usable[turns.chain]], minlength=turns.rows) == 0
    pieces = cut(turns, usable, choices.breaks, choices.drift)
    if int(pieces.length.sum()) > _MOST and len(batch) > 1:
        middle = len(batch) // 2
        return [part for half in (batch[:middle], batch[middle:]) for part in _parts(half, choices)]
    trained = np.bincount(turns.row[pieces.turn], pieces.length * pieces.sampled, turns.rows).astype(np.int64)
    lost = _sampled(turns, usable[turns.chain] & turns.trainable) - trained
    _count(found, "behind_break" if choices.breaks == "truncate" else "realigned", lost > 0, lost)
    _count(found, "nothing_sampled", kept & whole & (by_row == 0), by_row)
    made = columns(turns, pieces, masked)
    row = pa.array(made.row)
    own = {name: batch[name].take(row) for name in COLUMNS if name != "turns"}
    arrays = {**own, **made.arrays, "advantage": pa.nulls(len(row), pa.float64())}
    return [(pa.table([arrays[name] for name in SAMPLES.names], schema=SAMPLES), found)]


def _by_status(batch: Any, sampled: Ints, choices: Choices, found: LeftOut) -> tuple[Bools, Bools]:
    """By row: whether it gives samples, and whether they are masked."""
    status = np.asarray(batch["status"])
    kept, masked = np.ones(len(batch), bool), np.zeros(len(batch), bool)
    for name in _STATUSES:
        there, choice = status == name, getattr(choices, name)
        if choice != "keep":
            _count(found, name, there, sampled)
            (masked if choice == "mask" else kept)[there] = choice == "mask"
    ended = (status == "completed") | (status == "truncated")
    unscored = kept & ended & np.asarray(batch["reward"].is_null())
    _count(found, "unscored", unscored, sampled)
    return kept & ~unscored, masked


def _complete(turns: FlatTurns, kept: Bools, found: LeftOut) -> Bools:
    """By segment: whether its row is kept and all its turns have ids and logprobs."""
    usable = np.ones(turns.chains, bool)
    usable[turns.chain] = kept[turns.row]
    for cause, has in (("no_token_ids", turns.has_ids), ("no_logprobs", turns.has_logprobs)):
        bad = np.zeros(turns.chains, bool)
        bad[turns.chain[~has]] = True
        bad &= usable
        turn = bad[turns.chain]
        _count(found, cause, np.bincount(turns.row[turn], minlength=turns.rows) > 0, _sampled(turns, turn))
        usable &= ~bad
    return usable


def _sampled(turns: FlatTurns, of: Bools) -> Ints:
    """Sampled tokens by row, of some of the turns."""
    return np.bincount(turns.row[of], turns.sampled_length[of], turns.rows).astype(np.int64)


def _count(found: LeftOut, cause: str, rows: Bools, tokens: Ints) -> None:
    if rows.any():
        found[cause] = {"episodes": int(rows.sum()), "tokens": int(tokens[rows].sum())}
