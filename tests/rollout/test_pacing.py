"""The adaptive limit: it begins at what is configured, gives way to pressure once, and comes back slowly."""

from hypothesis import given
from hypothesis import strategies as st

from rollout.load import Load
from rollout.pacing import CLEAR, FULL, OBSERVE_SECONDS, SETTLE_SECONDS, Pace


def load(kv: float = 0.0, waiting: int = 0, preemptions: int = 0) -> dict[str, Load]:
    return {"r0": Load(1, waiting, kv, preemptions)}


def cut(most: int = 100) -> Pace:
    """A limit that was cut at time 0 and has drained to it."""
    pace = Pace(most)
    pace.observe(load(FULL), most, 0.0)
    return pace


def test_a_run_begins_at_full_and_stays_there_while_nothing_is_wrong() -> None:
    pace = Pace(100)
    for second in range(60):
        pace.observe(load(kv=0.85, waiting=500, preemptions=3), 100, float(second))
        assert pace.limit == 100


def test_without_reports_the_limit_stays() -> None:
    pace = cut()
    pace.observe({}, 80, 1000.0)
    assert pace.limit == 80


def test_a_full_cache_cuts_to_four_fifths_of_what_runs() -> None:
    assert cut().limit == 80
    pace = Pace(100)
    pace.observe(load(FULL), 50, 0.0)
    assert pace.limit == 40, "not of a limit that was never reached"


def test_a_preemption_cuts_however_full_the_cache_is() -> None:
    pace = Pace(100)
    pace.observe(load(preemptions=7), 100, 0.0)
    assert pace.limit == 100, "they may be from before this run"
    pace.observe(load(preemptions=8), 100, OBSERVE_SECONDS)
    assert pace.limit == 80


def test_a_replica_that_restarts_does_not_count_as_preempting() -> None:
    pace = Pace(100)
    for look, preemptions in enumerate((7, 0, 0)):
        pace.observe(load(preemptions=preemptions), 100, look * OBSERVE_SECONDS)
    assert pace.limit == 100
    pace.observe(load(preemptions=1), 100, 3 * OBSERVE_SECONDS)
    assert pace.limit == 80


def test_reports_may_come_as_often_as_they_like() -> None:
    often, seldom = Pace(100), Pace(100)
    for step in range(1000):
        report = load(preemptions=step // 300)
        often.observe(report, min(often.limit, 90), step / 10)
        if step % (10 * OBSERVE_SECONDS) == 0:
            seldom.observe(report, min(seldom.limit, 90), step / 10)
    assert (often.limit, often.cuts) == (seldom.limit, seldom.cuts)
    assert often.cuts == 3


def test_one_moment_of_pressure_is_punished_once() -> None:
    pace = cut()
    for second in range(600):
        pace.observe(load(1.0, preemptions=second), 100, float(second))
    assert (pace.limit, pace.cuts) == (80, 1), "what runs has not come down to the limit yet"
    pace.observe(load(1.0), 80, 601.0)
    assert pace.limit == 64


def test_reports_right_after_a_cut_are_about_the_time_before_it() -> None:
    pace = cut()
    pace.observe(load(1.0), 70, OBSERVE_SECONDS)
    assert pace.limit == 80
    pace.observe(load(1.0), 70, SETTLE_SECONDS)
    assert pace.limit == 56


def test_it_rises_by_one_a_replica_and_only_to_what_is_configured() -> None:
    pace, now = cut(), 0.0
    two = load() | {"r1": Load(1, 0, 0.1, 0)}
    seen = [pace.limit]
    while pace.limit < 100:
        now += OBSERVE_SECONDS
        pace.observe(two, pace.limit, now)
        seen.append(pace.limit)
    assert seen == [80, *range(80, 101, 2)], "not at the first look, which is too early after the cut"
    pace.observe(two, 100, now + 100)
    assert pace.limit == 100


def test_it_does_not_rise_while_it_would_help_nobody() -> None:
    late = SETTLE_SECONDS
    for report, running in ((load(CLEAR), 80), (load(waiting=1), 80), (load(), 60)):
        pace = cut()
        pace.observe(report, running, late)
        assert pace.limit == 80
    pace = cut()
    pace.observe(load(), 80, late)
    assert pace.limit == 81


def test_one_crowded_replica_of_many_does_not_slow_the_others() -> None:
    for crowded, limit in ((1, 100), (2, 100), (3, 80)):
        pace = Pace(100)
        pace.observe({f"r{number}": Load(1, 0, 0.95 if number < crowded else 0.2, 0) for number in range(5)}, 100, 0.0)
        assert pace.limit == limit


def test_the_floor_is_as_configured_and_at_least_one_a_replica() -> None:
    for least, replicas, floor in ((10, 1, 10), (1, 4, 4), (500, 1, 20)):
        pace = Pace(20, least)
        for step in range(50):
            loads = {f"r{number}": Load(1, 9, 1.0, step) for number in range(replicas)}
            pace.observe(loads, pace.limit, step * SETTLE_SECONDS)
        assert pace.limit == floor


LOADS = st.dictionaries(
    st.sampled_from(("a", "b", "c")),
    st.builds(Load, st.integers(0, 99), st.integers(0, 99), st.floats(0, 1), st.integers(0, 99)),
)


@given(
    most=st.integers(1, 300),
    least=st.integers(1, 300),
    reports=st.lists(st.tuples(LOADS, st.floats(0, 1), st.floats(0, 100))),
)
def test_whatever_engines_report_the_limit_stays_within_its_bounds(
    most: int, least: int, reports: list[tuple[dict[str, Load], float, float]]
) -> None:
    pace, now = Pace(most, least), 0.0
    for loads, share, seconds in reports:
        now += seconds
        before = pace.limit
        pace.observe(loads, round(share * before), now)
        assert 1 <= pace.limit <= most
        assert pace.limit - before <= len(loads)
        assert pace.limit >= min(most, least, before)
