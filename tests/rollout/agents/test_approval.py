"""Approval: which policy counts, what every decision does to the calls of a turn, and how the results are paired."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.agents.approval import About, ApprovalEvent, Approvals, Ruled
from rollout.agents.approval_queue import ApprovalQueue, Request, answer, pending
from rollout.agents.approval_section import ApprovalConfig, PolicyConfig
from rollout.agents.approvers import ApprovalPolicy
from rollout.agents.aside import Told
from rollout.agents.decisions import Approved, Denied, Modified, Redirected, Terminated, decision
from rollout.agents.toolbox import ToolBox
from rollout.errors import BoundaryError, UserError
from rollout.tool_use import skipped
from rollout.trajectory import FailureKind, Message, Score, ToolCall, ToolResult, Transcript

ABOUT = About("run-0-0", 0, "clerk")
BASH = ToolCall("b", "bash", '{"command": "rm x"}')
READ = ToolCall("r", "read", "{}")
NOT_RUN = skipped("not executed: another call of this turn was not approved")


async def ruled(policies: Sequence[ApprovalPolicy], *calls: Any, turn: int = 0, **more: Any) -> Ruled:
    asked = await Approvals(tuple(policies), **more).ask(calls or (BASH, READ), About("run-0-0", turn))
    assert asked.pending == ()
    return await asked.ruled()


def scripted(*script: Any, tools: tuple[str, ...] = ("bash",)) -> ApprovalPolicy:
    return ApprovalPolicy(tools, approver="scripted", script=script)


def function(reply: Any) -> ApprovalPolicy:
    return ApprovalPolicy(("bash",), approver="function", function=lambda request: reply)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("approve", Approved()),
        ("  APPROVE\n", Approved()),
        ("use ls instead", Redirected("use ls instead")),
        ("approved", Redirected("approved")),
        ({"decision": "deny"}, Denied("not permitted")),
        ({"decision": "deny", "reason": "no"}, Denied("no")),
        ({"decision": "modify", "arguments": {"command": "ls"}}, Modified('{"command": "ls"}')),
        ({"decision": "redirect", "text": "stop"}, Redirected("stop")),
        ({"decision": "terminate"}, Terminated()),
        (Denied("no"), Denied("no")),
    ],
)
def test_replies_say_what_is_decided(reply: Any, found: Any) -> None:
    assert decision(reply) == found


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " ",
        True,
        None,
        {},
        {"decision": "aprove"},
        {"decision": "modify", "arguments": [1]},
        {"decision": "redirect"},
    ],
)
def test_replies_that_say_nothing_are_refused(reply: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|is none"):
        decision(reply)


async def test_without_a_policy_that_fits_calls_are_made() -> None:
    found = await ruled([ApprovalPolicy(("delete_*",), approver="deny")])
    assert found == Ruled((BASH, READ))


async def test_the_first_policy_that_fits_counts() -> None:
    delete = ToolCall("d", "delete_all", "{}")
    policies = [
        ApprovalPolicy(("delete_*",), approver="deny", message="never"),
        ApprovalPolicy(("bash",), lambda tool, arguments: "rm" in arguments["command"], "deny"),
        ApprovalPolicy(),
    ]
    ls = ToolCall("l", "bash", '{"command": "ls"}')
    found = await ruled(policies, delete, BASH, ls, READ)
    assert found.rulings == (skipped("not approved: never"), skipped("not approved: not permitted"), ls, READ)
    assert [(one.call_id, one.decision, one.approver) for one in found.events] == [
        ("d", "deny", "deny"),
        ("b", "deny", "deny"),
        ("l", "approve", "auto"),
        ("r", "approve", "auto"),
    ]
    assert (found.stop, found.said, found.in_turn) == (None, (), False)


async def test_calls_that_have_their_result_are_not_asked_about() -> None:
    gone = skipped("there is no tool")
    assert (await ruled([ApprovalPolicy(approver="deny")], gone)).rulings == (gone,)
    broken = ToolCall("b", "bash", "{command")
    found = await ruled([ApprovalPolicy()], broken)
    assert found.rulings == (skipped("the arguments of a tool call must be a JSON object"),)


async def test_a_denied_call_keeps_its_result_and_its_siblings_run() -> None:
    found = await ruled([function(Denied("too much"))])
    assert found.rulings == (skipped("not approved: too much"), READ)
    assert found.in_turn, "somebody was asked, so that they are made one after another"


async def test_a_modified_call_runs_with_other_arguments_and_both_are_known() -> None:
    found = await ruled([function({"decision": "modify", "arguments": {"command": "ls"}})])
    assert found.rulings == (ToolCall("b", "bash", '{"command": "ls"}'), READ)
    assert (found.events[0].decision, found.events[0].arguments) == ("modify", '{"command": "ls"}')


async def test_vector_9_other_text_runs_nothing_and_is_told_behind_the_results() -> None:
    found = await ruled([scripted("use ls instead")])
    assert found.rulings == (skipped("not approved"), NOT_RUN)
    assert found.said == ({"role": "user", "content": "use ls instead"},)
    assert found.stop is None


async def test_the_end_of_the_run_denies_the_turn() -> None:
    found = await ruled([scripted({"decision": "terminate", "reason": "enough"})])
    assert found.rulings == (skipped("not approved: enough"), NOT_RUN)
    assert (found.stop, found.said) == ("approval_denied", ())
    both = await ruled([scripted({"decision": "terminate"}), scripted("look first", tools=("read",))])
    assert (both.stop, both.said) == ("approval_denied", ()), "nobody reads it any more"


async def test_a_script_follows_the_turns_and_its_last_line_repeats() -> None:
    policy = scripted("approve", {"decision": "deny"})
    words = [(await ruled([policy], BASH, turn=turn)).events[0].decision for turn in range(3)]
    assert words == ["approve", "deny", "deny"]


async def test_a_function_is_given_the_request() -> None:
    seen: list[Request] = []

    async def approver(request: Request) -> str:
        seen.append(request)
        return "approve"

    policy = ApprovalPolicy(approver="function", function=approver)
    assert (await ruled([policy], BASH, turn=3)).rulings == (BASH,)
    assert (seen[0].tool, seen[0].arguments, seen[0].turn) == ("bash", BASH.arguments, 3)


async def hang(*_: Any) -> str:
    await asyncio.Event().wait()
    return ""


async def test_vector_9_nobody_answers_in_time() -> None:
    policy = ApprovalPolicy(("bash",), approver="function", function=hang)
    denied = await ruled([policy], timeout=0.01)
    assert denied.rulings == (skipped("not approved: nobody decided within 0.01 s"), READ)
    assert (denied.stop, denied.events[0].decision) == (None, "timeout")
    aborted = await ruled([policy], timeout=0.01, on_timeout="abort")
    assert aborted.rulings[1] == NOT_RUN
    assert aborted.stop == "approval_timeout"
    assert ApprovalConfig().timeout == 300


def bug(*_: Any) -> Any:
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("policy", "timeout"),
    [
        (ApprovalPolicy(approver="function", function=bug), 60.0),
        (ApprovalPolicy(approver="function", function=lambda request: 3), 60.0),
        (ApprovalPolicy(when=bug), 60.0),
        (ApprovalPolicy(when=hang), 0.01),
    ],
)
async def test_an_approver_that_breaks_is_no_denial(policy: ApprovalPolicy, timeout: float) -> None:
    with pytest.raises(BoundaryError) as caught:
        await ruled([policy], timeout=timeout)
    assert caught.value.failure.kind is FailureKind.AGENT


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ('Let me see.\n```json\n{"decision": "approve"}\n```', "approve"),
        ("Approve", "approve"),
        ('{"decision": "deny", "reason": "no"}', "deny"),
        ("I would rather not say", "deny"),
        ('{"decision": "perhaps"}', "deny"),
    ],
)
async def test_a_model_decides_and_nonsense_is_no_approval(said: str, word: str) -> None:
    shown: list[Sequence[Message]] = []

    async def model(messages: Sequence[Message], schema: Any, name: str, seconds: float) -> Told:
        shown.append(messages)
        return Told(said, "judge", 30, 5)

    policy = ApprovalPolicy(("bash",), approver="model", instructions="Nothing is deleted.")
    found = await ruled([policy], model=model)
    assert found.events[0].decision == word
    assert found.events[0].told == Told(said, "judge", 30, 5)
    assert ApprovalEvent.of(found.events[0].event(3)) == found.events[0]
    assert shown[0][0]["content"].startswith("Nothing is deleted.")
    assert "rm x" in shown[0][1]["content"]


class Shell:
    """A session that writes down what ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        self.ran.append(call.arguments)
        return ToolResult("ok"), None

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        return Score(1.0)

    async def close(self) -> None: ...


