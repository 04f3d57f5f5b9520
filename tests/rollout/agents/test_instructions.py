"""The system message: where instructions come from, how often they are made, what stands in which order."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rollout.agents.instructions import Facts, InstructionsConfig, SystemPrompt, digest
from rollout.errors import BoundaryError, UserError
from rollout.trajectory import FailureKind, Task

TASK = Task("t1", (), {"city": "{{ agent }} {% raise %}", "nested": {"days": [1, 2]}})
FACTS = Facts(TASK, "guide", datetime(2030, 5, 4, tzinfo=UTC))
FUNCTIONS = """
import asyncio, threading
def build(facts):
    where = "no session" if facts.session is None else facts.session["state"]["mood"]
    return f"{facts.agent}: {where}"
async def later(facts):
    await asyncio.sleep(0)
    return "from a coroutine"
def number(facts): return 7
def breaks(facts): raise LookupError("no such prompt")
def never(facts): threading.Event().wait(20)
class Prompts: ...
"""


def config(instructions: Any, scope: Any = "rollout") -> InstructionsConfig:
    return InstructionsConfig(instructions=instructions, instructions_scope=scope)


async def rendered(instructions: Any, facts: Facts = FACTS) -> str:
    made = config(instructions).loaded("agent")
    assert made is not None
    return await made.rendered(facts, None, 5.0)


@pytest.fixture
def functions(tmp_path: Path) -> str:
    path = tmp_path / "prompts.py"
    path.write_text(FUNCTIONS)
    return str(path)


async def test_text_stands_as_it_is() -> None:
    text = r"Put it in \boxed{{x}}, {# or #} {% not %}."
    assert await rendered(text) == text
    assert config(None).loaded("agent") is None


async def test_a_template_is_filled_in_and_its_values_are_only_data() -> None:
    template = (
        "I am {{ agent }} in {{ task.data.city }} on {{ now.date() }} for {{ user.name }}.{% if session %}!{% endif %}"
    )
    facts = Facts(TASK, "guide", FACTS.now, user={"name": "Ada"})
    assert (
        await rendered({"template": template}, facts) == "I am guide in {{ agent }} {% raise %} on 2030-05-04 for Ada."
    )
    facts = Facts(TASK, "guide", FACTS.now, session={"id": "s", "state": {"mood": "fine"}})
    assert await rendered({"template": "{{ session.state.mood }} {{ task.data.nested.days[1] }}"}, facts) == "fine 2"


async def test_vector_16_a_function_without_and_with_a_session(functions: str) -> None:
    assert await rendered({"ref": f"{functions}:build"}) == "guide: no session"
    facts = Facts(TASK, "guide", FACTS.now, session={"id": "s", "state": {"mood": "fine"}})
    assert await rendered({"ref": f"{functions}:build"}, facts) == "guide: fine"
    assert await rendered({"ref": f"{functions}:later"}) == "from a coroutine"


@pytest.mark.parametrize(
    ("instructions", "line"),
    [
        ({"template": "{{ task.data.town }}"}, "UndefinedError: 'dict object' has no attribute 'town'"),
        ({"template": "{{ session.state }}"}, "UndefinedError: 'None' has no attribute 'state'"),
        ({"template": "{{ task.data.__class__.__mro__ }}"}, "SecurityError"),
        ({"template": "{{ task.data.update(a=1) }}"}, "SecurityError"),
        ({"ref": "number"}, "TypeError: expected text, the function gave int"),
        ({"ref": "breaks"}, "LookupError: no such prompt"),
    ],
)
async def test_what_cannot_be_rendered_costs_its_own_episode(
    instructions: dict[str, str], line: str, functions: str
) -> None:
    made = {key: f"{functions}:{value}" if key == "ref" else value for key, value in instructions.items()}
    with pytest.raises(BoundaryError) as caught:
        await rendered(made)
    assert caught.value.failure.kind is FailureKind.SEED
    assert line in caught.value.failure.message


async def test_a_function_that_never_answers_has_a_deadline(functions: str) -> None:
    made = config({"ref": f"{functions}:never"}).loaded("agent")
    assert made is not None
    with pytest.raises(BoundaryError, match="no answer within"):
        await made.rendered(FACTS, None, 0.05)


async def test_rendered_once_a_rollout_or_for_every_run() -> None:
    for scope, expected in (("rollout", "morning"), ("run", "2030")):
        made = config({"template": "{{ now.year }}"}, scope).loaded("agent")
        assert made is not None
        assert await made.rendered(FACTS, "morning", 5.0) == expected


def test_the_parts_stand_in_their_order_and_empty_ones_are_left_out() -> None:
    prompt = SystemPrompt("Be brief.", "## Skills\n- pdf", "## Memories\n- a", "As JSON.")
    assert prompt.messages[0] == {"role": "system", "content": prompt.text}
    assert prompt.text == "Be brief.\n\n## Skills\n- pdf\n\n## Memories\n- a\n\nAs JSON."
    assert SystemPrompt("Be brief.", "", " \n").text == "Be brief."
    assert SystemPrompt().messages == ()


def test_the_digest_follows_the_bytes() -> None:
    assert SystemPrompt("a").digest == digest("a") == SystemPrompt(skills="a").digest
    assert SystemPrompt("a", "b").digest != SystemPrompt("a").digest
    assert len(digest("\ud800")) == 64


@pytest.mark.parametrize(
    ("instructions", "line"),
    [
        ({"template": "a\n{{ oops"}, "agent.instructions.template: line 2: "),
        ({"ref": "prompts.py:biuld"}, "did you mean 'build'?"),
        ({"ref": "nowhere:build"}, "agent.instructions.ref: nowhere:build: there is no module 'nowhere'"),
    ],
)
def test_what_is_wrong_from_the_start_is_one_line(
    instructions: dict[str, str], line: str, functions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(functions).parent)
    with pytest.raises(UserError) as caught:
        config(instructions).loaded("agent")
    assert line in str(caught.value)


def test_a_source_is_a_template_or_a_reference() -> None:
    for wrong in ({}, {"template": "a", "ref": "b:c"}):
        with pytest.raises(ValueError, match="expected either template or ref"):
            config(wrong)
