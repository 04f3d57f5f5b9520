"""Structured output: every kind of wrong answer is asked for again, by name, and so often as was allowed."""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.agents.output_schema import load_schema
from rollout.agents.structured import FINAL_TOOL, Output, OutputConfig, Parsing
from rollout.errors import UserError
from rollout.trajectory import ToolCall, ToolSpec

WEATHER = {
    "title": "Weather report",
    "type": "object",
    "properties": {"city": {"type": "string"}, "celsius": {"type": "number"}},
    "required": ["city", "celsius"],
    "additionalProperties": False,
}
SEARCH = ToolSpec("search", "Searches.", {"type": "object", "properties": {}})
MODELS = """
from dataclasses import dataclass
from typing_extensions import TypedDict
from pydantic import BaseModel, field_validator

class Report(BaseModel):
    city: str
    celsius: float
    source: str = "none"

    @field_validator("city")
    @classmethod
    def _known(cls, city: str) -> str:
        if city == "Atlantis":
            raise ValueError("there is no such city")
        return city

class Node(BaseModel):
    name: str
    children: list["Node"] = []

@dataclass
class Plain:
    city: str

class Typed(TypedDict):
    city: str

class Buggy(BaseModel):
    city: str

    @field_validator("city")
    @classmethod
    def _breaks(cls, city: str) -> str:
        raise KeyError(city)

class Unwritable(BaseModel, arbitrary_types_allowed=True):
    thing: object.__class__ = object

def function(): ...
Number = list[int]
"""


@pytest.fixture
def models(tmp_path: Path) -> str:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return str(path)


def output(mode: Any = "tool", source: Any = WEATHER, **settings: Any) -> Output:
    made = OutputConfig(output_schema=source, output_mode=mode, **settings).form("agent")
    assert made is not None
    return made


def final(arguments: str, number: int = 0) -> ToolCall:
    return ToolCall(f"call_{number}", FINAL_TOOL, arguments)


GOOD = json.dumps({"city": "Oslo", "celsius": 3.5})


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ('{"city": "Oslo", "celsius": ', "no valid JSON"),
        ("It is cold.", "no valid JSON"),
        ('{"city": "Oslo", "celsius": NaN}', "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('{"city": "Oslo"}', "celsius"),
        ('{"city": "Oslo", "celsius": "cold"}', "celsius: "),
        ("[]", "object"),
        ("null", "object"),
        ('{"city": "Oslo", "celsius": 1, "x": "\\ud800"}', "no valid JSON"),
    ],
)
@pytest.mark.parametrize("form", ["schema", "model"])
def test_vector_3_every_validation_error_is_asked_for_again_by_name(
    answer: str, line: str, form: str, models: str
) -> None:
    parsing = Parsing.of(output(source=WEATHER if form == "schema" else f"{models}:Report"), ())
    reading = parsing.read(0, "", [final(answer)])
    assert reading is not None
    assert reading.kind == "ask"
    (told,) = reading.messages
    assert told["role"] == "tool"
    assert told.get("tool_call_id") == "call_0"
    assert line in told["content"]
    assert reading.parsing.failed[0].errors
    assert all(len(error) <= 300 for error in reading.parsing.failed[0].errors)


def test_vector_3_a_custom_validator_is_asked_for_again_and_a_bug_in_one_is_not(models: str) -> None:
    reading = Parsing.of(output(source=f"{models}:Report"), ()).read(
        0, "", [final('{"city": "Atlantis", "celsius": 1}')]
    )
    assert reading is not None
    assert "city: Value error, there is no such city" in reading.messages[0]["content"]
    with pytest.raises(KeyError):
        Parsing.of(output(source=f"{models}:Buggy"), ()).read(0, "", [final('{"city": "Oslo"}')])


@pytest.mark.parametrize(("retries", "calls"), [(2, 3), (0, 1), (3, 4)])
def test_vector_3_attempts_then_parse_error(retries: int, calls: int) -> None:
    parsing, kinds = Parsing.of(output(max_parse_retries=retries), (SEARCH,)), list[str]()
    for turn in range(calls):
        reading = parsing.read(turn, "", [final("{}", turn)])
        assert reading is not None
        assert (len(reading.uses), reading.value) == (1, None)
        parsing = reading.parsing
        kinds.append(reading.kind)
    assert kinds == [*["ask"] * (calls - 1), "parse_error"]
    assert [error.attempt for error in parsing.failed] == list(range(1, calls + 1))


