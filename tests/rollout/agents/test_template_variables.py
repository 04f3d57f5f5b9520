"""Variables of the chat template in an agent's settings: what is rendered with them, and names that no template has."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from fakes import TEMPLATE, TOKENIZER, lease, setting, template

from rollout.agents.loading import Around, Loaded, load_agent
from rollout.agents.section import AgentConfig
from rollout.episode import run_episode
from rollout.errors import UserError
from rollout.invariants import check_rows
from rollout.row_rules import Known
from rollout.rows import to_table
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.template import ChatTemplate
from rollout.tokens import TokenLedger
from rollout.trajectory import Sampling, Trajectory

AT_WILL = template("thinks_at_will")
EMPTY = "<think>\n\n</think>"
CALLED = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'


async def loaded(chosen: ChatTemplate | None, /, **section: Any) -> Loaded:
    return await load_agent(AgentConfig.model_validate(section), Around(Sampling(), None, template=chosen))


async def play(*lines: str, **section: Any) -> Trajectory:
    """An episode of an agent whose model has the template that asks how much to think."""
    agent = await loaded(AT_WILL, **section)
    chosen = AT_WILL.using(agent.parts.variables)
    parser = partial(hermes, in_reasoning=chosen.opens_with_reasoning)
    job = setting(
        ScriptedPolicy(chosen, lines),
        conduct=agent.conduct,
        agent=agent.parts.agent,
        new_ledger=partial(TokenLedger, chosen, parser),
    )
    played = await run_episode(lease(), job)
    await agent.close()
    (batch,) = to_table([played]).to_batches()
    assert check_rows(batch, Known())[0] == []
    return played


def prompts(played: Trajectory) -> list[str]:
    return [TOKENIZER.decode(list(turn.prompt_ids or ()), skip_special_tokens=False) for turn in played.turns]


async def test_every_header_of_an_episode_is_rendered_with_them_and_its_prefixes_hold() -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    played = await play(CALLED, CALLED, "Two.", api_kwargs=kwargs)
    assert len(played.turns) == 3
    assert [prompt.count(EMPTY) for prompt in prompts(played)] == [1, 1, 1]
    assert {turn.segment for turn in played.turns} == {0}
    assert played.turns[-1].text == "Two.", "what is said behind an empty thought is content"


async def test_without_them_the_policy_thinks_first() -> None:
    played = await play("Hm.</think>Two.", api_kwargs={"temperature": 0.5})
    assert EMPTY not in prompts(played)[0]
    assert (played.turns[0].reasoning, played.turns[0].text) == ("Hm.", "Two.")


async def test_an_effort_reaches_the_template_under_the_name_that_it_has() -> None:
    low = await loaded(AT_WILL, api_kwargs={"reasoning_effort": "low"})
    assert low.parts.variables == {"reasoning_effort": "low", "enable_thinking": True}
    one = ChatTemplate(TOKENIZER, "{{ messages[0].content }}{{ enable_thinking }}", {}, frozenset())
    none = await loaded(one, api_kwargs={"reasoning_effort": "none"})
    assert none.parts.variables == {"enable_thinking": False}
    assert TOKENIZER.decode(one.using(none.parts.variables).opening([{"role": "user", "content": "?"}], ())) == "?False"


async def test_a_new_segment_is_rendered_with_them_too() -> None:
    hand = '<tool_call>\n{"name": "handoff_to_adder", "arguments": {}}\n</tool_call>'
    played = await play(
        hand, "Two.", api_kwargs={"enable_thinking": False}, sub_agents={"adder": {"instructions": "."}}
    )
    assert [turn.segment for turn in played.turns] == [0, 1]
    assert all(EMPTY in prompt for prompt in prompts(played))


@pytest.mark.parametrize(
    ("kwargs", "line"),
    [
        ({"chat_template_kwargs": {"enable_thinkin": False}}, "'enable_thinkin'; did you mean 'enable_thinking'?"),
        ({"extra_body": {"chat_template_kwargs": {"tools": []}}}, "'tools'; known: enable_thinking, reasoning_effort"),
    ],
)
async def test_a_variable_that_the_template_does_not_read_is_refused(kwargs: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        await loaded(AT_WILL, api_kwargs=kwargs)
    assert str(caught.value) == f"agent.api_kwargs: the model's chat template has no variable {line}"


async def test_a_template_without_variables_says_so() -> None:
    assert TEMPLATE.variables == frozenset()
    with pytest.raises(UserError, match=r"has no variable 'reasoning_effort'; it has none"):
        await loaded(TEMPLATE, api_kwargs={"reasoning_effort": "low"})
    assert template("qwen3").variables == frozenset(), "what it sets itself is none"


def test_a_template_that_sets_a_variable_nobody_gave_reads_it() -> None:
    source = "{% if effort is not defined %}{% set effort = 'low' %}{% endif %}{% set other = effort %}{{ other }}"
    source += "{% for m in messages %}{% if m.content %}{% set said = m.content %}{{ said }}{% endif %}{% endfor %}"
    chosen = ChatTemplate(TOKENIZER, source, {}, frozenset())
    assert chosen.variables == {"effort"}
    assert TOKENIZER.decode(chosen.using({"effort": "high"}).opening([], ())) == "high"


async def test_agents_of_one_episode_are_rendered_alike() -> None:
    other = {"adder": {"api_kwargs": {"enable_thinking": True}}}
    with pytest.raises(UserError, match=r"agent\.sub_agents\.adder\.api_kwargs: enable_thinking: prompts of all"):
        await loaded(AT_WILL, api_kwargs={"enable_thinking": False}, sub_agents=other)
    same = await loaded(AT_WILL, api_kwargs={"enable_thinking": True}, sub_agents=other)
    assert same.parts.variables == {"enable_thinking": True}


async def test_an_endpoint_that_renders_messages_gets_them_in_the_request() -> None:
    agent = await loaded(None, api_kwargs={"chat_template_kwargs": {"whatever": 1}})
    assert agent.parts.variables == {}
    assert agent.parts.extras.body["chat_template_kwargs"] == {"whatever": 1}
