"""Hooks that listen to a run as it happens."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import ADD, GOLD, SUBMIT, TEMPLATE, lease, setting

from rollout.agents.chatting import Chatting
from rollout.agents.conduct import AgentConduct
from rollout.agents.hooks import Hooks
from rollout.agents.loading import Around, load_agent
from rollout.agents.section import AgentConfig
from rollout.agents.telling import Telling
from rollout.conduct import plain
from rollout.episode import run_episode
from rollout.errors import UserError
from rollout.parsing import FORMATS
from rollout.scripted import ScriptedPolicy
from rollout.stream_reading import token_reader
from rollout.streaming import CallComplete, CallResult, Heard, ReasoningDelta, StreamEvent, TextDelta, TurnDone
from rollout.trajectory import Agent, Completion, Prompt, Sampling, StopReason, Trajectory, Turn

CHECKS = """
from rollout.agents.guardrails import Block, Modify, Pass
def blocks(text): return Block("no") if "secret" in text else Modify("a *** word") if "bad" in text else Pass()
"""
READER = partial(token_reader, TEMPLATE, FORMATS["hermes"].open)
AROUND = Around(Sampling(), None)
EPISODE: ContextVar[str] = ContextVar("EPISODE", default="nobody's")


async def played(
    heard: list[Any], lines: Sequence[str], checks: Path | None = None, slow: float = 0.0, **hooks: Any
) -> Trajectory:
    """An episode of an agent whose hooks put into `heard` what they are told."""

    async def on_token(agent: Agent, text: str) -> None:
        await asyncio.sleep(slow)
        heard.append(text)

    async def on_event(agent: Agent, event: StreamEvent) -> None:
        heard.append(event)

    guardrails = [] if checks is None else [{"name": "g", "at": "output", "check": f"{checks}:blocks"}]
    config = AgentConfig.model_validate({"guardrails": guardrails, "max_iterations": 4})
    loaded = await load_agent(config, AROUND)
    told = Hooks(loaded.parts.agent, {"on_token": on_token, "on_event": on_event}, **hooks)

    loaded.parts = replace(loaded.parts, hooks=told)
    return await run_episode(
        lease(), setting(ScriptedPolicy(TEMPLATE, lines), conduct=loaded.conduct, new_reader=READER)
    )


async def test_events_come_in_the_order_in_which_things_happened() -> None:
    heard: list[Any] = []
    episode = await played(heard, [f"{ADD}", "That is all."])
    events = [event for event in heard if not isinstance(event, str)]
    kinds = [type(event) for event in events]
    assert kinds.index(ReasoningDelta) < kinds.index(CallComplete) < kinds.index(TurnDone) < kinds.index(CallResult)
    assert "".join(text for text in heard if isinstance(text, str)) == "That is all."
    results = [event.use for event in events if isinstance(event, CallResult)]
    assert results == [use for turn in episode.turns for use in turn.tool_uses]


async def test_a_slow_hook_is_told_text_in_fewer_pieces_and_all_of_it() -> None:
    heard: list[Any] = []
    text = "one two three four five six seven eight nine ten"
    await played(heard, [text], slow=0.01)
    texts = [one for one in heard if isinstance(one, str)]
    assert "".join(texts) == text
    assert len(texts) < len(TEMPLATE.encode(text))


@pytest.mark.parametrize(
    ("said", "holds", "shown"),
    [
        ("fine", True, "fine"),
        ("a bad word", True, "a *** word"),
        ("a secret", True, ""),
        ("a secret", False, "a secret"),
    ],
)
async def test_text_is_told_when_guardrails_have_let_it_pass(
    said: str, holds: bool, shown: str, tmp_path: Path
) -> None:
    heard: list[Any] = []
    (tmp_path / "checks.py").write_text(CHECKS)
    await played(heard, [said], checks=tmp_path / "checks.py", holds=holds)
    assert "".join(one for one in heard if isinstance(one, str)) == shown


async def test_a_hook_that_breaks_is_logged_or_fails_the_episode() -> None:
    async def breaks(agent: Agent, text: str) -> None:
        raise ValueError("broken hook")

    async def episode(on_error: Any) -> Trajectory:
        loaded = await load_agent(AgentConfig(max_iterations=2), AROUND)

        loaded.parts = replace(loaded.parts, hooks=Hooks(loaded.parts.agent, {"on_token": breaks}, on_error))
        return await run_episode(
            lease(), setting(ScriptedPolicy(TEMPLATE, ["hello"]), conduct=loaded.conduct, new_reader=READER)
        )

    assert (await episode("log")).stop_reason is StopReason.DONE
    failed = await episode("fail")
    assert failed.failure is not None
    assert "broken hook" in failed.failure.message


async def test_nobody_who_listens_asks_for_nothing() -> None:
    assert Telling.of(None, True) is None
    assert Telling.of(Hooks(Agent(), {"on_stop": print}), True) is None
    loaded = await load_agent(AgentConfig(max_iterations=2), AROUND)

    class Deaf(ScriptedPolicy):
        async def stream(self, prompt: Any, heard: Any) -> Any:
            raise AssertionError("nobody listens")

    episode = await run_episode(lease(), setting(Deaf(TEMPLATE, ["x"]), conduct=loaded.conduct))
    assert episode.failure is None


async def test_an_agent_with_more_than_tools_begins_its_calls_early_too() -> None:
    config = AgentConfig.model_validate({"streaming_tools": True, "max_tool_output": 100})
    loaded = await load_agent(config, AROUND)
    episode = await run_episode(
        lease(), setting(ScriptedPolicy(TEMPLATE, GOLD), conduct=loaded.conduct, new_reader=READER)
    )
    assert episode.score is not None
    assert episode.score.reward == 1.0
    assert isinstance(loaded.conduct(Agent(), lease()), AgentConduct)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"approval": {"policies": [{"tools": ["add"], "approver": "deny"}]}}, "approval"),
        ({"parallel_tools": False}, "parallel_tools"),
        ({"tools": [{"name": "add", "return_direct": True}]}, "tools"),
        ({"hooks": {"on_tool_call": "os:getcwd"}}, "hooks.on_tool_call"),
    ],
)
async def test_what_has_a_word_before_a_call_is_refused_beside_it(beside: dict[str, Any], named: str) -> None:
    config = AgentConfig.model_validate({"streaming_tools": True, **beside})
    with pytest.raises(UserError, match=rf"agent\.streaming_tools: .* beside agent\.{named}; "):
        await load_agent(config, AROUND)


def hearing(*lines: str | None) -> Callable[[Sequence[Turn]], Any]:
    said = iter(lines)

    async def hear(turns: Sequence[Turn]) -> str | None:
        return next(said)

    return hear


async def test_who_talks_with_an_agent_sees_it_work() -> None:
    seen: list[StreamEvent] = []
    policy = ScriptedPolicy(TEMPLATE, [f"Look: {ADD}", "Two of them.", SUBMIT])
    talk = setting(policy, new_reader=READER)
    conduct = lambda agent, lease: Chatting(plain(agent, lease), hearing("hello", None), seen.append)  # noqa: E731

    episode = await run_episode(lease(), replace(talk, conduct=conduct))
    assert episode.stop_reason is StopReason.DONE
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == "Look:Two of them."
    assert [event.use.call.name for event in seen if isinstance(event, CallResult)] == ["add"]
    kinds = [type(event) for event in seen]
    assert kinds.index(CallComplete) < kinds.index(CallResult) < len(kinds) - 1


async def test_hooks_are_told_in_the_context_of_their_own_episode() -> None:
    """Who brings what was sampled is at work for many episodes, in a context of its own."""
    told: list[tuple[str, str]] = []

    class Elsewhere(ScriptedPolicy):
        async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
            completion = super().stream(prompt, heard)
            return await asyncio.create_task(completion, context=Context())

    async def on_token(agent: Agent, text: str) -> None:
        told.append((EPISODE.get(), text))

    async def one(name: str) -> None:
        EPISODE.set(name)
        loaded = await load_agent(AgentConfig(), AROUND)
        loaded.parts = replace(loaded.parts, hooks=Hooks(loaded.parts.agent, {"on_token": on_token}))
        policy = Elsewhere(TEMPLATE, [f"I am {name}."])
        await run_episode(lease(), setting(policy, conduct=loaded.conduct, new_reader=READER))

    await asyncio.gather(one("a"), one("b"))
    assert {name: "".join(text for who, text in told if who == name) for name in ("a", "b")} == {
        "a": "I am a.",
        "b": "I am b.",
    }
