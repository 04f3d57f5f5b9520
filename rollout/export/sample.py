"""One training sample as the formats read it, from tables of SAMPLES.

Token arrays are numpy views of the table's columns, so a projection makes no Python object a token. All of them have
the length of `token_ids`; the `response_` ones are their ends, from the first sampled token on, and hold what the
environment said in between as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

pa = cast(Any, pyarrow)
"""It has no types."""
Array = np.ndarray[Any, np.dtype[Any]]
_TOKENS = ("token_ids", "loss_mask", "logprobs", "step_rewards")
_ORDER = ("group_id", "sample_index", "episode_id", "segment")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence of tokens that the policy saw or wrote: a row of SAMPLES, whose words these are."""

    run_id: str
    episode_id: str
    task_id: str
    group_id: str
    sample_index: int
    resource: str
    segment: int
    num_segments: int
    token_ids: Array
    loss_mask: Array
    logprobs: Array
    versions: list[dict[str, Any]]
    prompt_length: int
    temperature: float
    reward: float
    step_rewards: Array | None
    weight: float
    advantage: float | None
    status: str
    stop_reason: str
    version_min: str | None
    version_max: str | None
    number: int = 0
    """Of the sample in this export, from 0; so the next two of its episode and its group."""
    episode_number: int = 0
    group_number: int = 0
    parent_episode_id: str | None = None
    """Of a child."""

    @property
    def prompt_ids(self) -> Array:
        """Before the first sampled token."""
        return self.token_ids[: self.prompt_length]

    @property
    def response_ids(self) -> Array:
        """From the first sampled token on."""
        return self.token_ids[self.prompt_length :]

    @property
    def response_mask(self) -> Array:
        """1 on what the policy sampled, 0 on what the environment said."""
        return self.loss_mask[self.prompt_length :]

    @property
    def response_logprobs(self) -> Array:
        """0.0 where the mask is 0."""
        return self.logprobs[self.prompt_length :]

    @property
    def is_last(self) -> bool:
        """Of its siblings."""
        return self.segment == self.num_segments - 1

    @property
    def truncated(self) -> bool:
        """A limit ended the episode, not the policy."""
        return self.status == "truncated"

    @property
    def sampled(self) -> int:
        """How many tokens the policy sampled."""
        return int(self.loss_mask.sum())

    def token_advantages(self) -> Array:
        """float32 by token: the advantage where the mask is 1, else 0. It must have been computed."""
        assert self.advantage is not None, "the format takes advantages and none were computed"
        return self.loss_mask.astype(np.float32) * np.float32(self.advantage)

    def runs(self) -> list[tuple[int, int, bool]]:
        """The sequence as (start, end, whether sampled), in order, cut behind the prompt whatever is sampled."""
        edges = cast(list[int], (np.flatnonzero(np.diff(self.loss_mask)) + 1).tolist())
        bounds = sorted({0, self.prompt_length, *edges, len(self.loss_mask)})
        return [(start, end, bool(self.loss_mask[start])) for start, end in pairwise(bounds)]

    def rollout(self) -> dict[str, Any]:
        """Where the sample is from: the column of that name in all token formats (ROLLOUT)."""
        return {name: getattr(self, name) for name in ROLLOUT.names}


ROLLOUT = pa.struct(
    [
        *[(name, pa.string()) for name in ("run_id", "episode_id", "task_id", "group_id")],
        ("sample_index", pa.int32()),
        ("resource", pa.string()),
        ("segment", pa.int32()),
        ("num_segments", pa.int32()),
        *[(name, pa.float64()) for name in ("weight", "reward", "advantage")],
        *[(name, pa.string()) for name in ("status", "stop_reason", "version_min", "version_max")],
    ]
)


def samples_of(tables: Iterable[Any]) -> Iterator[Sample]:
    """The samples of tables of SAMPLES, groups and siblings together, in order of sample index and segment.

    Children have the sample index of the sample they belong to. A group is in one table; that is what the numbers of
    groups and episodes rely on.
    """
    number = episode = group = -1
    before = ("", "")
    for table in tables:
        for values in _rows(table):
            episode += values["episode_id"] != before[1]
            group += values["group_id"] != before[0]
            number += 1
            before = (values["group_id"], values["episode_id"])
            yield Sample(**values, number=number, episode_number=episode, group_number=group)


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    table = table.combine_chunks()
    names = [name for name in Sample.__slots__ if name in table.schema.names]
    lists = {name: _lists(table[name]) for name in _TOKENS}
    rest = table.select([name for name in names if name not in _TOKENS])
    order = table.select(_ORDER).append_column("at", pa.array(range(table.num_rows)))
    for at in order.sort_by([(name, "ascending") for name in _ORDER])["at"].to_pylist():
        yield rest.slice(at, 1).to_pylist()[0] | {name: of[at] for name, of in lists.items()}


def _lists(column: Any) -> list[Array | None]:
    """Each list of a column as a view of the column's values; None where it is null."""
    chunk = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    values, offsets = chunk.values.to_numpy(zero_copy_only=True), chunk.offsets.to_numpy()
    return [
        values[start:end] if valid else None
        for start, end, valid in zip(offsets[:-1], offsets[1:], chunk.is_valid().to_pylist(), strict=True)
    ]
