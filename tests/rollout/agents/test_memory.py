"""Memories: how they are found, where they last, and who may read and keep them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.agents.memory import Entry, Found, InMemory, SqliteMemory, best, read_snapshot, relevance, write_snapshot
from rollout.agents.memory_tools import EpisodeMemory, Memories, MemoryConfig, open_memories
from rollout.errors import UserError
from rollout.trajectory import Message, ToolCall, ToolResult


class Everything:
    """A memory of somebody's own that finds whatever was kept last."""

    closed = 0

    def __init__(self, most: int = 3) -> None:
        self.kept: list[Entry] = []
        self.most = most

    async def add(self, owner: str, content: str, metadata: Mapping[str, Any]) -> Entry:
        self.kept.append(Entry(str(len(self.kept)), owner, content, metadata))
        return self.kept[-1]

    async def search(self, owner: str, query: str, top_k: int) -> Sequence[Found]:
        return [Found(entry, 0.5) for entry in self.kept[::-1][: self.most]]

    async def close(self) -> None:
        Everything.closed += 1


async def use(memory: EpisodeMemory, tool: str, **arguments: Any) -> ToolResult:
    return await memory.tools().call(ToolCall("c", tool, json.dumps(arguments)), 5)


def snapshot(tmp_path: Path, *contents: str) -> str:
    path = tmp_path / "memories.jsonl"
    write_snapshot(path, [Entry(str(number), "x", content) for number, content in enumerate(contents)])
    return str(path)


@pytest.mark.parametrize(
    ("query", "content", "score"),
    [
        ("red door", "The door is red.", 1.0),
        ("red door", "The red door is shut.", 1.0),
        ("red window", "The door is red!", 0.5),
        ("door is", "the DOOR is red", 1.0),
        ("cat", "concatenate", 0.3),
        ("a cat sat", "cat", 1 / 3),
        ("is red, or", "the door is red, or blue", 1.0),
        ("red red blue", "red", 2 / 3),
        ("blue", "The door is red.", 0.0),
        ("?!", "What?!", 0.0),
        ("", "anything", 0.0),
    ],
)
def test_relevance_is_the_share_of_words_and_more_for_the_whole_query(query: str, content: str, score: float) -> None:
    assert relevance(query, content) == pytest.approx(score)


def test_the_best_come_first_then_the_oldest_and_what_scores_nothing_never() -> None:
    entries = [Entry(str(n), "a", text) for n, text in enumerate(["one red", "no", "two red", "red door", "red"])]
    assert [found.entry.id for found in best(entries, "red door", 9)] == ["3", "0", "2", "4"]
    assert [found.entry.id for found in best(entries, "red door", 2)] == ["3", "0"]


@pytest.mark.parametrize("kind", ["inmemory", "sqlite"])
async def test_entries_belong_to_their_owner_and_can_be_deleted(kind: str, tmp_path: Path) -> None:
    memory = InMemory(lambda: 7.0) if kind == "inmemory" else SqliteMemory(tmp_path / "m.db", clock=lambda: 7.0)
    first = await memory.add("ann", "the door is red", {"from": ["a", 1]})
    await memory.add("bob", "the door is blue", {})
    assert first == Entry("1", "ann", "the door is red", {"from": ["a", 1]}, 7.0)
    assert [found.entry for found in await memory.search("ann", "door", 5)] == [first]
    assert len(await memory.entries()) == 2
    assert await memory.delete("1") and not await memory.delete("1")
    assert await memory.search("ann", "door", 5) == ()
    await memory.close()


async def test_a_file_is_shared_and_outlives_who_wrote_it(tmp_path: Path) -> None:
    writers = [SqliteMemory(tmp_path / "m.db") for _ in range(4)]
    await asyncio.gather(*(writer.add("ann", f"fact {number}", {}) for number, writer in enumerate(writers)))
    assert len(await SqliteMemory(tmp_path / "m.db").search("ann", "fact", 9)) == 4


async def test_by_default_a_sample_knows_nothing_of_its_siblings(tmp_path: Path) -> None:
    memories = await open_memories(MemoryConfig(snapshot=snapshot(tmp_path, "the door is red")))
    one, two = memories.open("run-0-0.1"), memories.open("run-0-1.1")
    assert (await use(one, "save_memory", content="the door is open")).content == "saved"
    assert (await use(one, "recall_memory", query="door")).content == "1. the door is red\n2. the door is open"
    assert (await use(two, "recall_memory", query="door")).content == "1. the door is red"
    assert (await use(one, "recall_memory", query="door", top_k=1)).content == "1. the door is red"
    await one.close()
    await one.close()
    assert (await use(memories.open("run-0-0.2"), "recall_memory", query="open")).content == "found nothing"
    await memories.close()


async def test_a_group_that_only_reads_is_not_offered_to_keep(tmp_path: Path) -> None:
    config = MemoryConfig(scope="group_readonly", snapshot=snapshot(tmp_path, "the door is red"))
    memories = await open_memories(config)
    memory = memories.open("a")
    assert [spec.name for spec in memory.tools().specs] == ["recall_memory"]
    assert (await use(memory, "save_memory", content="x")).error is not None
    assert memories.digest is not None
    (tmp_path / "memories.jsonl").unlink()
    assert (await use(memories.open("b"), "recall_memory", query="door")).content == "1. the door is red"


