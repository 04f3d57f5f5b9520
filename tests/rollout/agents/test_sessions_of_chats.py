"""A person's sessions: what is said is kept as it happens, and whoever comes back goes on from there."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import counter, lease, says, setting

from rollout.agents.chatting import Chatting
from rollout.agents.conversation_stores import ConversationsConfig
from rollout.agents.conversations import Conflict, Conversation, said
from rollout.agents.conversing import Conversing
from rollout.agents.loading import Around, load_agent
from rollout.agents.open_session import BROKEN_OFF, OpenSession
from rollout.agents.section import AgentConfig
from rollout.agents.stored_sessions import StoredSessions, open_sessions
from rollout.episode import run_episode
from rollout.errors import UserError
from rollout.streaming import SegmentDone, StreamEvent
from rollout.trajectory import FailureKind, Sampling, StopReason, Trajectory, Turn

OWN = '''
import os, signal
from rollout.agents.guardrails import Block, Modify, Pass

def gone() -> str:
    """Ends the process."""
    os.kill(os.getpid(), signal.SIGKILL)

def decent(text):
    if "PIN" in text:
        return Block("no secrets, please")
    return Modify(text.replace("Ann", "A.")) if "Ann" in text else Pass()
'''


class Person:
    """Says their lines, and hears what is answered."""

    def __init__(self, *lines: str) -> None:
        self._lines = list(lines)
        self.heard: list[str] = []

    async def say(self, turns: Sequence[Turn]) -> str | None:
        return self._lines.pop(0) if self._lines else None

    def hear(self, event: StreamEvent) -> None:
        if isinstance(event, SegmentDone) and event.segment.kind == "content":
            self.heard.append(event.segment.text)


async def kept_at(folder: Path, kind: str = "sqlite") -> StoredSessions:
    config = ConversationsConfig.model_validate({"store": kind, "path": str(folder / "kept"), "user": "ann"})
    return await open_sessions(config, "clerk")


async def chat(person: Person, session: OpenSession, *lines: str, **section: object) -> Trajectory:
    """One conversation with a scripted agent."""
    loaded = await load_agent(AgentConfig.model_validate({"name": "clerk", **section}), Around(Sampling(), None))

    async def given() -> OpenSession:
        return session

    def conduct(agent: object, held: object) -> Chatting:
        inner = Conversing(loaded.conduct(loaded.parts.agent, lease()), given, "scripted")
        return Chatting(inner, person.say, person.hear, session.waits)

    return await run_episode(lease(), setting(says(*lines), counter(), conduct=conduct, agent=loaded.parts.agent))


async def stored(sessions: StoredSessions, id: str = "talk") -> Conversation:
    found = await sessions.store.load(id)
    assert found is not None
    return found


def told(conversation: Conversation) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in conversation.messages]


@pytest.mark.parametrize("kind", ["memory", "json", "sqlite"])
async def test_a_chat_goes_on_from_the_one_before(kind: str, tmp_path: Path) -> None:
    place = {} if kind == "memory" else {"path": str(tmp_path / "kept")}
    sessions = await open_sessions(ConversationsConfig.model_validate({"store": kind, **place}), "clerk")
    add = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
    first = await chat(Person("I am Ann.", "Add one."), await sessions.named("talk"), "Hello Ann.", add, "Done.")
    assert first.stop_reason is StopReason.DONE
    session = await sessions.named("talk")
    assert not session.waits
    person = Person("Who am I?")
    second = await chat(person, session, "Ann.", instructions="Be brief.")
    assert person.heard == ["Ann."]
    assert [message["role"] for message in second.messages] == [
        "system",
        *("user", "assistant", "user", "assistant", "tool", "assistant"),
        *("user", "assistant"),
    ]
    kept = await stored(sessions)
    assert told(kept) == [
        "user: I am Ann.",
        "assistant: Hello Ann.",
        "user: Add one.",
        "assistant: ",
        "tool: 1",
        "assistant: Done.",
        "user: Who am I?",
        "assistant: Ann.",
    ]
    assert [(turn.input, turn.output, turn.model_calls) for turn in kept.turns] == [
        ("I am Ann.", "Hello Ann.", 1),
        ("Add one.", "Done.", 2),
        ("Who am I?", "Ann.", 1),
    ]
    assert kept.turns[1].input_tokens == sum(turn.completion.prompt_tokens or 0 for turn in first.turns[1:]), (
        "prompts are counted whole, whatever was said in the segment before"
    )


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
from fakes import says
import test_sessions_of_chats as chats

async def main():
    folder, at = Path(sys.argv[1]), sys.argv[4]
    session = await (await chats.kept_at(folder)).named("talk")
    if at == "answer":
        class Dies:
            async def complete(self, prompt):
                if prompt.turn == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return await says("Hello.").complete(prompt)
        chats.says = lambda *lines: Dies()
    tools = ["add", "submit", {"ref": f"{folder}/own.py:gone"}]
    gone = '<tool_call>\\n{"name": "gone", "arguments": {}}\\n</tool_call>'
    await chats.chat(chats.Person("One.", "Two."), session, "Hello.", gone, tools=tools)

asyncio.run(main())
"""