async def human(place: Path, replies: dict[str, Any], **more: Any) -> tuple[Ruled, Shell]:
    """A turn of BASH and READ where a person replies, by tool, in the order of `replies`; what then ran."""
    queue = ApprovalQueue(str(place), poll_seconds=0.005)
    approvals = Approvals.of(ApprovalConfig(**more), queue, should_interrupt=lambda tool, arguments: True)
    assert approvals is not None
    shell = Shell()
    asked = await approvals.ask((BASH, READ), ABOUT)
    assert {one.tool for one in asked.pending} == {"bash", "read"}
    waiting = asyncio.create_task(asked.ruled())
    for tool, reply in replies.items():
        assert shell.ran == [], "none executes before the decision"
        [request] = [one for one in pending(str(place)) if one.tool == tool]
        answer(str(place), request.id, reply)
    found = await waiting
    used = await ToolBox().use(shell, (BASH, READ), ("bash", "read"), 5, False, found.rulings, found.in_turn)
    assert len(used.uses) == 2, "exactly one result a call"
    assert [use.call for use in used.uses] == [BASH, READ]
    return found, shell


async def test_vector_9_nothing_executes_before_a_person_has_approved(tmp_path: Path) -> None:
    found, shell = await human(tmp_path, {"read": " Approve ", "bash": "APPROVE"})
    assert shell.ran == [BASH.arguments, READ.arguments]
    assert found.in_turn
    assert [one.approver for one in found.events] == ["human", "human"]


