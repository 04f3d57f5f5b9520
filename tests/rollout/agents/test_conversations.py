"""Conversations: every event is kept when it comes, by both sides, in every store alike."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.agents.conversation_stores import ConversationsConfig, JsonStore, SqliteStore, Store, open_store
from rollout.agents.conversations import (
    Conflict,
    Event,
    TurnSummary,
    UsedTool,
    checked_json,
    clean_up,
    folded,
    from_line,
    new_id,
    opened,
    said,
    selected,
    state_removed,
    state_set,
    to_line,
    turn_ended,
)
from rollout.errors import UserError
from rollout.trajectory import Message

USER: Message = {"role": "user", "content": "What is 2 + 2? \ud83d \u2028"}
CALLS: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
}
TURN = TurnSummary("agent", "m", "What", "4", (UsedTool("add", "{}", "4"),), 2, 10, 5, None, 0.25, 1.5, 3.0)
EVENTS = (
    opened("app", "ann", 1.0),
    said(USER, 2.0),
    said(CALLS, 3.0),
    said({"role": "tool", "content": "4", "tool_call_id": "c"}, 4.0),
    state_set("steps", [1, {"a": None}], 5.0),
    state_set("gone", 1, 6.0),
    state_removed("gone", 7.0),
    turn_ended(TURN, 8.0),
)


@pytest.fixture(params=["memory", "json", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    path = None if request.param == "memory" else str(tmp_path / "kept")
    return await open_store(ConversationsConfig(store=request.param, path=path))


async def keep(store: Store, id: str, *events: Event) -> None:
    for number, event in enumerate(events):
        await store.append(id, number, event)


async def test_a_conversation_is_what_its_events_make_of_it_user_included(store: Store) -> None:
    assert await store.load("a") is None
    await keep(store, "a", *EVENTS)
    conversation = await store.load("a")
    assert conversation is not None
    assert (conversation.id, conversation.app, conversation.user) == ("a", "app", "ann")
    assert (conversation.created_at, conversation.updated_at, conversation.events) == (1.0, 8.0, 8)
    assert conversation.messages[:2] == (USER, CALLS) and len(conversation.messages) == 3
    assert conversation.state == {"steps": [1, {"a": None}]}
    assert conversation.turns == (TURN,)


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can, so that what may go wrong between two steps does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


async def test_events_are_numbered_and_of_writers_at_once_one_wins(store: Store, hasty: None) -> None:
    await keep(store, "a", *EVENTS[:2])
    await store.append("a", 1, EVENTS[1])  # again, by one who heard no answer
    for number, event in ((1, EVENTS[2]), (5, EVENTS[2]), (3, EVENTS[1])):
        with pytest.raises(Conflict, match=f"conversation a has 2 events: number {number} is not the next"):
            await store.append("a", number, event)
    for number in range(2, 12):
        said_at_once = [said({"role": "user", "content": str(writer)}, 2.0) for writer in range(8)]
        adding = (store.append("a", number, event) for event in said_at_once)
        results = await asyncio.gather(*adding, return_exceptions=True)
        assert [type(result) for result in results if result] == [Conflict] * 7
    conversation = await store.load("a")
    assert conversation is not None and conversation.events == 12
    with pytest.raises(Conflict):
        await store.append("new", 1, EVENTS[1])
    assert await store.load("new") is None and not await store.delete("new")


async def test_they_are_listed_deleted_and_cleaned_up(store: Store) -> None:
    for id, app, user, at in (("a", "x", "ann", 10.0), ("b", "x", "bob", 30.0), ("c", "y", "ann", 20.0)):
        await keep(store, id, opened(app, user, at))
    headers = await store.headers()
    assert [header.id for header in headers] == ["b", "c", "a"]
    assert [header.id for header in selected(headers, app="x")] == ["b", "a"]
    assert [header.id for header in selected(headers, app="x", user="ann")] == ["a"]
    assert await store.delete("a") and not await store.delete("a")
    assert await clean_up(store, now=60.0, max_age=40.0) == ()
    assert await clean_up(store, now=61.0, max_age=40.0) == ("c",)
    assert await clean_up(store, now=0.0, before=31.0) == ("b",)
    assert await store.headers() == ()
    for wrong in ({}, {"max_age": 1.0, "before": 1.0}):
        with pytest.raises(UserError, match="expected either max_age or before, found "):
            await clean_up(store, now=0.0, **wrong)


async def test_what_was_loaded_can_be_changed_without_changing_what_is_kept(store: Store) -> None:
    message: Message = {"role": "user", "content": "before"}
    await keep(store, "a", opened("x", "y", 1.0), said(message, 2.0))
    message["content"] = "after"
    loaded = await store.load("a")
    assert loaded is not None
    loaded.messages[0]["content"] = "after"
    again = await store.load("a")
    assert again is not None and again.messages[0]["content"] == "before"


WRITER = """
import asyncio, sys
from pathlib import Path
from rollout.agents.conversation_stores import JsonStore, SqliteStore
from rollout.agents.conversations import opened, said
store = (JsonStore if sys.argv[1] == "json" else SqliteStore)(Path(sys.argv[2]))
async def main():
    await store.append("a", 0, opened("x", "y", 0.0))
    for number in range(1, 100_000):
        await store.append("a", number, said({"role": "user", "content": str(number)}, float(number)))
        print(number, flush=True)
