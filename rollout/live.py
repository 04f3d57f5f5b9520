"""What a person sees while a job runs: a live block on a terminal, a plain line now and then anywhere else.

The driver calls `update` as often as it likes and passes the clock in; nothing here starts a thread or reads a
clock, and what is kept does not grow. Everything goes to stderr, so that stdout stays the command's own.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as Block
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rollout.tally import Tally
from rollout.trajectory import Status

RATE_SECONDS = 10.0
"""Rates are of the last so many seconds,"""
ETA_SECONDS = 60.0
"""the time left follows from the last so many."""
SAMPLE_SECONDS = 0.5
REFRESH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is shown, and what rates are differences of."""

    now: float
    tally: Tally
    in_flight: int = 0
    total: int | None = None
    waiting: str | None = None
    asking: int = 0


class Live:
    """Progress of one job. A context manager; the last state is shown when it is left.

    `already` counts episodes that an earlier run of the same job finished: they are done, but say nothing about
    speed. `every` is the seconds between two lines where there is no terminal.
    """

    def __init__(self, console: Console | None = None, every: float = 10.0, already: int = 0) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._every = every
        self._already = already
        self._past: deque[_Moment] = deque()
        self._last: _Moment | None = None
        self._shown: _Moment | None = None
        self._block: Block | None = None

    @property
    def already(self) -> int:
        """Episodes that an earlier run of the same job finished."""
        return self._already

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._block = Block(console=self._console, auto_refresh=False, redirect_stdout=False)
            self._block.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._last is not None and self._last is not self._shown:
            self._show(self._last)
        if self._block is not None:
            self._block.stop()

    def update(
        self, tally: Tally, in_flight: int, total: int | None, waiting: str | None, now: float, asking: int = 0
    ) -> None:
        """Takes the newest state in and shows it when it is time to.

        `total` counts all episodes of the job, None when nobody knows; `waiting` names what the job waits for;
        `now` is Unix time in seconds; `asking` counts episodes that wait for a person.
        """
        moment = _Moment(now, tally, in_flight, total, waiting, asking)
        if self._last is None:
            self._past.append(moment)
        self._last = moment
        if now - self._past[-1].now >= SAMPLE_SECONDS:
            self._past.append(moment)
            while len(self._past) > 2 and self._past[1].now <= now - ETA_SECONDS:
                self._past.popleft()
        if self._due(moment):
            self._show(moment)

    def _due(self, moment: _Moment) -> bool:
        if self._shown is None or _subject(moment) != _subject(self._shown):
            return True
        pause = self._every if self._block is None else REFRESH_SECONDS
        return moment.now - self._shown.now >= pause

    def _show(self, moment: _Moment) -> None:
        self._shown = moment
        if self._block is not None:
            self._block.update(self._frame(moment), refresh=True)
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(moment.now))
            self._console.print(Text("  ".join([clock, *self._parts(moment)])), soft_wrap=True)

    def _parts(self, moment: _Moment) -> list[str]:
        tally = moment.tally
        parts = [f"{self._done(moment)} done", f"{moment.in_flight:,} in flight", *_asking(moment)]
        if tally.mean_reward is not None:
            parts.append(f"reward {tally.mean_reward:.2f}")
        parts += self._rates(moment)
        if tally.failed:
            parts.append(f"failed {tally.failed:,} ({_counts(tally)})")
        if tally.retries:
            parts.append(f"retried {tally.retries:,}")
        if (left := self._seconds_left(moment)) is not None:
            parts.append(f"ETA {duration(left)}")
        if moment.waiting is not None:
            parts.append(f"waiting for {moment.waiting}")
        return parts

    def _frame(self, moment: _Moment) -> RenderableType:
        tally = moment.tally
        left = self._seconds_left(moment)
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=moment.total or None, completed=self._already + tally.episodes, width=30)
        head.add_row(
            "episodes",
            *([bar] if moment.total else []),
            f"{self._done(moment)} done",
            f"{moment.in_flight:,} in flight",
            *_asking(moment),
            f"{duration(left)} left" if left is not None else "",
        )
        reward = "no reward yet" if tally.mean_reward is None else f"reward {tally.mean_reward:.3f}"
        lines: list[RenderableType] = [head, Text("  ".join([reward, *self._rates(moment)]))]
        troubles = [f"truncated {cut:,}"] if (cut := tally.statuses.get(Status.TRUNCATED.value, 0)) else []
        troubles += [f"retried {tally.retries:,}"] if tally.retries else []
        if troubles:
            lines.append(Text("  ".join(troubles), style="yellow"))
        if tally.failed:
            lines.append(Text(f"failed {tally.failed:,} ({_counts(tally)})", style="red"))
        if moment.waiting is not None:
            lines.append(Text(f"waiting for {moment.waiting}", style="yellow"))
        return Group(*lines)

    def _done(self, moment: _Moment) -> str:
        done = f"{self._already + moment.tally.episodes:,}"
        return done if moment.total is None else f"{done}/{moment.total:,}"

    def _rates(self, moment: _Moment) -> list[str]:
        then = self._before(moment, RATE_SECONDS)
        seconds = moment.now - then.now
        if seconds <= 0:
            return []
        turns = (moment.tally.turns - then.tally.turns) / seconds
        tokens = (moment.tally.completion_tokens - then.tally.completion_tokens) / seconds
        return [f"{_rate(turns)} turns/s", f"{_rate(tokens)} tokens/s"]

    def _seconds_left(self, moment: _Moment) -> float | None:
        if moment.total is None:
            return None
        left = moment.total - self._already - moment.tally.episodes
        then = self._before(moment, ETA_SECONDS)
        done, seconds = moment.tally.episodes - then.tally.episodes, moment.now - then.now
        if left <= 0 or done <= 0 or seconds <= 0:
            return None
        return left * seconds / done

    def _before(self, moment: _Moment, seconds: float) -> _Moment:
        """The newest moment that is `seconds` old, or the oldest there is."""
        found = self._past[0]
        for past in self._past:
            if past.now > moment.now - seconds:
                break
            found = past
        return found


def _subject(moment: _Moment) -> str | None:
    """What is waited for, without how much of it and for how long: that changes all the time."""
    return moment.waiting.partition(":")[0] if moment.waiting is not None else None


def _asking(moment: _Moment) -> list[str]:
    return [f"{moment.asking:,} wait for approval"] if moment.asking else []


def duration(seconds: float) -> str:
    """`0:41`, `12:03` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def _counts(tally: Tally) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in tally.failures.items())
