"""An episode that a program plays: whatever it does, one sound row, a closed session, and nothing left of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import TEMPLATE, FaultyPolicy, FaultySessions, lease, raising, setting
from hosted import PATIENT, external, hosting, play, python, scripted

from rollout.episode import run_episode
from rollout.errors import ResourceDown
from rollout.external.section import ExternalConfig
from rollout.protocols import Policy
from rollout.resource import Resource, tool
from rollout.scripted import ScriptedPolicy
from rollout.trajectory import (
    Agent,
    FailureKind,
    Score,
    Status,
    StopReason,
    Task,
    ToolResult,
    Transcript,
)

TWO_CALLS = """
first = ask(user("Go."))
print(ask(user("Go."), first, user("On."))["content"])
"""
MCP = """
def call(name, arguments, method="tools/call", number=[0]):
    number[0] += 1
    params = {"name": name, "arguments": arguments} if name else {}
    body = {"jsonrpc": "2.0", "id": number[0], "method": method, "params": params}
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    request = urllib.request.Request(os.environ["TOOLS"], json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request))["result"]
"""
ALL_MCP: dict[str, Any] = {"env": {"TOOLS": "{mcp_url}"}}


class Desk(Resource):
    """An environment that judges the folder a program leaves, or what it answers."""

    name = "desk"

    def tasks(self, seed: int) -> Iterator[Task]:
        yield Task("desk-0", ({"role": "user", "content": "Write the file {data.file}."},), {"file": "out.txt"}, 0)

    async def seed_session(self, task: Task, seed: int) -> Task:
        return task

    @tool
    async def pay(self, session: Task) -> ToolResult:
        """Get paid."""
        return ToolResult("paid", reward=0.5)

    @tool
    async def cease(self, session: Task) -> str:
        """Break."""
        raise ResourceDown("the desk is gone")

    async def verify(self, session: Task, transcript: Transcript) -> Score:
        written = 0.0
        if transcript.workspace is not None:
            written = float(text_of(Path(transcript.workspace, session.data["file"])) == "done")
        return Score(written, {}, {"said": float(len(transcript.answer)), "paid": sum(transcript.rewards)})


def text_of(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def event(row: dict[str, Any], kind: str = "program") -> dict[str, Any]:
    [found] = [json.loads(one["detail"]) for one in row["events"] if one["kind"] == kind]
    return dict(found)


async def test_the_calls_of_a_program_are_the_turns_of_its_row() -> None:
    played = await play(python(TWO_CALLS), ["Yes.", "All done."])
    one = played.trajectory
    assert (one.status, one.stop_reason, one.reward, one.failure) == (Status.COMPLETED, StopReason.DONE, 0.0, None)
    assert [turn.text for turn in one.turns] == ["Yes.", "All done."]
    assert [message["role"] for message in one.messages] == ["user", "assistant", "user", "assistant"]
    assert one.answer is None, "it is the last turn's text"
    assert event(played.row)["printed"] == "All done.\n" and event(played.row)["status"] == 0
    assert played.findings == []
    assert len(played.table) == 0 and played.table.opened == 1
    assert one.seconds.model > 0


async def test_the_answer_may_be_what_it_prints_and_is_else_what_was_said_last() -> None:
    code = "ask(user('Go.'))\nask(user('Else.'))\nprint('41')\nprint('42')"
    printed = await play(python(code), answer="printed", resource=Desk())
    assert printed.trajectory.answer == "41\n42"
    assert printed.row["metrics"] == [("said", 5.0), ("paid", 0.0)]
    # A conversation that began later ends sooner: the row has it last, but it is not the answer.
    code = "one = ask(user('Go.'))\nask(user('Below.'))\nask(user('Go.'), one, user('On.'))"

    def script(prompt: Any) -> list[str]:
        return {"Go.": ["Going."], "Below.": ["Looked."], "On.": ["Arrived."]}[prompt.messages[-1]["content"]]

    said = await play(python(code), scripted(script))
    assert [turn.text for turn in said.trajectory.turns] == ["Going.", "Arrived.", "Looked."]
    assert said.trajectory.answer == "Arrived."
    assert printed.findings == said.findings == []


async def test_a_program_uses_the_tools_of_the_environment_and_ends_it() -> None:
    code = MCP + (
        "ask(user('Go.'))\n"
        "names = [tool['name'] for tool in call('', {}, 'tools/list')['tools']]\n"
        "for _ in range(2): call('add', {'amount': 1})\n"
        "wrong = call('add', {'amount': 'x'})\n"
        "said = call('submit', {})['content'][0]['text']\n"
        "print(names, wrong['isError'], said, call('add', {'amount': 1})['isError'])\n"
        "try: ask(user('More.'))\nexcept urllib.error.HTTPError as error: print(error.code)"
    )
    played = await play(python(code), **ALL_MCP)
    assert event(played.row)["printed"] == "['add', 'submit'] True 2 True\n403\n"
    assert (played.trajectory.stop_reason, played.trajectory.reward) == (StopReason.ENVIRONMENT, 1.0)
    assert [(one.name, dict(one.detail)) for one in played.trajectory.events if one.kind == "tool"] == [
        ("add", {"error": played.trajectory.events[0].detail["error"]}),
        ("submit", {"done": True}),
    ]
    assert played.trajectory.seconds.tool > 0
    assert played.findings == []


async def test_step_rewards_reach_the_verifier_and_tools_that_the_agent_lacks_are_none() -> None:
    code = MCP + "ask(user('Go.'))\nprint(call('pay', {})['isError'], call('cease', {})['isError'])"
    played = await play(python(code), resource=Desk(), agent=Agent(tools=("pay",)), **ALL_MCP)
    assert event(played.row)["printed"] == "False True\n"
    assert played.row["metrics"][1] == ("paid", 0.5)


async def test_a_tool_that_cannot_work_is_a_failure_whatever_the_program_makes_of_it() -> None:
    code = MCP + "ask(user('Go.'))\ncall('cease', {})\ncall('cease', {})\nprint('fine')"
    one = (await play(python(code), resource=Desk(), **ALL_MCP)).trajectory
    assert one.failure is not None and one.reward is None
    assert (one.failure.kind, one.failure.where) == (FailureKind.TOOL, "cease")
    assert len(one.turns) == 1


@pytest.mark.parametrize(
    ("code", "changes", "section", "said"),
    [
        ("", {}, {}, "ended without an answer of the model"),
        ("sys.exit('no settings')", {}, {}, "exited with 1 without an answer of the model; it said: no settings"),
        ("os.kill(os.getpid(), 9)", {}, {}, "exited with -9 without an answer of the model"),
        ("import time; time.sleep(60)", {}, {"seconds": 0.5, "kill_seconds": 0}, "asked the model nothing within"),
    ],
)
async def test_a_program_that_never_asks_the_model_is_a_failure(
    code: str, changes: Any, section: Any, said: str
) -> None:
    played = await play(python(code), changes=changes, **section)
    failure = played.trajectory.failure
    assert failure is not None and failure.kind is FailureKind.AGENT and failure.where.startswith("python")
    assert failure.message.startswith(said)
    assert played.trajectory.reward is None and played.findings == [] and len(played.table) == 0


async def test_a_program_that_fails_after_its_calls_is_scored_as_it_stands() -> None:
    played = await play(python("ask(user('Go.'))\nsys.exit(7)"))
    assert (played.trajectory.status, played.trajectory.reward) == (Status.COMPLETED, 0.0)
    assert event(played.row)["status"] == 7
    assert played.findings == []


async def test_what_cannot_be_started_is_a_failure_that_says_so() -> None:
    failure = (await play(("no-such-program-here",))).trajectory.failure
    assert failure is not None
    assert (failure.kind, failure.where) == (FailureKind.AGENT, "no-such-program-here")
    assert "FileNotFoundError" in failure.message


async def test_an_engine_that_fails_is_the_engines_failure_unless_a_later_call_succeeds() -> None:
    down: Policy = FaultyPolicy(ScriptedPolicy(TEMPLATE, ["Yes."]), raising(ResourceDown("no replica")), turn=1)
    twice = "first = ask(user('Go.'))\ntry: ask(user('Go.'), first, user('On.'))\nexcept Exception: pass\n"
    one = (await play(python(twice + "print('fine')"), down)).trajectory
    assert one.failure is not None and one.failure.kind is FailureKind.MODEL and "no replica" in one.failure.message
    assert (len(one.turns), one.reward) == (1, None)
    again = await play(python(twice + "ask(user('Otherwise.'))"), down)
    assert again.trajectory.failure is None and len(again.trajectory.turns) == 2
    assert again.findings == []


@pytest.mark.parametrize(
    ("changes", "stop"),
    [({"max_turns": 1}, StopReason.MAX_TURNS), ({"max_tokens": 2, "turn_tokens": 2}, StopReason.MAX_TOKENS)],
)
async def test_limits_truncate_and_the_program_is_scored(changes: Any, stop: StopReason) -> None:
    played = await play(python(TWO_CALLS), changes=changes)
    assert (played.trajectory.status, played.trajectory.stop_reason) == (Status.TRUNCATED, stop)
    assert (len(played.trajectory.turns), played.trajectory.reward) == (1, 0.0)
    assert event(played.row)["status"] == 1 and "403" in event(played.row)["complained"]
    assert played.findings == []


async def test_a_program_whose_time_is_up_is_ended_and_scored() -> None:
    code = "ask(user('Go.'))\nopen('out.txt', 'w').write('done')\nprint('begun', flush=True)\n"
    code += "import time; time.sleep(600)"
    for seconds in PATIENT:
        played = await play(python(code), resource=Desk(), seconds=seconds, kill_seconds=0.2)
        if played.trajectory.turns and "begun" in event(played.row)["printed"]:
            break
    assert (played.trajectory.stop_reason, played.trajectory.reward) == (StopReason.TIMEOUT, 1.0)
    assert event(played.row) == {"status": None, "late": True, "printed": "begun\n", "complained": ""}
    assert played.findings == []


async def test_a_prompt_that_does_not_fit_truncates_who_gives_up_over_it() -> None:
    code = "ask(user('Go.'))\nask(user('word ' * 6000))"
    played = await play(python(code))
    assert (played.trajectory.stop_reason, len(played.trajectory.turns)) == (StopReason.CONTEXT, 1)
    whole = await play(python("try: ask(user('word ' * 6000))\nexcept Exception: ask(user('Shorter.'))"))
    assert (whole.trajectory.stop_reason, len(whole.trajectory.turns)) == (StopReason.DONE, 1)
    first = await play(python("ask(user('word ' * 6000))"))
    assert (first.trajectory.stop_reason, first.trajectory.turns) == (StopReason.CONTEXT, ())


async def test_an_episode_that_is_dropped_is_on_the_record_and_its_program_ends(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"ask(user('Go.'))\nopen({str(file)!r}, 'w').write(str(os.getpid()))\nimport time; time.sleep(600)"
    drops: dict[str, str] = {}
    task = asyncio.create_task(play(python(code), drops=drops))
    for _ in range(1000):
        await asyncio.sleep(0.02)
        if file.exists() and file.read_text():
            break
    drops["run-0-0"] = "straggler"
    task.cancel()
    played = await task
    assert (played.trajectory.drop_reason, len(played.trajectory.turns)) == ("straggler", 1)
    assert played.findings == [] and len(played.table) == 0
    assert not psutil.pid_exists(int(file.read_text()))


async def test_the_workspace_is_a_copy_that_the_verifier_sees_and_goes_with_the_episode(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "in.txt").write_text("done")
    code = "ask(user('Go.'))\nopen(sys.argv[1], 'w').write(open('in.txt').read())\n"
    code += "print(os.getcwd(), os.environ['HOME'])"
    given: dict[str, Any] = {"workspace": str(source), "folder": str(tmp_path / "made"), "resource": Desk()}
    played = await play((*python(code), "{data.file}"), **given)
    assert played.trajectory.reward == 1.0
    where, home = event(played.row)["printed"].split()
    assert Path(where).parent == Path(home).parent and Path(where).parents[1] == tmp_path / "made"
    assert text_of(Path(where, "out.txt")) is text_of(source / "out.txt") is None
    assert list((tmp_path / "made").iterdir()) == []
    kept = await play((*python(code), "{data.file}"), keep=True, **given)
    assert (Path(event(kept.row)["folder"]) / "workspace" / "out.txt").read_text() == "done"
    wrong = (await play(python(code), workspace=str(tmp_path / "none"))).trajectory.failure
    assert wrong is not None and wrong.where == "agent.external.workspace" and "none" in wrong.message


async def test_no_secret_reaches_the_row_or_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    monkeypatch.setenv("OTHER_TOKEN", "not-passed-on")
    code = (
        "ask(user('Go.'))\n"
        "print(dict(os.environ), sys.argv, open(os.environ['HOME'] + '/.x/settings').read())\n"
        "print(os.environ['MY_TOKEN'], file=sys.stderr)\n"
        "open('out.txt', 'w').write('' if 'OTHER_TOKEN' in os.environ or any("
        "os.environ['OPENAI_API_KEY'] in arg or os.environ['MY_TOKEN'] in arg for arg in sys.orig_argv) else 'done')"
    )
    files = {".x/settings": "url = {base_url} key = {key}"}
    command = (*python(code), "{base_url} {key} {model} {task_id}")
    played = await play(command, resource=Desk(), pass_env=["MY_TOKEN"], files=files)
    assert played.trajectory.reward == 1.0
    told = json.dumps(played.row, default=str)
    assert "s3cret" not in told and "not-passed-on" not in told
    printed = event(played.row)["printed"]
    assert printed.count("[hidden]") >= 6 and "{base_url} {key} m desk-0" in printed
    assert event(played.row)["complained"] == "[hidden]\n"


async def test_the_program_reads_what_is_to_be_done_where_it_looks_for_it() -> None:
    code = "print(ask(user('Go.'))['content'], sys.argv[1], sys.stdin.read(), os.environ['WHO'])"
    agent = Agent(instructions="You are brief.")
    played = await play((*python(code), "--do={instruction}"), stdin=True, agent=agent, env={"WHO": "{instructions}"})
    what = "Add 1 twice, then submit."
    assert event(played.row)["printed"] == f"Done. --do={what} {what} You are brief.\n"


async def test_a_session_that_cannot_be_closed_or_judged_is_as_it_is_for_every_agent() -> None:
    policy = ScriptedPolicy(TEMPLATE, ["Yes."])
    sessions = FaultySessions({"verify": raising(ValueError("no verdict"))})
    config = ExternalConfig(command=python("ask(user('Go.'))"))
    async with hosting(policy) as host:
        job = setting(policy, sessions)
        played = await run_episode(lease(), replace(job, program=external(config, host, job).program))
    assert played.failure is not None and played.failure.kind is FailureKind.VERIFY
    assert len(played.turns) == 1 and len(sessions.table) == 0