asyncio.run(main())
"""


def written_until_killed(kind: str, place: Path) -> int:
    """The last event that the writer was told is kept."""
    with subprocess.Popen([sys.executable, "-c", WRITER, kind, str(place)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        return int((told + writer.stdout.read().splitlines(keepends=True)[:-1])[-1])


@pytest.mark.parametrize("kind", ["json", "sqlite"])
async def test_a_killed_writer_loses_nothing_that_it_was_told_is_kept(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    told = written_until_killed(kind, place)
    store = JsonStore(place) if kind == "json" else SqliteStore(place)
    conversation = await store.load("a")
    assert conversation is not None and conversation.events > told
    assert [message["content"] for message in conversation.messages] == [str(n) for n in range(1, conversation.events)]
    await store.append("a", conversation.events, said(USER, 1.0))


async def test_a_line_that_was_cut_is_no_event_and_the_next_takes_its_place(tmp_path: Path) -> None:
    store = JsonStore(tmp_path)
    await keep(store, "a", *EVENTS[:2])
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"kind": "message", "at": 3.0, "da')
    cut = await store.load("a")
    assert cut is not None and cut.events == 2
    await store.append("a", 2, EVENTS[2])
    assert (tmp_path / "a.jsonl").read_text().splitlines() == [to_line(event) for event in EVENTS[:3]]


async def test_a_file_that_holds_something_else_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(to_line(EVENTS[0]) + '\n{"kind": "turn", "at": 1, "data": {"agent": "a"}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: expected an event of a conversation"):
        await JsonStore(tmp_path).load("a")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"^sessions\.path|a\.jsonl:1: expected an event"):
        await open_store(ConversationsConfig(store="json", path=str(tmp_path)))
    with pytest.raises(UserError, match=r"x: no such event 'mesage'; did you mean 'message'"):
        from_line('{"kind": "mesage", "at": 1, "data": {}}', "x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, {2}]}, "state.k.a[1]: expected JSON, found set"),
        ({1: 2}, "state.k: expected keys that are text, found 1"),
        (float("inf"), "state.k: expected JSON, found inf"),
        ((1, 2), "state.k: expected JSON, found tuple"),
        (b"x", "state.k: expected JSON, found bytes"),
    ],
)
def test_state_that_is_no_json_is_refused_and_not_dropped(value: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        state_set("k", value, 1.0)
    assert str(caught.value) == expected


def test_json_is_given_back_as_it_is() -> None:
    value = {"a": [1, 2.5, "x", None, True, {"b": []}]}
    assert checked_json(value, "state") == value


@pytest.mark.parametrize("id", ["", "../a", "a/b", ".hidden", "a" * 129, "a\n"])
async def test_an_id_that_could_lead_elsewhere_is_refused(id: str, tmp_path: Path) -> None:
    for store in (JsonStore(tmp_path), SqliteStore(tmp_path / "x.db")):
        with pytest.raises(UserError, match="expected an id of letters"):
            await store.append(id, 0, EVENTS[0])
    assert len({new_id(), new_id()}) == 2


async def test_a_store_is_cleaned_when_it_is_opened_and_refused_where_it_cannot_be(tmp_path: Path) -> None:
    config = ConversationsConfig(store="sqlite", path=str(tmp_path / "kept.db"), ttl=3600)
    await keep(await open_store(config), "old", opened("x", "y", 1.0))
    assert await (await open_store(config)).headers() == ()
    (tmp_path / "text").write_text("no database, and long enough to be taken for one" * 40)
    for kind in ("json", "sqlite"):
        with pytest.raises(UserError, match=r"^sessions\.path: .*text: expected a "):
            await open_store(ConversationsConfig.model_validate({"store": kind, "path": str(tmp_path / "text")}))
    for wrong in ({"store": "json"}, {"path": "x"}, {"store": "parquet"}):
        with pytest.raises(ValidationError):
            ConversationsConfig.model_validate(wrong)


def test_nothing_is_no_conversation() -> None:
    assert folded("a", ()) is None
    assert os.sep not in new_id()
