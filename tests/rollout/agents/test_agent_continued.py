"""Agents whose calls are approved, broken off and gone on with: what was decided stands, what waited still waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import ADD, GOLD, LIMITS, SUBMIT, TEMPLATE, counter, lease, says, setting

from resources.ledger import Ledger
from rollout.agents.approval import ApprovalEvent
from rollout.agents.approval_queue import answer, pending
from rollout.agents.aside import Model
from rollout.agents.loading import Around, Loaded, load_agent
from rollout.agents.section import AgentConfig
from rollout.conduct import Acted, Conduct, Plain, Said
from rollout.episode import run_episode
from rollout.invariants import check_rows
from rollout.parking import Parking
from rollout.protocols import Policy
from rollout.resource import Resource
from rollout.row_rules import Known
from rollout.rows import to_table
from rollout.samples import to_samples
from rollout.saved import Saved, decoded, put, record
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.tokens import TokenLedger
from rollout.trajectory import Agent, Completion, Prompt, Sampling, Seconds, StopReason, Task, Trajectory, Turn

PEOPLE = {"policies": [{"tools": ["add"], "approver": "human"}]}
OWN = '''
from pathlib import Path

def pay(amount: int) -> str:
    """Pays.

    Args:
        amount: How much.
    """
    with Path(__file__).with_suffix(".paid").open("a") as file:
        print(amount, file=file)
    return "paid"

def note(*told): ...

def fine(text): ...
'''


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@dataclass
class Kept:
    """The turns that an episode leaves, as they come out of a file; and how they stood after each that came."""

    turns: list[Saved] = field(default_factory=list[Saved])
    states: list[tuple[Saved, ...]] = field(default_factory=list[tuple[Saved, ...]])

    def __call__(self, episode_id: str, number: int, saved: Saved) -> None:
        written = record("", 0, saved)
        put(self.turns, number, decoded(written[written.index(b"\x85\xa4turn") :]))
        self.states.append(tuple(self.turns))


@dataclass
class Unasked:
    """Must not be asked for turns before `since`."""

    inner: Policy
    since: int
    asked: list[Prompt] = field(default_factory=list[Prompt])

    async def complete(self, prompt: Prompt) -> Completion:
        assert prompt.turn >= self.since, f"turn {prompt.turn} was asked again"
        self.asked.append(prompt)
        return await self.inner.complete(prompt)


async def loaded(place: Path, parking: Parking | None = None, model: Any = None, **section: Any) -> Loaded:
    around = Around(Sampling(), None, requests=str(place), model=model, parking=parking or Parking())
    made = await load_agent(AgentConfig.model_validate(section), around)
    if (approvals := made.parts.approvals) is not None and approvals.queue is not None:
        approvals.queue.poll_seconds = 0.005
    return made


async def play(
    agent: Loaded,
    policy: Policy,
    saved: Sequence[Saved] = (),
    keep: Callable[[str, int, Saved], None] | None = None,
    resource: Resource | None = None,
    **changes: Any,
) -> Trajectory:
    job = setting(policy, resource or counter(), conduct=agent.conduct, agent=agent.parts.agent, keep=keep)
    task: Task | None = changes.pop("task", None)
    job = replace(job, restores="replay" if agent.parts.goes_on else None, patience=agent.parts.patience, **changes)
    played = await run_episode(lease(task), job, saved)
    (batch,) = to_table([played]).to_batches()
    findings, _ = check_rows(batch, Known())
    assert findings == []
    return played


async def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, as soon as that is something."""
    async with asyncio.timeout(100):
        while True:
            if found := condition():
                return found
            await asyncio.sleep(0.005)


def files(place: Path) -> list[Path]:
    return sorted(place.iterdir())


async def answered(place: Path, replies: Sequence[Any]) -> None:
    """A person who gives these replies, one after another."""
    for reply in replies:
        await until(lambda: pending(str(place)))
        answer(str(place), pending(str(place))[0].id, reply)


async def with_person(place: Path, playing: Any, *replies: Any) -> Trajectory:
    played, _ = await asyncio.gather(playing, answered(place, replies))
    return played


def timeless(played: Trajectory) -> Trajectory:
    turns = [
        replace(
            turn,
            model_seconds=0.0,
            tool_uses=tuple(replace(use, result=replace(use.result, seconds=0.0)) for use in turn.tool_uses),
        )
        for turn in played.turns
    ]
    events = [replace(one, seconds=0.0) for one in played.events]
    bare = replace(played, turns=tuple(turns), events=tuple(events), started_at=0.0, finished_at=0.0)
    return replace(bare, seconds=Seconds(), restored_turns=None)


REPLIES = {
    "approve": ("approve", "approve"),
    "modify": ({"decision": "modify", "arguments": {"amount": 2}}, "approve"),
    "deny": ({"decision": "deny", "reason": "not yet"}, "approve"),
    "redirect": ("Add two at once.", "approve"),
    "terminate": ("approve", {"decision": "terminate", "reason": "enough"}),
}


