"""Rows to derive samples from, written by hand or drawn, and the plainest way to derive them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from rollout.rows import SCHEMA
from rollout.samples import SAMPLES


def turn(
    prompt: Sequence[int] | None, sampled: Sequence[int] | None, segment: int = 0, **others: Any
) -> dict[str, Any]:
    """A turn as the dataset holds it; a token's logprob tells the token: -id / 8."""
    told = {
        "segment": segment,
        "prompt_ids": prompt,
        "completion_ids": sampled,
        "logprobs": None if sampled is None else [-token / 8 for token in sampled],
        "versions": [{"version": "v1", "start": 0, "end": len(sampled)}] if sampled else [],
        "sampling": {"temperature": 0.5},
    }
    return told | others


def row(*turns: dict[str, Any], index: int = 0, sample: int = 0, **others: Any) -> dict[str, Any]:
    """A completed episode of reward 1."""
    told = {
        "run_id": "run",
        "episode_id": f"run-{index}-{sample}",
        "task_id": f"t{index}",
        "task_index": index,
        "group_id": f"run-{index}",
        "sample_index": sample,
        "resource": "counter",
        "status": "completed",
        "stop_reason": "done",
        "reward": 1.0,
        "turns": list(turns),
        "completion_tokens": sum(len(turn["completion_ids"] or ()) for turn in turns),
    }
    return told | others


def table(*rows: dict[str, Any]) -> Any:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


@st.composite
def turns(draw: st.DrawFn) -> dict[str, Any]:
    tokens = st.lists(st.integers(1, 9), max_size=4)
    sampled = draw(st.none() | tokens)
    prompt = draw(st.none() | tokens) if sampled is None else draw(tokens)
    count = len(sampled or ())
    middle = draw(st.integers(0, count))
    spans = [{"version": "a", "start": 0, "end": middle}, {"version": "b", "start": middle, "end": count}]
    made = turn(
        prompt,
        sampled,
        draw(st.integers(0, 3)),
        versions=[span for span in spans if span["start"] < span["end"]],
        reward=draw(st.none() | st.sampled_from([0.5, -1.0])),
    )
    return made if draw(st.integers(0, 9)) else made | {"logprobs": None}


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of any status with turns of any kind; segments come in any order, as those of several agents would."""
    made: list[dict[str, Any]] = []
    for sample in range(draw(st.integers(0, 4))):
        status = draw(st.sampled_from(["completed", "truncated", "failed", "dropped"]))
        reward = draw(st.none() | st.sampled_from([0.0, 1.0])) if status != "failed" else None
        own = draw(st.lists(turns(), max_size=6))
        made.append(row(*own, sample=sample, status=status, reward=reward))
    return made


def plainly(rows: Sequence[dict[str, Any]], breaks: str, keep: Sequence[str]) -> list[dict[str, Any]]:
    """What `to_samples` gives, token by token; for all but `realign`."""
    made: list[dict[str, Any]] = []
    for entry in rows:
        scored = entry["reward"] is not None or entry["status"] in ("failed", "dropped")
        if entry["status"] in keep and scored:
            kept = {name: entry.get(name) for name in SAMPLES.names}
            made += [kept | sample for sample in _siblings(entry, breaks)]
    return made


def _siblings(entry: dict[str, Any], breaks: str) -> list[dict[str, Any]]:
    numbers = sorted({turn["segment"] for turn in entry["turns"]})
    segments = [[turn for turn in entry["turns"] if turn["segment"] == number] for number in numbers]
    if breaks == "truncate":
        segments = segments[:1]
    segments = [segment for segment in segments if all(_whole(turn) for turn in segment)]
    if breaks == "per_turn":
        segments = [segment[: end + 1] for segment in segments for end in range(len(segment))]
    samples = [sample for segment in segments if (sample := _sample(segment, breaks == "per_turn")) is not None]
    return [
        sample | {"segment": number, "num_segments": len(samples), "weight": 1 / len(samples)}
        for number, sample in enumerate(samples)
    ]


def _whole(turn: dict[str, Any]) -> bool:
    return all(turn[name] is not None for name in ("prompt_ids", "completion_ids", "logprobs"))


def _sample(segment: Sequence[dict[str, Any]], last_alone: bool) -> dict[str, Any] | None:
    ids, mask, logprobs, versions = [], [], [], []
    temperature = prompt_length = None
    for turn in segment:
        counts = not last_alone or turn is segment[-1]
        ids += turn["prompt_ids"]
        if counts and turn["completion_ids"] and prompt_length is None:
            prompt_length, temperature = len(ids), turn["sampling"]["temperature"]
        if counts:
            versions += _moved(turn["versions"], len(ids))
        ids += turn["completion_ids"]
        mask += [0] * len(turn["prompt_ids"]) + [int(counts)] * len(turn["completion_ids"])
        logprobs += [0.0] * len(turn["prompt_ids"]) + [counts * value for value in turn["logprobs"]]
    if prompt_length is None:
        return None
    return {
        "token_ids": ids,
        "loss_mask": mask,
        "logprobs": logprobs,
        "versions": versions,
        "temperature": temperature,
        "prompt_length": prompt_length,
    }


def _moved(spans: Sequence[dict[str, Any]], by: int) -> Iterator[dict[str, Any]]:
    for span in spans:
        yield span | {"start": by + span["start"], "end": by + span["end"]}