def test_vector_3_success_on_the_second_attempt_keeps_both() -> None:
    parsing = Parsing.of(output(train_failed_parses=False, parse_penalty=0.25), (SEARCH,))
    assert parsing.read(0, "", [ToolCall("a", "search", "{}")]) is None
    first = parsing.read(1, "", [final("{}")])
    assert first is not None
    second = first.parsing.read(2, "", [final(GOOD)])
    assert second is not None
    assert (second.kind, second.value) == ("value", {"city": "Oslo", "celsius": 3.5})
    assert second.parsing.failed == first.parsing.failed
    assert second.parsing.untrained_turns == {1}
    assert second.parsing.penalty == 0.25
    assert Parsing(output(), failed=second.parsing.failed).untrained_turns == frozenset()


def test_tool_mode_shows_a_tool_and_wants_it_called() -> None:
    parsing = Parsing.of(output(), (SEARCH,))
    ask = parsing.ask()
    assert [spec.name for spec in ask.tools] == ["search", FINAL_TOOL]
    assert ask.tools[1].parameters == WEATHER
    assert (ask.body, ask.constrained, parsing.hint) == ({}, False, "")
    reading = parsing.read(0, "It is 3.5 degrees.", [])
    assert reading is not None
    assert (reading.kind, reading.uses, len(reading.parsing.failed)) == ("ask", (), 1)
    assert reading.messages[0]["role"] == "user"
    assert FINAL_TOOL in reading.messages[0]["content"]


@pytest.mark.parametrize(("arguments", "kind"), [(GOOD, "value"), ("{}", "ask")])
def test_invariant_4_calls_beside_the_final_one_get_their_results_and_do_not_run(arguments: str, kind: str) -> None:
    calls = [ToolCall("a", "search", "{}"), final(arguments), final("{}", 2)]
    reading = Parsing.of(output(), (SEARCH,)).read(0, "", calls)
    assert reading is not None
    assert reading.kind == kind
    assert [use.call for use in reading.uses] == calls
    assert [use.result.skipped for use in reading.uses] == [True, False, True]
    assert [message.get("tool_call_id") for message in reading.messages] == ["a", "call_0", "call_2"]
    assert (reading.uses[1].result.error is None) == (kind == "value")


def test_native_without_tools_is_constrained_from_the_start_and_told_in_words() -> None:
    parsing = Parsing.of(output("native"), ())
    ask = parsing.ask()
    form = ask.body["response_format"]
    assert form["json_schema"] == {"name": "Weather_report", "schema": WEATHER, "strict": True}
    assert "tool_choice" not in ask.body
    assert ask.structured_outputs == {"json": WEATHER}
    assert ask.constrained
    assert '"celsius"' in parsing.hint
    reading = parsing.read(0, GOOD, [])
    assert reading is not None
    assert reading.kind == "value"
    wrong = parsing.read(0, "{}", [])
    assert wrong is not None
    assert (wrong.kind, wrong.messages[0]["role"], len(wrong.parsing.failed)) == ("ask", "user", 1)


def test_native_with_tools_is_free_until_it_answers() -> None:
    parsing = Parsing.of(output("native"), (SEARCH,))
    assert parsing.ask().body == {}
    assert parsing.read(0, "", [ToolCall("a", "search", "{}")]) is None
    fits = parsing.read(1, GOOD, [])
    assert fits is not None
    assert fits.kind == "value"
    asked = parsing.read(1, "It is 3.5 degrees.", [])
    assert asked is not None
    assert (asked.kind, asked.parsing.failed) == ("ask", ())
    assert '"celsius"' in asked.messages[0]["content"]
    assert asked.parsing.ask().tools == (SEARCH,)
    assert asked.parsing.ask().body["tool_choice"] == "none"
    off = asked.parsing.read(2, "", [ToolCall("b", "search", "{}")])
    assert off is not None
    assert (off.kind, len(off.parsing.failed), off.uses[0].result.skipped) == ("ask", 1, True)
    assert [message["role"] for message in off.messages] == ["tool", "user"]


