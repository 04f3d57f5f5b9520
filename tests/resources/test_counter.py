import pytest

from resources.counter import Counter
from rollout.sessions import SessionTable
from rollout.trajectory import StopReason, ToolCall, ToolResult, Transcript

EMPTY = Transcript((), StopReason.ENVIRONMENT)


async def play(counter: Counter, *calls: tuple[str, str]) -> tuple[list[ToolResult], float]:
    table = SessionTable(counter)
    session, _ = await table.seed(next(iter(counter.tasks(0))), 0, 60)
    results = [await table.call(session, ToolCall("a", name, arguments), 5) for name, arguments in calls]
    score = await table.verify(session, EMPTY, 5)
    await table.close(session)
    return results, score.reward


async def test_the_submitted_target_scores_and_ends_the_episode() -> None:
    results, reward = await play(Counter(target=2), *[("add", '{"amount": 1}')] * 2, ("submit", "{}"))
    assert [(result.content, result.done) for result in results] == [("1", False), ("2", False), ("2", True)]
    assert reward == 1.0


@pytest.mark.parametrize(
    "calls",
    [
        [("add", '{"amount": 2}')],
        [("add", '{"amount": 3}'), ("submit", "{}")],
        [("submit", "{}"), ("add", '{"amount": 2}')],
    ],
)
async def test_anything_else_scores_nothing(calls: list[tuple[str, str]]) -> None:
    assert (await play(Counter(target=2), *calls))[1] == 0.0


def test_the_task_says_what_to_do() -> None:
    tasks = list(Counter(count=2).tasks(0))
    assert [task.messages[0]["content"] for task in tasks] == ["Add 1 four times, then submit."] * 2
    assert next(iter(Counter(target=40).tasks(0))).messages[0]["content"] == "Add 1 40 times, then submit."
