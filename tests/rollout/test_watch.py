"""The watchdog: whom it names, what it replaces, when it ends a run."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rollout.sections import LimitsConfig
from rollout.waits import Sight, Wait
from rollout.watch import MEMORY_SECONDS, MOST_MENDS, Bounds, Outlook, Watchdog

BOUNDS = Bounds(stuck=400.0, silent=60.0, again=100.0)
PARTS = frozenset(["host 0", "host 1", "model slot 0"])
TOOL_CALL = Wait("host 1", (("tool call", 12),), oldest=5, stalled=5, silent=5)
MODEL_CALLS = Wait("model slot 0", (("model call", 4),), oldest=5, stalled=5, silent=2)


class Run:
    """A watchdog that is looked at once a second, and what it has said."""

    def __init__(self, bounds: Bounds = BOUNDS, mendable: frozenset[str] = PARTS) -> None:
        self.now = 0.0
        self.turns = 0
        self.dog = Watchdog(bounds, self.now, mendable)
        self.last = Outlook()
        self.mended: list[tuple[float, str, bool]] = []

    def go(self, seconds: int, *waits: Wait, turns: int = 0) -> Outlook:
        """So many seconds in which `waits` grow old and `turns` end every second; stops when the run is stuck."""
        for second in range(1, seconds + 1):
            self.now += 1
            self.turns += turns
            self.dog.see("runner-0", Sight(self.turns, tuple(_older(wait, second) for wait in waits)), self.now)
            self.last = self.dog.look(self.now)
            self.mended += [(self.now, mend.part, mend.stalled) for mend in self.last.mend]
            if self.last.stuck:
                break
        return self.last


def _older(wait: Wait, seconds: float) -> Wait:
    silent = None if wait.silent is None else wait.silent + seconds
    return replace(wait, oldest=wait.oldest + seconds, stalled=wait.stalled + seconds, silent=silent)


def alive(wait: Wait) -> Wait:
    """One that gives no signs of life before it is done: nothing can be concluded from its silence."""
    return replace(wait, silent=None)


def test_a_silent_host_is_named_early_though_others_go_on_and_replaced_late() -> None:
    run = Run()
    assert run.go(4, TOOL_CALL, turns=3) == Outlook()
    assert run.go(10, TOOL_CALL, turns=3).waiting == "host 1: silent for 15 s (12 tool calls)"
    assert run.mended == []
    run.go(55, TOOL_CALL, turns=3)
    assert [(part, stalled) for _, part, stalled in run.mended] == [("host 1", False)]


def test_a_slow_model_is_named_and_left_alone() -> None:
    run = Run()
    assert run.go(190, alive(MODEL_CALLS)) == Outlook("model slot 0: 4 model calls, the oldest for 195 s")
    assert run.mended == []


def test_a_replica_that_finishes_nothing_is_replaced_before_the_run_ends() -> None:
    run = Run()
    told = run.go(1000, replace(MODEL_CALLS, oldest=0, stalled=0, silent=None, who="xyz"))
    assert run.mended == [(200, "model slot 0", True)]
    assert told.stuck == (
        "no turn and no episode has ended well for 400 s; "
        "waiting for model slot 0 (replica xyz): 4 model calls, the oldest for 400 s"
    )


def test_an_endpoint_elsewhere_is_named_and_ends_the_run() -> None:
    run = Run()
    told = run.go(1000, replace(MODEL_CALLS, part="model endpoint x:80", silent=None))
    assert run.mended == []
    assert told.stuck and told.stuck.endswith("waiting for model endpoint x:80: 4 model calls, the oldest for 405 s")


def test_a_part_that_is_replaced_in_vain_ends_the_run() -> None:
    run = Run()
    told = run.go(3600, TOOL_CALL, turns=1)
    assert [part for _, part, _ in run.mended] == ["host 1"] * MOST_MENDS
    gaps = [after - before for (before, *_), (after, *_) in zip(run.mended, run.mended[1:], strict=False)]
    assert min(gaps) >= BOUNDS.again, "it is given time to start"
    assert told.stuck == "host 1: silent for 100 s (12 tool calls); it was replaced 3 times"


def test_a_part_that_was_replaced_long_ago_may_be_replaced_again() -> None:
    run = Run()
    for _ in range(2 * MOST_MENDS):
        assert run.go(70, TOOL_CALL, turns=1).stuck is None
        run.go(int(MEMORY_SECONDS), turns=1)
    assert len(run.mended) == 2 * MOST_MENDS


def test_a_part_that_answers_when_it_is_looked_at_is_not_counted_as_replaced() -> None:
    run = Run()
    for _ in range(10 * MOST_MENDS):
        assert run.go(70, TOOL_CALL, turns=1).stuck is None
        run.dog.well("host 1", run.now)
        assert run.go(5, turns=1).waiting is None


def test_a_part_is_as_well_as_the_runner_finds_that_hears_most_of_it() -> None:
    run = Run()
    for _ in range(300):
        run.dog.see("runner-1", Sight(0, (replace(TOOL_CALL, kinds=(("seeding", 1),), silent=1.0),)), run.now)
        run.go(1, replace(TOOL_CALL, silent=200.0), turns=1)
    assert run.mended == []
    run.dog.forget("runner-1")
    run.go(1, replace(TOOL_CALL, silent=200.0), turns=1)
    assert [part for _, part, _ in run.mended] == ["host 1"]


def test_nobody_is_blamed_for_the_time_the_watchdog_itself_was_stopped() -> None:
    run = Run()
    run.go(100, alive(MODEL_CALLS))
    run.now += 100_000
    assert run.go(299, alive(MODEL_CALLS)).stuck is None
    assert run.go(5, alive(MODEL_CALLS)).stuck is not None


def test_failures_are_no_progress_and_an_episode_that_ends_well_is() -> None:
    run = Run()
    run.go(399)
    run.dog.ended(run.now)
    assert run.go(399).stuck is None
    assert run.go(1).stuck == "no turn and no episode has ended well for 400 s"


def test_by_default_a_run_outlasts_all_attempts_of_a_sample() -> None:
    limits = LimitsConfig().value()
    bounds = Bounds.of(limits, attempts=3, stuck=None, silent=60, again=120)
    assert bounds.stuck == 1200 > 3 * limits.turn_seconds
    assert Bounds.of(limits, 3, stuck=7, silent=4, again=120) == Bounds(7, 8, 120, name=4)


_ages = st.floats(0, BOUNDS.name, exclude_max=True)
_waits = st.builds(
    Wait,
    st.sampled_from(sorted(PARTS)),
    st.just((("tool call", 1),)),
    oldest=st.floats(0, 1e6),
    stalled=st.floats(0, BOUNDS.stuck / 2, exclude_max=True),
    silent=st.none() | _ages,
)


@given(st.lists(st.tuples(st.floats(0, 60), st.lists(_waits, max_size=4, unique_by=lambda wait: wait.part))))
def test_no_alarm_while_turns_end_and_every_part_answers(steps: list[tuple[float, list[Wait]]]) -> None:
    dog, now = Watchdog(BOUNDS, 0.0, PARTS), 0.0
    for turns, (pause, waits) in enumerate(steps, start=1):
        now += pause
        dog.see("runner-0", Sight(turns, tuple(waits)), now)
        assert dog.look(now) == Outlook()


@given(st.lists(_waits.flatmap(lambda wait: st.builds(replace, st.just(wait), silent=st.floats(0, 59))), min_size=1))
def test_the_part_that_has_been_silent_longest_is_the_one_that_is_named(waits: list[Wait]) -> None:
    waits = [replace(wait, part=f"host {number}") for number, wait in enumerate(waits)]
    dog = Watchdog(BOUNDS, 0.0, PARTS)
    dog.see("runner-0", Sight(1, tuple(waits)), 1.0)
    waiting = dog.look(1.0).waiting
    longest = max(waits, key=lambda wait: wait.silent or 0)
    if (longest.silent or 0) < BOUNDS.name:
        assert waiting is None
    else:
        assert waiting is not None and waiting.partition(":")[0] == longest.part