@pytest.mark.parametrize("replies", REPLIES.values(), ids=REPLIES)
async def test_wherever_it_is_broken_off_what_a_person_decided_stands(tmp_path: Path, replies: tuple[Any, ...]) -> None:
    agent, kept = await loaded(tmp_path, approval=PEOPLE), Kept()
    whole = await with_person(tmp_path, play(agent, says(*GOLD), keep=kept), *replies)
    assert [event.kind for event in whole.events] == ["approval", "approval"]
    assert [one[-1].answered for one in kept.states[:2]] == [False, True], "kept before a person is asked"
    asked = files(tmp_path)
    for state in kept.states:
        again = await play(agent, Unasked(says(*GOLD), len(state)), state)
        assert timeless(again) == timeless(whole)
        assert again.restored_turns == len(state)
    assert files(tmp_path) == asked, "nobody was asked anything else"


async def test_a_decision_that_was_kept_is_not_looked_for(tmp_path: Path) -> None:
    approval = {"timeout": 0.02, **PEOPLE}
    agent, kept = await loaded(tmp_path, approval=approval), Kept()
    whole = await play(agent, says(ADD, SUBMIT), keep=kept)
    assert [event.detail["decision"] for event in whole.events] == ["timeout"]
    elsewhere = await loaded(tmp_path / "none", approval={"timeout": 3600, **PEOPLE})
    again = await play(elsewhere, Unasked(says(ADD, SUBMIT), 1), kept.states[1])
    assert timeless(again) == timeless(whole), "who had not answered in time has not now"
    assert not (tmp_path / "none").exists()


async def test_what_waits_when_it_is_killed_waits_under_its_name_and_is_sampled_once(tmp_path: Path) -> None:
    agent, kept = await loaded(tmp_path, approval=PEOPLE), Kept()
    playing = asyncio.create_task(play(agent, says(*GOLD), keep=kept))
    await until(lambda: pending(str(tmp_path)))
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    (waiting,) = pending(str(tmp_path))
    answer(str(tmp_path), waiting.id, "approve")  # while nothing runs
    policy = Unasked(says(*GOLD), 1)
    played = await with_person(tmp_path, play(agent, policy, kept.turns), "approve")
    assert (played.reward, played.restored_turns, len(policy.asked)) == (1.0, 1, 2)
    assert sum(file.name.endswith(".request.json") for file in files(tmp_path)) == 2