def killed(folder: Path, at: str) -> None:
    """A chat of two lines whose process dies while the second is answered."""
    (folder / "own.py").write_text(OWN)
    here = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(folder), str(here), str(here.parent), at]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr


async def test_what_was_said_before_a_kill_is_answered_when_the_person_comes_back(tmp_path: Path) -> None:
    killed(tmp_path, "answer")
    sessions = await kept_at(tmp_path)
    assert told(await stored(sessions)) == ["user: One.", "assistant: Hello.", "user: Two."]
    session = await sessions.named("talk")
    assert session.waits
    person = Person("Three.")
    await chat(person, session, "To two.", "To three.")
    assert person.heard == ["To two.", "To three."]
    kept = await stored(sessions)
    assert told(kept)[2:] == ["user: Two.", "assistant: To two.", "user: Three.", "assistant: To three."]
    assert [turn.input for turn in kept.turns] == ["One.", "Two.", "Three."]


async def test_a_call_that_a_kill_broke_off_has_a_result_that_says_so(tmp_path: Path) -> None:
    killed(tmp_path, "call")
    sessions = await kept_at(tmp_path)
    assert told(await stored(sessions)) == ["user: One.", "assistant: Hello.", "user: Two.", "assistant: "]
    person = Person()
    played = await chat(person, await sessions.named("talk"), "It may have run.", instructions="Be brief.")
    assert played.failure is None and person.heard == ["It may have run."]
    assert told(await stored(sessions))[3:] == ["assistant: ", f"tool: {BROKEN_OFF}", "assistant: It may have run."]


@pytest.mark.parametrize("kind", ["json", "sqlite"])
async def test_of_two_who_write_at_once_one_is_told_and_loses_nothing(kind: str, tmp_path: Path) -> None:
    sessions = await kept_at(tmp_path, kind)
    await chat(Person("One."), await sessions.named("talk"), "Hello.")
    late = await sessions.named("talk")
    await chat(Person("Two."), await sessions.named("talk"), "First to write.")
    played = await chat(Person("Two, too."), late, "Too late.")
    assert played.failure is not None and played.failure.kind is FailureKind.AGENT
    assert played.failure.where == "session talk" and "\n" not in played.failure.message
    expected = "Conflict: conversation talk has 7 events: number 4 is not the next, it has gone on elsewhere"
    assert played.failure.message == expected
    assert told(await stored(sessions))[2:] == ["user: Two.", "assistant: First to write."]
    await chat(Person("Two, too."), await sessions.named("talk"), "Now.")
    assert told(await stored(sessions))[4:] == ["user: Two, too.", "assistant: Now."]


async def test_input_guardrails_hear_all_that_a_person_says_and_a_block_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    sessions = await kept_at(tmp_path)
    rail = {"name": "decent", "at": "input", "check": f"{tmp_path}/own.py:decent"}
    person = Person("My PIN is 1.", "I am Ann.", "PIN 2!", "PIN 3!", "Call me Ann.")
    played = await chat(person, await sessions.named("talk"), "Hello.", "Yes.", guardrails=[rail])
    no = "no secrets, please"
    assert person.heard == [no, "Hello.", no, no, "Yes."]
    assert (played.stop_reason, len(played.turns)) == (StopReason.DONE, 2)
    spoken = [message["content"] for message in played.messages if message["role"] == "user"]
    assert spoken == ["I am A..", "Call me A.."], "what was blocked is told to nobody, what was changed as it is now"
    assert [(event.turn, event.kind, event.detail["decision"]) for event in played.events[1:]] == [
        (0, "guardrail", "block"),
        (0, "guardrail", "modify"),
        (1, "guardrail", "block"),
        (1, "guardrail", "block"),
        (1, "guardrail", "modify"),
    ]
    assert "PIN" not in " ".join(told(await stored(sessions)))


async def test_a_session_of_somebody_else_and_what_is_no_id_are_refused(tmp_path: Path) -> None:
    sessions = await kept_at(tmp_path)
    await chat(Person("One."), await sessions.named("talk"), "Hello.")
    assert [header.id for header in await sessions.listed()] == ["talk"]
    others = StoredSessions(sessions.config.model_copy(update={"user": "bob"}), sessions.store, "clerk")
    with pytest.raises(UserError, match="session talk is of user 'ann'"):
        await others.named("talk")
    assert await others.listed() == ()
    with pytest.raises(UserError, match="expected an id of letters"):
        await sessions.named("../talk")
    with pytest.raises(Conflict):
        await sessions.store.append("talk", 0, said({"role": "user", "content": "x"}, 1.0))