async def test_a_person_decides_call_by_call(tmp_path: Path) -> None:
    replies = {"bash": {"decision": "deny", "reason": "no rm"}, "read": "approve"}
    found, shell = await human(tmp_path, replies)
    assert found.rulings == (skipped("not approved: no rm"), READ)
    assert shell.ran == [READ.arguments]


async def test_a_persons_other_text_is_a_redirect(tmp_path: Path) -> None:
    found, shell = await human(tmp_path, {"bash": "look first", "read": "approve"})
    assert shell.ran == []
    assert found.said == ({"role": "user", "content": "look first"},)


async def test_a_person_who_says_nothing_has_not_approved(tmp_path: Path) -> None:
    found, shell = await human(tmp_path, {"read": "approve"}, timeout=0.3)
    assert shell.ran == [READ.arguments]
    assert found.events[0].decision == "timeout"
    assert pending(str(tmp_path)) == (), "it is not asked any more"


async def test_people_are_not_asked_where_the_turn_is_denied_already(tmp_path: Path) -> None:
    policies = (scripted({"decision": "terminate"}), ApprovalPolicy(approver="human"))
    asked = await Approvals(policies, queue=ApprovalQueue(str(tmp_path))).ask((READ, BASH), ABOUT)
    assert asked.pending == ()
    assert (await asked.ruled()).stop == "approval_denied"


def test_an_agent_that_needs_no_approval_has_none_and_one_that_cannot_get_it_is_refused() -> None:
    assert Approvals.of(ApprovalConfig()) is None
    for approver, line in [("human", "expected a folder"), ("model", "expected a model")]:
        config = ApprovalConfig.model_validate({"policies": [{"approver": approver}]})
        with pytest.raises(UserError, match=rf"^agent\.approval: approver {approver}: {line}"):
            Approvals.of(config)
    with pytest.raises(UserError, match=r"^agent\.approval\.policies\.0\.when: "):
        Approvals.of(ApprovalConfig(policies=(PolicyConfig(when="nowhere:f"),)))


@pytest.mark.parametrize(
    "policy", [{"approver": "scripted"}, {"approver": "function"}, {"script": [{"decision": "x"}]}, {"tools": []}]
)
def test_a_policy_without_what_it_needs_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyConfig.model_validate(policy)
