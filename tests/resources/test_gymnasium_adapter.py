import sys
from itertools import islice

import pytest

pytest.importorskip("gymnasium")

from resources.gymnasium_adapter import GymnasiumResource
from rollout.errors import UserError
from rollout.sessions import SessionTable
from rollout.trajectory import ToolCall


async def moves(resource: GymnasiumResource, *actions: str, seed: int = 0) -> list[str]:
    """What is seen at the start and after each action."""
    table = SessionTable(resource)
    session, opening = await table.seed(next(iter(resource.tasks(0))), seed, 60)
    seen = [opening[-1]["content"]]
    for action in actions:
        seen.append((await table.call(session, ToolCall("a", "step", f'{{"action": "{action}"}}'), 5)).content)
    await table.close(session)
    return seen


async def test_a_lake_is_read_as_text() -> None:
    resource = GymnasiumResource(env_options={"map_name": "4x4", "is_slippery": False})
    start, after = await moves(resource, "Right")
    assert start == "[S]FFF\nFHFH\nFFFH\nHFFG"
    assert after.endswith("S[F]FF\nFHFH\nFFFH\nHFFG")


async def test_an_action_that_means_nothing_is_a_tool_error() -> None:
    _, said = await moves(GymnasiumResource(), "sideways")
    assert said.startswith("error: no action 'sideways'")


async def test_each_task_has_a_lake_of_its_own_that_gold_crosses() -> None:
    resource = GymnasiumResource(count=6)
    tasks = list(resource.tasks(0))
    sessions = [await resource.seed_session(task, 0) for task in tasks]
    openings = {resource.opening(session, task)[-1]["content"] for session, task in zip(sessions, tasks, strict=True)}
    assert len(openings) > 3
    for session, task in zip(sessions, tasks, strict=True):
        rewards = [
            (await resource.step(session, arguments["action"])).reward for _, arguments in resource.gold(task).calls
        ]
        assert sum(reward or 0.0 for reward in rewards) == 1.0
        await resource.close(session)


async def test_chance_follows_the_session_seed_and_the_start_the_task() -> None:
    resource = GymnasiumResource(env="Blackjack-v1")
    hits = ["hit"] * 3
    plays = [await moves(resource, *hits, seed=seed) for seed in range(8)]
    assert plays == [await moves(resource, *hits, seed=seed) for seed in range(8)]
    assert len({play[0] for play in plays}) == 1
    assert len({tuple(play) for play in plays}) > 1
    assert plays[0][0].startswith("Your hand: ")


async def test_too_many_steps_truncate() -> None:
    resource = GymnasiumResource(max_steps=2)
    table = SessionTable(resource)
    session, _ = await table.seed(next(iter(resource.tasks(0))), 0, 60)
    call = ToolCall("a", "step", '{"action": "left"}')
    results = [await table.call(session, call, 5) for _ in range(3)]
    assert [result.done for result in results] == [False, True, False]
    assert results[-1].error == "the game is over"
    await table.close(session)


def test_action_names_can_be_given() -> None:
    names = ["west", "south", "east", "north"]
    resource = GymnasiumResource(actions=names)
    task = next(iter(resource.tasks(0)))
    assert "west, south, east, north" in task.messages[0]["content"]
    assert {arguments["action"] for _, arguments in resource.gold(task).calls} <= set(names)
    with pytest.raises(UserError, match="4 different names"):
        GymnasiumResource(actions=["left", "right"])


def test_slippery_ice_has_no_certain_way() -> None:
    resource = GymnasiumResource(env_options={"is_slippery": True})
    with pytest.raises(NotImplementedError):
        resource.gold(next(iter(resource.tasks(0))))


def test_options_an_environment_does_not_take_are_the_users() -> None:
    with pytest.raises(UserError, match="cannot make FrozenLake-v1"):
        GymnasiumResource(env_options={"ice": "thin"})


def test_without_gymnasium_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match="needs the package gymnasium"):
        GymnasiumResource()


def test_tasks_of_a_seed_repeat() -> None:
    resource = GymnasiumResource()
    assert list(islice(resource.tasks(1), 4)) == list(islice(resource.tasks(1), 4))