async def test_what_a_function_did_is_not_done_again(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    approval = {"policies": [{"tools": ["pay", "add"], "approver": "auto"}]}
    agent, kept = await loaded(tmp_path, approval=approval, tools=[{"ref": f"{own}:pay"}]), Kept()
    lines = (call("pay", amount=3) + call("add", amount=1), ADD, SUBMIT)
    whole = await play(agent, says(*lines), keep=kept)
    again = await play(agent, Unasked(says(*lines), 2), kept.turns[:2])
    assert timeless(again) == timeless(whole)
    assert again.reward == 1.0, "the environment's tools were called again: its session stands where it stood"
    assert own.with_suffix(".paid").read_text() == "3\n"


async def test_a_session_from_a_snapshot_is_not_called_again_for_what_is_kept(tmp_path: Path) -> None:
    resource = Ledger(count=1)
    task = next(iter(resource.tasks(0)))
    lines = [call(name, **arguments) for name, arguments in task.data["calls"]]
    approval = {"policies": [{"approver": "scripted", "script": ["approve"]}]}
    agent, kept = await loaded(tmp_path, approval=approval), Kept()
    changes: dict[str, Any] = {"resource": resource, "task": task}
    whole = await play(agent, says(*lines, "Done."), keep=kept, **changes)
    job = setting(Unasked(says(*lines, "Done."), 2), resource, conduct=agent.conduct, agent=agent.parts.agent)
    again = await run_episode(lease(task), replace(job, restores="snapshot"), kept.turns[:2])
    assert timeless(again) == timeless(whole)
    assert (again.restored_turns, len(again.events)) == (2, len(whole.events))


@pytest.mark.parametrize(
    ("section", "goes_on"),
    [
        ({"approval": PEOPLE}, True),
        ({"max_iterations": 3, "output_schema": {"type": "object", "properties": {"sum": {"type": "integer"}}}}, True),
        ({"hooks": {"should_interrupt": "OWN:note"}}, True),
        ({"tools": [{"ref": "OWN:pay"}]}, True),
        ({"sub_agents": {"b": {"description": "b"}}}, True),
        ({"hooks": {"on_stop": "OWN:note"}}, False),
        ({"guardrails": [{"name": "fine", "at": "output", "check": "OWN:fine"}]}, False),
        ({"memory": {}}, False),
        ({"tools": [{"ref": "OWN:pay", "return_direct": True}]}, False),
        ({"sub_agents": {"b": {"description": "b", "memory": {}}}}, False),
        ({"sub_agents": {"b": {"description": "b"}}, "handoffs": {"history_filter": "OWN:note"}}, False),
    ],
)
async def test_only_what_may_be_done_again_is_gone_on_with(tmp_path: Path, section: Any, goes_on: bool) -> None:
    (own := tmp_path / "own.py").write_text(OWN)
    agent = await loaded(tmp_path, **json.loads(json.dumps(section).replace("OWN", str(own))))
    assert agent.parts.goes_on is goes_on
    await agent.close()


async def test_an_agent_that_cannot_go_on_starts_again_and_finds_its_answer(tmp_path: Path) -> None:
    (own := tmp_path / "own.py").write_text(OWN)
    place = tmp_path / "asked"
    agent, kept = await loaded(place, approval=PEOPLE, hooks={"on_stop": f"{own}:note"}), Kept()
    first = await with_person(place, play(agent, says(ADD, SUBMIT), keep=kept), "approve")
    again = await play(agent, says(ADD, SUBMIT), kept.turns)  # the policy says the same again, and nobody answers
    assert (again.restored_turns, again.score) == (0, first.score)


async def test_who_waits_is_away_and_back_when_there_is_a_slot(tmp_path: Path) -> None:
    parking = Parking({"run-0-0"})
    agent = await loaded(tmp_path, parking, approval=PEOPLE)
    playing = asyncio.create_task(play(agent, says(ADD, SUBMIT)))
    assert await until(lambda: parking.take()[0]) == ["run-0-0"]
    answer(str(tmp_path), pending(str(tmp_path))[0].id, "approve")
    assert await until(lambda: parking.take()[1]) == ["run-0-0"]
    assert not playing.done()
    parking.resume(["run-0-0"])
    played = await playing
    assert played.stop_reason is StopReason.ENVIRONMENT
    assert played.events[0].detail["approver"] == "human"


class Slow(Plain):
    """Says of every call that a person took very long for it."""

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        return replace(await super().act(said, turns, seconds, cut), waited=1000.0)


async def test_the_time_of_people_is_not_the_episodes() -> None:
    def slow(agent: Agent, lease: Any) -> Conduct:
        return Slow(agent)

    policy = Unasked(says(*GOLD), 0)
    limits = replace(LIMITS, turn_seconds=10_000.0, episode_seconds=600.0)
    played = await run_episode(lease(), setting(policy, conduct=slow, limits=limits))
    assert [prompt.seconds // 1000 for prompt in policy.asked] == [0, 1, 2]
    assert played.seconds.tool <= 0, "nor its tools'"


JUDGED = {"policies": [{"tools": ["add"], "approver": "model", "instructions": "Nothing is added twice."}]}


def judge(prompt: Prompt) -> Sequence[str]:
    """One model for both: it is held to a form where it is asked about a call."""
    if prompt.extras.grammar is None:
        return GOLD
    return ['{"decision": "approve"}'] if ".0.0." in prompt.request_id else ['{"decision": "deny", "reason": "twice"}']


async def test_the_jobs_own_model_approves_and_that_is_no_turn(tmp_path: Path) -> None:
    asked = Unasked(ScriptedPolicy(TEMPLATE, judge), 0)

    def new_ledger() -> TokenLedger:
        return TokenLedger(TEMPLATE, hermes)

    model = Model(asked, new_ledger, "scripted", tokens=True, priced=lambda completion: 0.25)
    agent, kept = await loaded(tmp_path, model=model, approval=JUDGED), Kept()
    played = await play(agent, asked, keep=kept, priced=lambda turns: 1.0)
    assert [(event.turn, event.detail["decision"], event.detail["reason"]) for event in played.events] == [
        (0, "approve", ""),
        (1, "deny", "twice"),
    ]
    told = [ApprovalEvent.of(event).told for event in played.events]
    assert all(one is not None and one.sampled_tokens > 5 and (one.prompt_tokens or 0) > 20 for one in told)
    questions = [prompt for prompt in asked.asked if prompt.extras.grammar is not None]
    assert len(questions) == 2
    assert all("Nothing is added twice." in TEMPLATE.decode(prompt.ids) for prompt in questions)
    assert all(prompt.sampling.temperature == 0 for prompt in questions)
    assert [turn.text for turn in played.turns] == ["", "", ""], "the judge's words are in no turn"
    trained = sum(sum(one["loss_mask"]) for one in to_samples(to_table([played])).to_pylist())
    assert trained == sum(turn.completion.num_sampled for turn in played.turns)
    assert played.cost == 1.5, "what it costs is the episode's"
    again = await play(agent, Unasked(says(*GOLD), 2), kept.turns[:2], priced=lambda turns: 1.0)
    assert timeless(again) == timeless(played), "what it said then is not asked again"
