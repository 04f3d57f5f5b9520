"""What must hold when a run has ended, whatever was done to it (docs/design.md, invariants 1 to 4 and 6)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_runs.plan import Plan
from rollout.dataset import open_table

Row = dict[str, Any]
KINDS = ("seed", "model", "tool", "verify", "lost")
"""What a failure may be: `internal` is a bug of ours."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions of a run."""

    opened: int = 0
    closed: int = 0
    died: int = 0
    """Those open at a host when it was killed."""


def read_rows(run: Path) -> list[Row]:
    """All committed rows."""
    return open_table(run).to_pyarrow_table().to_pylist()


def check_rows(plan: Plan, rows: Sequence[Row], lines: Sequence[Sequence[int]], attempts: int) -> Iterator[str]:
    """What is wrong with the rows of a run whose policy says `lines`."""
    found = Counter((row["task_index"], row["sample_index"]) for row in rows)
    wanted = {(task, sample) for task in range(plan.tasks) for sample in range(plan.samples)}
    yield from _some("(task, sample) without a row", sorted(wanted - set(found)))
    yield from _some("(task, sample) nobody asked for", sorted(set(found) - wanted))
    yield from _some("(task, sample) with several rows", sorted(key for key, count in found.items() if count > 1))
    for row in rows:
        for wrong in _row(plan, row, lines, attempts):
            yield f"{row['episode_id']}: {wrong}"
    prompts = {tuple(tuple(turn["prompt_ids"]) for turn in row["turns"]) for row in rows if row["failure"] is None}
    if len(prompts) > 1:
        yield f"{len(prompts)} different prompts, expected one: all tasks are alike"


def _some(what: str, keys: Sequence[Any]) -> Iterator[str]:
    if keys:
        yield f"{len(keys)} {what}: {keys[:5]}"


def _row(plan: Plan, row: Row, lines: Sequence[Sequence[int]], attempts: int) -> Iterator[str]:
    if not 1 <= row["attempt"] <= attempts:
        yield f"attempt {row['attempt']} of {attempts}"
    yield from _failed(plan, row, attempts) if row["failure"] is not None else _played(plan, row)
    yield from _calls(row)
    yield from _tokens(row, lines)


def _failed(plan: Plan, row: Row, attempts: int) -> Iterator[str]:
    """Invariants 2 and 10: no reward, a failure that says what and where, and only after the last attempt. There are
    fewer faults than attempts, so only replicas that go on talking garbage may take them all."""
    failure = row["failure"]
    if row["status"] != "failed" or row["reward"] is not None:
        yield f"failed with status {row['status']} and reward {row['reward']}"
    if failure["kind"] not in KINDS or not failure["where"] or not failure["message"]:
        yield f"failure {failure}"
    if row["attempt"] != attempts or not plan.has("garbage"):
        yield f"failed for good at attempt {row['attempt']} of {attempts}: {failure}"


def _played(plan: Plan, row: Row) -> Iterator[str]:
    """A scripted episode has only one way to go."""
    if (row["status"], row["stop_reason"], row["reward"]) != ("completed", "environment", 1.0):
        yield f"{row['status']} by {row['stop_reason']} with reward {row['reward']}"
    if row["num_turns"] != plan.turns:
        yield f"{row['num_turns']} turns, expected {plan.turns}"
    results = [call["result"] for turn in row["turns"] for call in turn["tool_calls"]]
    if results != [*map(str, range(1, plan.turns)), str(plan.turns - 1)]:
        yield f"its tools answered {results}"


def _calls(row: Row) -> Iterator[str]:
    """Invariant 4: one result a call, in order; in the messages too."""
    for number, turn in enumerate(row["turns"]):
        asked = [part["call_id"] for part in turn["segments"] if part["kind"] == "tool_call"]
        answered = [call["id"] for call in turn["tool_calls"]]
        if asked != answered and not (row["failure"] is not None and number == len(row["turns"]) - 1):
            yield f"turn {number} calls {asked} and has results for {answered}"
    told = [message["tool_call_id"] for message in row["messages"] if message["role"] == "tool"]
    known = [call["id"] for turn in row["turns"] for call in turn["tool_calls"]]
    if told != known:
        yield f"the policy was told of results {told}, the turns have {known}"


def _tokens(row: Row, lines: Sequence[Sequence[int]]) -> Iterator[str]:
    """Invariant 3: the ids are those that were sampled, and the engine read what the turns say it read."""
    length = asked = 0
    for number, turn in enumerate(row["turns"]):
        sampled = turn["completion_ids"]
        if sampled != list(lines[min(number, len(lines) - 1)]):
            yield f"turn {number} has other ids than were sampled"
        if len(turn["logprobs"]) != len(sampled) or any(value != 0.0 for value in turn["logprobs"]):
            yield f"turn {number} has other logprobs than were sampled"
        if turn["segment_break"] is not None:
            yield f"turn {number} opens a segment: {turn['segment_break']}"
        length += len(turn["prompt_ids"])
        asked += length
        length += len(sampled)
    if row["prompt_tokens"] != asked:
        yield f"the engine read {row['prompt_tokens']} tokens, the turns say {asked}"


def check_files(run: Path) -> Iterator[str]:
    """Files nobody will ever read."""
    table = open_table(run)
    replaced = table.vacuum(0, dry_run=True, enforce_retention_duration=False)  # kept for a while for their readers
    kept = {*replaced, *(uri.rpartition("/")[2] for uri in table.file_uris())}
    stray = sorted(path.name for path in (run / "episodes").glob("part-*.parquet") if path.name not in kept)
    yield from _some("part files that no commit names", stray)


def replaced_hosts(folder: Path) -> set[int]:
    """Processes of the hosts that a run's watchdog ended, by the logs of its starts."""
    logs = [log.read_text(errors="replace") for log in folder.glob("start-*.log")]
    return {int(pid) for log in logs for pid in re.findall(r"host \d+: process (\d+) on \S+ was ended", log)}


def check_sessions(diary: Path, dead_hosts: set[int]) -> tuple[Sessions, list[str]]:
    """Invariant 6: every session was closed once, or was at a host that was killed."""
    lines = [line.split() for line in diary.read_text().splitlines()] if diary.exists() else []
    opened = {key: int(pid) for verb, key, pid in lines if verb == "open"}
    closed = Counter(key for verb, key, _ in lines if verb == "close")
    left = {key: pid for key, pid in opened.items() if key not in closed}
    died = sum(pid in dead_hosts for pid in left.values())
    wrong = list(_some("sessions closed twice", [key for key, count in closed.items() if count > 1]))
    wrong += _some("sessions left open at living hosts", [key for key, pid in left.items() if pid not in dead_hosts])
    return Sessions(len(opened), len(closed), died), wrong
