"""What must hold in a row besides its tokens: rules that yield what is wrong, a line each.

A row is a dict with the dataset's columns; its turns have the numbers of their tokens, `appended` and `sampled` (None
where the endpoint told no ids), in place of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from rollout.findings import Known
from rollout.trajectory import FailureKind, Status, StopReason

Row = dict[str, Any]
Rule = Callable[[Row, Known], Iterator[str]]


def identity(row: Row, known: Known) -> Iterator[str]:
    """The row is of this run, and its name is that of its sample; a child's goes on from its parent's."""
    if known.run_id not in (None, row["run_id"]):
        yield f"is of run {row['run_id']}, not of {known.run_id}"
    if (parent := row["parent_episode_id"]) is None:
        if row["episode_id"] != (expected := f"{row['group_id']}-{row['sample_index']}"):
            yield f"is {expected} by its group and sample"
        return
    task = f"{row['run_id']}-{row['task_index']}"
    if row["episode_id"].rpartition(".")[0] != parent or not parent.startswith(f"{task}-{row['sample_index']}"):
        yield f"is no child of {parent} by its name, sample {row['sample_index']} of {task}"
    if not row["group_id"].startswith(f"{task}."):
        yield f"is of group {row['group_id']}, which is none of the children of {task}"


def outcome(row: Row, known: Known) -> Iterator[str]:
    """A failure has a cause and no reward; what ended well has a reward, unless it is a child that is given none; the
    status is what the rest says."""
    status, failure, reward = row["status"], row["failure"], row["reward"]
    if status == Status.FAILED and reward is not None:
        yield f"failed, yet has the reward {reward:g}"
    if status in (Status.COMPLETED, Status.TRUNCATED) and reward is None and row["parent_episode_id"] is None:
        yield f"is {status} without a reward"
    if reward is not None and not math.isfinite(reward):
        yield f"has the reward {reward}"
    if failure is not None and (failure["kind"] not in set(FailureKind) or not failure["where"] or row["attempt"] < 1):
        yield "does not say what failed, where and after how many attempts"
    if status != (expected := _status(row)):
        yield f"is {status}, but {expected} by its stop reason, failure and drop reason"


def _status(row: Row) -> str:
    if row["drop_reason"] is not None:
        return Status.DROPPED
    if row["failure"] is not None:
        return Status.FAILED
    return Status.TRUNCATED if StopReason(row["stop_reason"]).truncated else Status.COMPLETED


def results(row: Row, known: Known) -> Iterator[str]:
    """Each call that the policy wrote has one result, in the order of the calls."""
    for number, turn in enumerate(row["turns"]):
        written = [part["call_id"] for part in turn["segments"] if part["call_id"] is not None]
        answered = [call["id"] for call in turn["tool_calls"]]
        said = not written and len(answered) == 1  # plain text can be the call (decisions/0006)
        if answered != written and not said:
            yield f"turn {number}: calls {written} have results {answered}"
        if any(call["result"] is None for call in turn["tool_calls"]):
            yield f"turn {number}: a call has no result"
        if any(call["skipped"] and call["error"] is None for call in turn["tool_calls"]):
            yield f"turn {number}: a call was skipped and does not say why"


def answers(row: Row, known: Known) -> Iterator[str]:
    """The policy was told each result, in order; of an episode that was broken off the last may be missing."""
    if row["status"] not in (Status.COMPLETED, Status.TRUNCATED):
        return
    messages = row["messages"]
    spoken = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if len(spoken) < len(row["turns"]):
        yield f"{len(spoken)} messages of the policy for {len(row['turns'])} turns"
        return
    for number, at in enumerate(spoken[len(spoken) - len(row["turns"]) :]):
        called = [call["id"] for call in messages[at]["tool_calls"] or ()]
        told: list[str | None] = []
        for message in messages[at + 1 :]:
            if message["role"] != "tool":
                break
            told.append(message["tool_call_id"])
        if told != called:
            yield f"turn {number}: calls {called} were answered as {told}"


def counts(row: Row, known: Known) -> Iterator[str]:
    """Counts are those of the turns and within the limits."""
    calls = [call for turn in row["turns"] for call in turn["tool_calls"]]
    errors = sum(call["error"] is not None for call in calls)
    told = {"num_turns": len(row["turns"]), "tool_calls": len(calls), "tool_errors": errors}
    yield from (f"{name} is {row[name]}, its turns have {value}" for name, value in told.items() if row[name] != value)
    if (row["restored_turns"] or 0) > len(row["turns"]):
        yield f"{row['restored_turns']} restored turns of {len(row['turns'])}"
    if row["cached_tokens"] > row["prompt_tokens"] > 0:
        yield f"{row['cached_tokens']} cached tokens of {row['prompt_tokens']} in prompts"
    if (limits := known.limits) is not None:
        if len(row["turns"]) > limits.max_turns:
            yield f"{len(row['turns'])} turns, the limit is {limits.max_turns}"
        if row["completion_tokens"] > limits.max_tokens:
            yield f"{row['completion_tokens']} sampled tokens, the limit is {limits.max_tokens}"
        longest = max((turn["sampled"] or 0 for turn in row["turns"]), default=0)
        if longest > limits.turn_tokens:
            yield f"{longest} sampled tokens in a turn, the limit is {limits.turn_tokens}"


def segments(row: Row, known: Known) -> Iterator[str]:
    """A new segment begins exactly where a turn says why."""
    expected = 0
    for number, turn in enumerate(row["turns"]):
        expected += turn["segment_break"] is not None
        if turn["segment"] != expected:
            yield f"turn {number}: is in segment {turn['segment']}, {expected} by the breaks so far"
            return


def versions(row: Row, known: Known) -> Iterator[str]:
    """Version spans follow each other over all sampled tokens of a turn."""
    names: set[str] = set()
    for number, turn in enumerate(row["turns"]):
        spans = turn["versions"]
        names |= {span["version"] for span in spans}
        if any(not span["version"] or span["start"] >= span["end"] for span in spans):
            yield f"turn {number}: a version span is empty or has no name"
        starts, ends = [span["start"] for span in spans], [span["end"] for span in spans]
        if spans and (starts != [0, *ends[:-1]] or turn["sampled"] not in (None, ends[-1])):
            covered = ", ".join(f"{start} to {end}" for start, end in zip(starts, ends, strict=True))
            yield f"turn {number}: version spans cover {covered} of {turn['sampled']} sampled tokens"
    if not names.issuperset({row["version_min"], row["version_max"]} - {None}):
        yield f"version_min {row['version_min']} and version_max {row['version_max']} of {sorted(names)}"


def sampled_ids(row: Row, known: Known) -> Iterator[str]:
    """There are as many ids as the engine says it sampled."""
    sampled = [turn["sampled"] for turn in row["turns"]]
    if None not in sampled and sum(sampled) != row["completion_tokens"]:
        yield f"{sum(sampled)} ids for {row['completion_tokens']} tokens that the engine sampled"


def prefixes(row: Row, known: Known) -> Iterator[str]:
    """Each prompt was all that came before it in its segment, by the engine's own count of what it read."""
    read = prompt_tokens(row)
    if read is not None and row["prompt_tokens"] not in (0, read):  # 0: the endpoint counts none
        yield f"prompts have {read} tokens by its segments, the engine read {row['prompt_tokens']}"


def prompt_tokens(row: Row) -> int | None:
    """Tokens in all prompts of a row if each continues its segment; None where an endpoint told no ids."""
    if any(turn["appended"] is None or turn["sampled"] is None for turn in row["turns"]):
        return None
    read, held, segment = 0, 0, None
    for turn in row["turns"]:
        held = turn["appended"] + (held if turn["segment"] == segment else 0)
        read += held
        held, segment = held + turn["sampled"], turn["segment"]
    return read


RULES: dict[Rule, str] = {
    identity: "one row a sample",
    outcome: "a failure is no reward",
    results: "one result a call",
    answers: "one result a call",
    counts: "counts",
    segments: "segments",
    versions: "versions cover what was sampled",
    sampled_ids: "one id a sampled token",
    prefixes: "prompts continue what was sampled",
}
"""Rules and how findings name them."""
