"""The driver's side of the watchdog: what it does about a part, and what it writes into the log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from actors.runner import Report
from actors.watch import Watch
from rollout.tally import Tally
from rollout.waits import Sight, Wait
from rollout.watch import Bounds, Mend, Watchdog

SILENT = Wait("host 0", (("tool call", 2),), oldest=70, stalled=70, silent=70)


def watch_of(ended: str | None, mended: list[Mend], silent: float = 60) -> Watch:
    """A watch whose parts are replaced by writing them down."""

    async def mend(mend: Mend) -> str | None:
        mended.append(mend)
        return ended

    bounds = Bounds(stuck=float("inf"), silent=silent, again=0)
    return Watch(Watchdog(bounds, 0.0, frozenset(["host 0"])), mend)


@pytest.mark.parametrize(
    ("ended", "says"),
    [("process 7 on x", "host 0: process 7 on x was ended"), (None, "host 0: left as it is")],
)
async def test_a_silent_part_is_replaced_once_and_the_log_says_what_became_of_it(
    caplog: pytest.LogCaptureFixture, ended: str | None, says: str
) -> None:
    caplog.set_level(logging.INFO)
    mended: list[Mend] = []
    watch = watch_of(ended, mended)
    watch.told("runner-0", Report(sight=Sight(0, (SILENT,))))
    outlook = watch.look()
    assert outlook.waiting == "host 0: silent for 70 s (2 tool calls)"
    await asyncio.sleep(0)
    watch.look()
    await asyncio.sleep(0)
    assert [(mend.part, mend.stalled) for mend in mended] == [("host 0", False)]
    assert f"{outlook.waiting}; replacing it" in caplog.text and says in caplog.text
    assert caplog.text.count("waiting for host 0") == 1
    watch.lost("runner-0")
    assert watch.look().waiting is None
    assert "host 0: waited for no more" in caplog.text


@pytest.mark.parametrize(("ended", "stuck"), [("process 7 on x", True), (None, False)])
async def test_only_replacing_a_part_in_vain_ends_the_run(ended: str | None, stuck: bool) -> None:
    watch = watch_of(ended, [], silent=0)
    watch.told("runner-0", Report(sight=Sight(0, (SILENT,))))
    for _ in range(10):
        stalled = watch.look().stuck
        await asyncio.sleep(0)
    assert (stalled is not None) == stuck


async def test_a_runner_that_only_fails_makes_no_progress() -> None:
    watch = Watch(Watchdog(Bounds(stuck=1.0), -1e9))
    watch.look()
    watch.dog.ended(0.0)  # long ago by any clock
    watch.told("runner-0", Report(tally=Tally(statuses={"failed": 3})))
    assert watch.look().stuck is not None
    watch.told("runner-0", Report(tally=Tally(statuses={"failed": 3, "completed": 1})))
    assert watch.look().stuck is None
