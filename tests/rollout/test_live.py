"""The progress view: what it says, when, and where."""

import io
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from rollout.live import Live, duration
from rollout.tally import Tally

NOON = time.mktime((2026, 1, 5, 12, 0, 0, 0, 0, -1))
EACH = Tally({"completed": 1}, {"done": 1}, scored=1, rewards=0.5, turns=4, completion_tokens=100)


def of(episodes: int) -> Tally:
    return replace(
        EACH,
        statuses={"completed": episodes},
        stops={"done": episodes},
        scored=episodes,
        rewards=0.5 * episodes,
        turns=4 * episodes,
        completion_tokens=100 * episodes,
    )


def plain(width: int = 40) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, highlight=False), out


def test_one_line_every_so_often_and_a_last_one() -> None:
    console, out = plain()
    with Live(console, every=10.0) as live:
        for second in range(26):
            live.update(of(5 * second), 256, 2000, None, NOON + second)
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["12:00:00", "12:00:10", "12:00:20", "12:00:25"]
    assert lines[0] == "12:00:00  0/2,000 done  256 in flight"
    assert lines[2] == ("12:00:20  100/2,000 done  256 in flight  reward 0.50  20 turns/s  500 tokens/s  ETA 6:20"), (
        "a narrow console does not break the line"
    )


def test_rates_are_of_the_last_seconds() -> None:
    console, out = plain()
    with Live(console, every=10.0) as live:
        for second in range(100):
            live.update(of(100 * second), 1, None, None, NOON + second)
        for second in range(100, 131):
            live.update(of(9900), 1, None, None, NOON + second)
    last = out.getvalue().splitlines()[-1]
    assert "0.0 turns/s  0.0 tokens/s" in last
    assert "9,900 done" in last
    assert "ETA" not in last


def test_failures_waiting_and_resumed_episodes_are_told() -> None:
    console, out = plain()
    with Live(console, already=1000) as live:
        live.update(Tally(), 0, 2000, "1 GPU", NOON)
        live.update(Tally(), 0, 2000, "1 GPU", NOON + 1)
        broken = Tally({"completed": 7, "failed": 3}, {}, {"model": 2, "tool": 1}, retries=4)
        live.update(broken, 5, 2000, None, NOON + 2)
    waiting, going = out.getvalue().splitlines()
    assert waiting.endswith("1,000/2,000 done  0 in flight  waiting for 1 GPU")
    assert "1,010/2,000 done  5 in flight" in going
    assert "failed 3 (model 2, tool 1)  retried 4" in going


def test_another_part_that_is_waited_for_is_told_at_once_and_its_growing_age_only_in_its_turn() -> None:
    console, out = plain()
    with Live(console, every=10.0) as live:
        for second in range(10):
            live.update(Tally(), 3, None, f"host 1: silent for {second} s", NOON + second)
        live.update(Tally(), 3, None, "host 2: silent for 9 s", NOON + 10)
    told = [line.partition("waiting for ")[2] for line in out.getvalue().splitlines()]
    assert told == ["host 1: silent for 0 s", "host 2: silent for 9 s"]


def test_what_is_kept_does_not_grow() -> None:
    console, _ = plain()
    with Live(console) as live:
        for step in range(20_000):
            live.update(of(step), 1, None, None, NOON + step / 10)
        assert len(vars(live)["_past"]) < 200


def test_a_clock_that_steps_back_does_no_harm() -> None:
    console, out = plain()
    with Live(console) as live:
        live.update(of(1), 1, 10, None, NOON)
        live.update(of(2), 1, 10, None, NOON - 3600)
    assert len(out.getvalue().splitlines()) == 2


def test_nothing_happened() -> None:
    console, out = plain()
    with Live(console):
        pass
    assert out.getvalue() == ""


def test_a_terminal_gets_a_block_that_stays() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with Live(console, every=10.0) as live:
        for second in range(5):
            live.update(replace(of(5 * second), failures={}), 256, 2000, None, NOON + second)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "20/2,000 done  256 in flight" in shown
    assert "reward 0.500  20 turns/s  500 tokens/s" in shown
    assert "12:00" not in shown, "no lines beside the block"


def test_it_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Live() as live:
        live.update(of(1), 1, 10, None, NOON)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1/10 done" in captured.err


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (41, "0:41"), (723, "12:03"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
