"""Sessions in whole episodes of a job: what a task's session opens with, what is kept, and that nothing leaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import counter, lease, says, setting

from rollout.agents.chatting import Admits
from rollout.agents.conversation_stores import ConversationsConfig, Store, open_store
from rollout.agents.conversations import opened, said, state_set
from rollout.agents.loading import Around, Loaded, load_agent
from rollout.agents.open_session import BROKEN_OFF
from rollout.agents.parts import Budget
from rollout.agents.pricing import Price, Prices
from rollout.agents.section import AgentConfig
from rollout.episode import run_episode
from rollout.errors import UserError
from rollout.invariants import check_rows
from rollout.row_rules import Known
from rollout.rows import to_table
from rollout.trajectory import FailureKind, Message, Sampling, StopReason, Task, Trajectory

OWN = '''
from rollout.agents.guardrails import Block
from rollout.agents.open_session import at_hand

def remember(name: str) -> str:
    """Keeps a name.

    Args:
        name: The name.
    """
    state = at_hand().state
    state["names"] = [*state.get("names", []), name]
    state.pop("gone", None)
    return f"{len(state['names'])} names"

def spoil() -> str:
    """Puts into the state what it cannot hold."""
    at_hand().state["odd"] = {1, 2}
    return "done"

def never(text):
    return Block("not that")

def by_mood(text):
    return Block(at_hand().state["mood"])
'''
HISTORY: tuple[Message, ...] = (
    {"role": "user", "content": "I am Ann."},
    {"role": "assistant", "content": "Hello Ann."},
    {"role": "user", "content": "And my dog is Rex."},
    {"role": "assistant", "content": "Hello Rex."},
)
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"amount": 1}'}}],
}


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def place_of(kind: str, folder: Path) -> dict[str, Any]:
    return {"store": kind, "path": str(folder / "kept")}


async def talked(section: dict[str, Any], id: str, *messages: Message, **state: Any) -> Store:
    """A store with a session in it."""
    store = await open_store(ConversationsConfig.model_validate(section))
    events = [opened("clerk", "ann", 1.0), *(said(message, 2.0) for message in messages)]
    for number, event in enumerate([*events, *(state_set(key, value, 3.0) for key, value in state.items())]):
        await store.append(id, number, event)
    return store


async def agent(folder: Path, sessions: dict[str, Any], **section: Any) -> Loaded:
    (folder / "own.py").write_text(OWN)
    prices = Prices({"scripted": Price(1.0, 1.0)})
    config = AgentConfig.model_validate({"name": "clerk", "sessions": sessions, **section})
    return await load_agent(config, Around(Sampling(), None, Budget(prices, "scripted")))


def task(session: Any = "talk", **data: Any) -> Task:
    first = next(iter(counter().tasks(0)))
    return replace(first, messages=({"role": "user", "content": "Who am I?"},), data={**first.data, "session": session})


async def play(loaded: Loaded, *lines: str, of: Task | None = None, **changes: Any) -> Trajectory:
    job = setting(says(*lines), counter(), conduct=loaded.conduct, agent=loaded.parts.agent)
    played = await run_episode(lease(of or task(), **changes), job)
    findings, _ = check_rows(to_table([played]).to_batches()[0], Known())
    assert findings == []
    return played


def texts(messages: Sequence[Message]) -> list[str]:
    return [message["content"] for message in messages]


def events(played: Trajectory) -> list[tuple[int, str, str]]:
    return [(event.turn, event.kind, event.name) for event in played.events]


@pytest.mark.parametrize("kind", ["json", "sqlite"])
async def test_a_task_opens_with_its_session_and_leaves_it_as_it_was(kind: str, tmp_path: Path) -> None:
    section = place_of(kind, tmp_path)
    store = await talked(section, "talk", *HISTORY, mood="fine")
    told = {"template": "Mood: {{ session.state.mood }} of {{ user.name }} in {{ session.id }}"}
    played = await play(await agent(tmp_path, section, instructions=told), "You are Ann.")
    system, *rest = texts(played.messages)
    assert system == "Mood: fine of ann in run-0-0.1"
    assert rest == [*texts(HISTORY), "Who am I?", "You are Ann."]
    assert played.turns[0].segment == 0 and len(played.turns) == 1, "what was said before is prompt, and not sampled"
    assert events(played) == [(0, "session", "run-0-0.1")]
    assert played.events[0].detail == {"messages": 4, "state": {"mood": "fine"}, "kept": False}
    kept = await store.load("talk")
    assert kept is not None and kept.events == 6 and len(await store.headers()) == 1


async def test_as_many_messages_are_taken_up_as_the_job_says_from_something_the_user_said(tmp_path: Path) -> None:
    section = place_of("json", tmp_path)
    await talked(section, "talk", *HISTORY)
    for most, expected in ((3, texts(HISTORY[2:])), (2, texts(HISTORY[2:])), (0, [])):
        loaded = await agent(tmp_path, {**section, "history": most}, instructions="Be brief.")
        assert texts((await play(loaded, "Ann.")).messages)[1:-2] == expected


async def test_a_session_that_broke_off_behind_a_call_has_a_result_for_it(tmp_path: Path) -> None:
    section = place_of("sqlite", tmp_path)
    await talked(section, "talk", HISTORY[0], CALL)
    played = await play(await agent(tmp_path, section, instructions="Be brief."), "Ann.")
    assert [message["role"] for message in played.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
        "assistant",
    ]
    assert texts(played.messages)[3] == BROKEN_OFF


async def test_what_is_set_in_the_state_is_in_the_row_and_no_other_sample_sees_it(tmp_path: Path) -> None:
    section = place_of("sqlite", tmp_path)
    store = await talked(section, "talk", *HISTORY, gone=1)
    loaded = await agent(tmp_path, section, tools=["add", "submit", {"ref": f"{tmp_path}/own.py:remember"}])
    lines = (call("remember", name="Ann"), call("remember", name="Rex"), "Done.")
    group = await asyncio.gather(*(play(loaded, *lines, sample_index=sample) for sample in range(4)))
    for sample, played in enumerate(group):
        assert [turn.tool_uses[0].result.content for turn in played.turns[:2]] == ["1 names", "2 names"]
        assert events(played) == [
            (0, "session", f"run-0-{sample}.1"),
            (0, "state", "names"),
            (0, "state", "gone"),
            (1, "state", "names"),
        ]
        assert [event.detail.get("value") for event in played.events[1:]] == [["Ann"], None, ["Ann", "Rex"]]
    kept = await store.load("talk")
    assert kept is not None and kept.state == {"gone": 1} and len(await store.headers()) == 1


@pytest.mark.parametrize("kind", ["json", "sqlite"])
async def test_rollouts_are_kept_as_sessions_of_their_own_where_the_job_says_so(kind: str, tmp_path: Path) -> None:
    section = place_of(kind, tmp_path) | {"keep_rollouts": True, "user": "ann"}
    store = await talked(section, "talk", *HISTORY, mood="fine")
    loaded = await agent(tmp_path, section, tools=["add", "submit", {"ref": f"{tmp_path}/own.py:remember"}])
    lines = (call("remember", name="Ann"), "You are Ann.")
    await asyncio.gather(*(play(loaded, *lines, sample_index=sample) for sample in range(3)))
    again = await play(loaded, *lines, attempt=2)
    await play(loaded, *lines, attempt=1)  # as a run that was resumed does
    assert [header.id for header in sorted(await store.headers(), key=lambda header: header.id)] == [
        "run-0-0.1",
        "run-0-0.2",
        "run-0-1.1",
        "run-0-2.1",
        "talk",
    ]
    kept = await store.load(again.events[0].name)
    assert kept is not None and (kept.app, kept.user, kept.under_way) == ("clerk", "ann", False)
    assert texts(kept.messages) == [*texts(HISTORY), "Who am I?", "", "1 names", "You are Ann."]
    assert kept.state == {"mood": "fine", "names": ["Ann"]}
    (turn,) = kept.turns
    assert (turn.input, turn.output, turn.model_calls, turn.model) == ("Who am I?", "You are Ann.", 2, "scripted")
    assert [tool.name for tool in turn.tools] == ["remember"] and turn.cost is not None
    on = await play(loaded, "Still Ann.", of=task("run-0-1.1"), run_id="next")
    assert texts(on.messages)[-3:] == ["You are Ann.", "Who am I?", "Still Ann."], "another job goes on from there"


async def test_what_a_guardrail_blocked_is_no_part_of_a_session(tmp_path: Path) -> None:
    section = place_of("json", tmp_path) | {"keep_rollouts": True}
    store = await talked(section, "talk", *HISTORY)
    for at, expected in (("input", texts(HISTORY)), ("output", [*texts(HISTORY), "Who am I?", "not that"])):
        rail = {"name": "no", "at": at, "check": f"{tmp_path}/own.py:never"}
        played = await play(await agent(tmp_path, section, guardrails=[rail]), "You are Ann.", run_id=at)
        assert played.stop_reason is StopReason.GUARDRAIL
        kept = await store.load(f"{at}-0-0.1")
        assert kept is not None and texts(kept.messages) == expected


async def test_a_state_that_is_no_json_fails_the_episode_and_says_where(tmp_path: Path) -> None:
    loaded = await agent(tmp_path, {}, tools=["add", "submit", {"ref": f"{tmp_path}/own.py:spoil"}])
    played = await play(loaded, call("spoil"), "Done.", of=task(None))
    assert played.failure is not None and played.failure.kind is FailureKind.AGENT
    assert played.failure.message == "session.state.odd: expected JSON, found set"
    assert [use.result.content for use in played.turns[0].tool_uses] == ["done"], "the call was made"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("tlak", "data.session: there is no session 'tlak'; did you mean 'talk'?"),
        (7, "data.session: expected a session's id, found int"),
        ("../talk", "conversation '../talk': expected an id of letters"),
    ],
)
async def test_a_session_that_is_not_there_costs_its_own_episode(named: Any, expected: str, tmp_path: Path) -> None:
    section = place_of("json", tmp_path)
    await talked(section, "talk", *HISTORY)
    played = await play(await agent(tmp_path, section), "Ann.", of=task(named))
    assert played.failure is not None and played.failure.kind is FailureKind.SEED
    assert expected in played.failure.message


async def test_a_file_that_holds_something_else_costs_its_own_episode(tmp_path: Path) -> None:
    section = place_of("json", tmp_path)
    await talked(section, "talk", *HISTORY)
    loaded = await agent(tmp_path, section)
    (tmp_path / "kept" / "talk.jsonl").write_text("{}\n")
    played = await play(loaded, "Ann.")
    assert played.failure is not None and "talk.jsonl:1: expected an event" in played.failure.message


async def test_a_store_that_takes_nothing_any_more_fails_the_episode(tmp_path: Path) -> None:
    section = place_of("sqlite", tmp_path) | {"keep_rollouts": True}
    loaded = await agent(tmp_path, section)
    (tmp_path / "kept").write_bytes(b"no database, and long enough to be taken for one" * 40)
    played = await play(loaded, "Ann.", of=task(None))
    assert played.failure is not None and played.failure.kind is FailureKind.SEED
    assert "DatabaseError" in played.failure.message


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"store": "json"}, "agent.sessions.path: missing; store json needs one"),
        ({"path": "x"}, "agent.sessions.path: not for store memory"),
        ({"keep_rollouts": True}, "agent.sessions.keep_rollouts: store memory ends with its process"),
    ],
)
def test_a_section_that_does_not_fit_together_is_told(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        AgentConfig.model_validate({"sessions": section})


async def test_a_place_that_cannot_be_used_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("text")
    with pytest.raises(UserError, match=r"agent\.sessions\.path: .*kept: expected a folder"):
        await agent(tmp_path, place_of("json", tmp_path))


async def test_a_session_that_is_summed_up_before_its_first_turn_is_kept_whole(tmp_path: Path) -> None:
    section = place_of("json", tmp_path) | {"keep_rollouts": True}
    store = await talked(section, "talk", *HISTORY)
    context = {"context_window": 150, "compact_threshold": 0.5, "keep_last": 1}
    loaded = await agent(tmp_path, section, instructions="Be brief.", context=context)
    played = await play(loaded, "Ann has a dog.", "You are Ann.")
    assert [turn.segment for turn in played.turns] == [0, 1], "the summary is a turn before the first"
    kept = await store.load("run-0-0.1")
    assert kept is not None and texts(kept.messages) == [*texts(HISTORY), "Who am I?", "You are Ann."]


async def test_a_guardrail_finds_the_session_before_the_conversation_opens(tmp_path: Path) -> None:
    section = place_of("json", tmp_path)
    await talked(section, "talk", *HISTORY, mood="fine")
    rail = {"name": "mood", "at": "input", "check": f"{tmp_path}/own.py:by_mood"}
    loaded = await agent(tmp_path, section, guardrails=[rail])
    conduct = loaded.conduct(loaded.parts.agent, lease(task()))
    assert isinstance(conduct, Admits)
    assert await conduct.admitted({"role": "user", "content": "Hello."}, 0) == "fine"


def test_a_pipeline_makes_no_model_calls_that_a_session_could_keep() -> None:
    section = {"sub_agents": {"one": {"use": "tool"}}, "pipeline": {"agents": ["one"]}, "sessions": {"store": "memory"}}
    with pytest.raises(ValueError, match=r"agent\.sessions: a pipeline makes no model calls"):
        AgentConfig.model_validate(section)
