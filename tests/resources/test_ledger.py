import json
from itertools import islice
from typing import Any

import pytest

from resources.ledger import Ledger
from rollout.sessions import SessionTable
from rollout.trajectory import Score, StopReason, Task, ToolCall, ToolResult, Transcript

TASK = Task("t", (), {"opening": {"Ada": 500, "Boris": 100}, "expected": {"Ada": 450, "Boris": 150}})
CLAIM = Transcript(({"role": "assistant", "content": "All of it is done."},), StopReason.DONE)


async def play(task: Task, *calls: tuple[str, dict[str, Any]]) -> tuple[list[ToolResult], Score]:
    table = SessionTable(Ledger())
    session, _ = await table.seed(task, 0, 60)
    results = [await table.call(session, ToolCall("a", name, json.dumps(args)), 5) for name, args in calls]
    score = await table.verify(session, CLAIM, 5)
    await table.close(session)
    return results, score


async def test_the_state_scores_however_it_was_reached() -> None:
    _, at_once = await play(TASK, ("transfer", {"sender": "Ada", "receiver": "Boris", "cents": 50}))
    _, in_steps = await play(
        TASK, ("withdraw", {"owner": "Ada", "cents": 50}), ("deposit", {"owner": "Boris", "cents": 50})
    )
    assert at_once.reward == in_steps.reward == 1.0


async def test_a_claim_does_not_score_and_half_the_accounts_are_a_metric() -> None:
    _, idle = await play(TASK)
    _, half = await play(TASK, ("withdraw", {"owner": "Ada", "cents": 50}))
    assert (idle.reward, idle.metrics["accounts"]) == (0.0, 0.0)
    assert (half.reward, half.metrics["accounts"]) == (0.0, 0.5)


async def test_an_account_too_many_is_wrong() -> None:
    _, score = await play(
        TASK,
        ("transfer", {"sender": "Ada", "receiver": "Boris", "cents": 50}),
        ("open_account", {"owner": "Chidi"}),
    )
    assert score.reward == 0.0


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("withdraw", {"owner": "Ada", "cents": 501}, "insufficient funds"),
        ("transfer", {"sender": "Boris", "receiver": "Ada", "cents": 101}, "insufficient funds"),
        ("transfer", {"sender": "Ada", "receiver": "Zoe", "cents": 1}, "Zoe has no account"),
        ("transfer", {"sender": "Ada", "receiver": "Ada", "cents": 1}, "are the same"),
        ("deposit", {"owner": "Ada", "cents": 0}, "greater than 0"),
        ("deposit", {"owner": "Ada", "cents": 10**30}, "less than or equal"),
        ("open_account", {"owner": "Ada"}, "has an account already"),
        ("balance", {"owner": "Ada'; DROP TABLE accounts; --"}, "has no account"),
    ],
)
async def test_what_the_bank_refuses_changes_nothing(name: str, arguments: dict[str, Any], said: str) -> None:
    (refused, accounts), _ = await play(TASK, (name, arguments), ("list_accounts", {}))
    assert refused.error is not None
    assert said in refused.content
    assert json.loads(accounts.content) == {"Ada": 500, "Boris": 100}


async def test_balances_are_told_in_cents() -> None:
    (opened, paid, balance), _ = await play(
        TASK,
        ("open_account", {"owner": "Chidi"}),
        ("deposit", {"owner": "Chidi", "cents": 1234}),
        ("balance", {"owner": "Chidi"}),
    )
    assert (opened.error, paid.error, balance.content) == (None, None, "1234")


async def test_every_generated_task_can_be_carried_out() -> None:
    for task in islice(Ledger(orders=12).tasks(3), 200):
        results, score = await play(task, *[(name, dict(args)) for name, args in task.data["calls"]])
        assert [result.error for result in results if result.error] == []
        assert score.reward == 1.0


def test_tasks_are_made_from_seed_and_index_alone() -> None:
    first, second = list(Ledger(count=5).tasks(1)), list(islice(Ledger().tasks(1), 5))
    assert first == second
    assert first != list(Ledger(count=5).tasks(2))