def test_two_phases_are_work_and_extraction() -> None:
    parsing = Parsing.of(output("two_phase"), (SEARCH,))
    assert parsing.ask().tools == (SEARCH,)
    assert parsing.read(0, "", [ToolCall("a", "search", "{}")]) is None
    worked = parsing.read(1, GOOD, [])
    assert worked is not None
    assert (worked.kind, worked.parsing.failed) == ("ask", ())
    ask = worked.parsing.ask()
    assert ask.body["tool_choice"]["function"]["name"] == FINAL_TOOL
    assert FINAL_TOOL in [spec.name for spec in ask.tools]
    assert ask.structured_outputs == {"json": WEATHER}
    for text, calls in ((GOOD, []), ("", [final(GOOD)])):  # as tokens, as chat
        reading = worked.parsing.read(2, text, calls)
        assert reading is not None
        assert reading.kind == "value"


def test_two_phases_without_tools_are_the_extraction_alone() -> None:
    parsing = Parsing.of(output("two_phase"), ())
    assert [spec.name for spec in parsing.ask().tools] == [FINAL_TOOL]
    assert parsing.hint
    reading = parsing.read(0, "{", [])
    assert reading is not None
    assert len(reading.parsing.failed) == 1


def test_classes_of_all_kinds_give_their_schema_and_their_defaults(models: str) -> None:
    report = load_schema(f"{models}:Report", "agent.output_schema")
    assert (report.name, report.check(GOOD).value) == ("Report", {"city": "Oslo", "celsius": 3.5, "source": "none"})
    for name in ("Plain", "Typed"):
        schema = load_schema(f"{models}:{name}", "agent.output_schema")
        assert schema.check('{"city": "Oslo"}').value == {"city": "Oslo"}
        assert schema.check("{}").errors == ("city: Field required",)
    node = load_schema(f"{models}:Node", "agent.output_schema")
    assert node.schema["type"] == "object"
    assert node.check('{"name": "a", "children": [{"name": 1}]}').errors[0].startswith("children.0.name: ")


def test_schemas_of_files(tmp_path: Path) -> None:
    path = tmp_path / "weather.json"
    path.write_text(json.dumps({**WEATHER, "description": "\U0001f600"}))
    assert load_schema(str(path), "agent.output_schema").schema["description"] == "\U0001f600"
    assert load_schema(str(path), "agent.output_schema").check(GOOD).errors == ()
    assert OutputConfig().form("agent") is None


def test_many_errors_are_listed_up_to_a_number() -> None:
    numbers = {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "integer"}}}}
    checked = load_schema(numbers, "agent.output_schema").check(json.dumps({"n": ["x" * 1000] * 14}))
    assert len(checked.errors) == 11
    assert checked.errors[-1] == "and 4 more"
    assert max(len(error) for error in checked.errors) == 300


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"type": "objekt"}, "no valid JSON schema: type: "),
        ({"type": "array"}, "type: expected a schema of an object, found 'array'"),
        ({"anyOf": []}, "no valid JSON schema"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/no"}}}, "$ref '#/$defs/no'"),
        ({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/a"}}}, "$ref 'http://127.0.0.1:9/a'"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "no valid JSON schema: properties.a.pattern"),
        ("none.json", "none.json: No such file"),
        ("list.json", "list.json: expected a JSON schema, an object; found list"),
        ("broken.json", "broken.json: cannot be read: JSONDecodeError"),
        ("models.py:Reports", "did you mean 'Report'?"),
        ("models.py:function", "is no class"),
        ("models.py:Unwritable", "cannot be written as a JSON schema"),
        ("builtins:int", "expected a schema of an object, found 'integer'"),
    ],
)
def test_what_is_no_schema_is_one_line_that_names_the_key(
    source: Any, line: str, models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(models).parent)
    Path("list.json").write_text("[1]")
    Path("broken.json").write_text("{")
    with pytest.raises(UserError) as caught:
        OutputConfig(output_schema=source).form("agent")
    assert str(caught.value).startswith("agent.output_schema: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