@pytest.mark.parametrize("service", ["inmemory", "sqlite"])
async def test_a_user_is_remembered_over_episodes(service: str, tmp_path: Path) -> None:
    config = MemoryConfig.model_validate({"service": service, "path": str(tmp_path / "m.db"), "scope": "user"})
    memories = await open_memories(config)
    first = memories.open("episode-1", user="ann")
    assert [spec.name for spec in first.tools().specs] == ["save_memory", "recall_memory"]
    await use(first, "save_memory", content="ann likes tea", metadata={"sure": True})
    await first.tools().close()
    assert "tea" in await memories.open("episode-2", user="ann").recalled("what does ann like?")
    assert await memories.open("episode-3").recalled("ann tea") == ""
    await memories.close()


async def test_the_top_five_are_told_where_the_configuration_says(tmp_path: Path) -> None:
    path = snapshot(tmp_path, *(f"fact {number}" for number in range(7)))
    system: Message = {"role": "system", "content": "Be brief."}
    earlier: Message = {"role": "user", "content": "Hello."}
    asked: Message = {"role": "user", "content": "Which fact?"}
    for inject, place in (("system", 0), ("user", 2), ("none", None)):
        memories = await open_memories(MemoryConfig.model_validate({"snapshot": path, "inject": inject}))
        memory = memories.open("a")
        text = await memory.recalled("fact")
        told = memory.opening([system, earlier, asked], text)
        if place is None:
            assert text == "" and told == (system, earlier, asked)
            continue
        assert text.endswith("1. fact 0\n2. fact 1\n3. fact 2\n4. fact 3\n5. fact 4")
        assert [text in message["content"] for message in told] == [number == place for number in range(3)]
        assert [message["role"] for message in told] == ["system", "user", "user"]
        assert await memory.recalled("nothing of it") == ""
    told = (await open_memories(MemoryConfig(snapshot=path))).open("a").opening([asked], "what")
    assert told == ({"role": "system", "content": "what"}, asked)


async def test_a_class_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MemoryConfig(service=f"{__name__}:Everything", options={"most": 1})
    memories = await open_memories(config)
    memory = memories.open("a")
    before = Everything.closed
    await use(memory, "save_memory", content="one")
    await use(memory, "save_memory", content="two")
    assert (await use(memory, "recall_memory", query="zebra")).content == "1. two"
    await memory.close()
    assert Everything.closed == before + 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"content": " "}, "content: expected a sentence"),
        ({}, "Field required"),
        ({"content": "x", "metadata": {"a": float("nan")}}, "metadata: expected JSON"),
        ({"content": "x", "metadata": "{}"}, "should be an object"),
    ],
)
async def test_what_the_policy_does_wrong_is_told_to_it(arguments: dict[str, Any], expected: str) -> None:
    memory = (await open_memories(MemoryConfig())).open("a")
    answer = await use(memory, "save_memory", **arguments)
    assert answer.error is not None and expected in answer.content


async def test_text_that_no_file_can_hold_is_kept_as_a_file_can(tmp_path: Path) -> None:
    memory = EpisodeMemory("a", MemoryConfig(), SqliteMemory(tmp_path / "m.db"))
    assert memory.kept is not None
    answer = await memory.tools().call(ToolCall("c", "save_memory", '{"content": "a \\ud800 b"}'), 5)
    assert answer.error is not None or (await memory.kept.search("a", "b", 1))[0].entry.content == "a ? b"


async def test_a_memory_that_breaks_is_not_the_policys_fault(tmp_path: Path) -> None:
    (tmp_path / "m.db").write_text("no database, but long enough to be taken for one" * 40)
    memory = EpisodeMemory("a", MemoryConfig(), SqliteMemory(tmp_path / "m.db"))
    with pytest.raises(Exception, match="not a database"):
        await use(memory, "save_memory", content="x")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"service": "sqlit"}, "agent.memory.service: 'sqlit': no such memory; did you mean 'sqlite'?"),
        ({"service": "json:loads"}, "agent.memory.service: json:loads: cannot be made and closed: TypeError"),
        ({"service": "builtins:dict"}, "it has no add, search, close"),
        ({"service": "sqlite", "path": "/dev/null/m.db"}, "agent.memory.path: /dev/null/m.db: expected a SQLite file"),
        ({"snapshot": "nowhere.jsonl"}, "agent.memory.snapshot: nowhere.jsonl: expected a snapshot of memories"),
    ],
)
async def test_what_cannot_be_used_is_one_line_before_the_start(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        await open_memories(MemoryConfig.model_validate(config))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ['{"content": 7}', "[]", '{"content": "x", "metadata": 1}', "{"])
def test_a_line_of_a_snapshot_that_is_no_entry_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"content": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"m\.jsonl:2: expected an entry"):
        read_snapshot(tmp_path / "m.jsonl", "memory.snapshot")


@pytest.mark.parametrize("config", [{"service": "sqlite"}, {"scope": "group_readonly"}, {"scope": "all"}, {"top_k": 0}])
def test_a_section_that_does_not_fit_together_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MemoryConfig.model_validate(config)


async def test_memories_of_a_job_are_made_once_and_closed_once() -> None:
    memories = Memories(MemoryConfig(scope="user"), Everything)
    before = Everything.closed
    assert memories.open("a").kept is memories.open("b", "ann").kept
    await memories.open("a").close()
    assert Everything.closed == before
    await memories.close()
    await memories.close()
    assert Everything.closed == before + 1
