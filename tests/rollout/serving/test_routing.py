"""Sessions stay, groups stay together, nobody is crowded for long, and what is held is bounded."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.config import RoutingConfig
from rollout.load import Load
from rollout.serving.routing import Route, Router, Why

LOOSE = RoutingConfig(crowded=1.0, slack=1000, uneven=1000)
FULL = Load(running=4, waiting=3, kv_usage=0.99, preemptions=0)
IDLE = Load(running=0, waiting=0, kv_usage=0.0, preemptions=0)


def router(replicas: int = 4, config: RoutingConfig = LOOSE) -> Router:
    made = Router(config)
    made.update(f"r{number}" for number in range(replicas))
    return made


def routed(one: Router, session: str, group: str | None = None, now: float = 0.0) -> Route:
    route = one.route(session, group, now)
    assert route is not None
    return route


def test_without_replicas_there_is_no_place() -> None:
    assert Router().route("s", None, 0.0) is None


def test_a_session_stays_and_the_first_turns_of_a_group_share_a_replica() -> None:
    one = router()
    places = [routed(one, f"g-{number}", "g") for number in range(6)]
    assert [place.why for place in places] == [Why.PLACED, *[Why.GROUP] * 5]
    assert len({place.replica for place in places}) == 1
    again = [routed(one, f"g-{number}", "g", now=5.0) for number in range(6)]
    assert {(place.replica, place.why) for place in again} == {(places[0].replica, Why.STICKS)}


@given(st.integers(2, 12), st.lists(st.integers(0, 400), min_size=1, max_size=60, unique=True))
def test_two_routers_that_never_met_put_a_group_on_one_of_two_replicas(replicas: int, groups: list[int]) -> None:
    for group in groups:
        places = [routed(router(replicas), f"{number}", f"g{group}").replica for number in range(3)]
        assert len(set(places)) == 1


def test_load_wins_past_the_bound_and_the_group_goes_along() -> None:
    one = router(2, RoutingConfig(uneven=2))
    places = [routed(one, f"g-{number}", "g") for number in range(40)]
    counts = Counter(place.replica for place in places)
    assert max(counts.values()) - min(counts.values()) <= 8
    moves = [before.replica != after.replica for before, after in pairwise(places)]
    assert 1 <= sum(moves) < 15, "siblings stay together as far as they can"
    assert {place.why for place in places} == {Why.PLACED, Why.GROUP, Why.LOAD}


def test_a_full_cache_moves_sessions_until_it_has_room_or_has_not_been_heard_of() -> None:
    one = router(2)
    home = routed(one, "s")
    other = "r1" if home.replica == "r0" else "r0"
    one.hear({home.replica: FULL, "stranger": FULL}, 1.0)
    assert routed(one, "s", now=2.0) == Route(other, Why.LOAD)
    assert routed(one, "s", now=3.0) == Route(other, Why.STICKS)
    one.hear({other: FULL, home.replica: FULL}, 4.0)
    assert routed(one, "s", now=4.0).why is Why.STICKS, "nowhere is better"
    one.hear({home.replica: IDLE}, 5.0)
    assert routed(one, "s", now=100.0).why is Why.STICKS, "what was told is old"


def test_calls_of_others_count_and_so_do_ours_since_they_were_told() -> None:
    one = router(2, RoutingConfig(crowded=1.0, slack=0))
    home = routed(one, "s").replica
    one.hear({home: Load(9, 0, 0.5, 0)}, 1.0)
    assert routed(one, "s", now=1.0).why is Why.LOAD
    calm = router(2, RoutingConfig(crowded=1.0, slack=0))
    ended = routed(calm, "s")
    calm.ended(ended)
    assert routed(calm, "s").why is Why.STICKS


def test_sessions_of_a_dead_replica_move_with_their_groups_to_all_others_and_nobody_else_moves() -> None:
    one = router(8)
    sessions = [(f"g{group}-{number}", f"g{group}") for group in range(80) for number in range(3)]
    before = {session: routed(one, session, group).replica for session, group in sessions}
    dead = before["g0-0"]
    one.update(f"r{number}" for number in range(8) if f"r{number}" != dead)
    after = {session: routed(one, session, group, 1.0) for session, group in sessions}
    lost = [session for session, replica in before.items() if replica == dead]
    assert lost and all(after[session].why is Why.LOST for session in lost)
    assert all(after[session] == Route(before[session], Why.STICKS) for session in before if session not in lost)
    by_group = {
        session.partition("-")[0]: {after[f"{session.partition('-')[0]}-{n}"].replica for n in range(3)}
        for session in lost
    }
    assert all(len(places) == 1 for places in by_group.values())
    assert len(set.union(*by_group.values())) > 2, "not all on one neighbour"
    one.update(f"r{number}" for number in range(9))
    assert routed(one, "g0-0", "g0", 2.0).why is Why.STICKS, "a replica that comes back moves nobody"
    one.update([])
    one.update(f"r{number}" for number in range(8))
    assert routed(one, "g0-0", "g0", 3.0).why is Why.LOST, "one of the same name has another cache"


def test_one_that_was_replaced_under_its_name_has_lost_its_sessions_and_keeps_its_calls() -> None:
    one = router(2)
    home = routed(one, "s")
    one.emptied(home.replica)
    one.emptied("stranger")
    assert routed(one, "s").why is Why.LOST
    assert routed(one, "s").why is Why.STICKS
    for _ in range(3):
        one.ended(home)
    assert one._replicas[home.replica].under_way == 0


@pytest.mark.parametrize("groups", [8, 16, 64])
def test_groups_that_begin_are_spread_evenly(groups: int) -> None:
    one = router(4, RoutingConfig())
    places = [routed(one, f"g{group}-{n}", f"g{group}").replica for group in range(groups) for n in range(8)]
    assert max(Counter(places).values()) <= 2 * groups + 4, "a quarter of eight each, few more"
    homes = sum(len(set(places[8 * group : 8 * group + 8])) for group in range(groups))
    assert homes <= 2.5 * groups, "siblings begin on two replicas, or on three"


def test_routers_of_several_processes_balance_by_what_replicas_tell() -> None:
    routers = [router(4, RoutingConfig()) for _ in range(4)]
    calls = Counter[str]()
    for number in range(64):
        one = routers[number % 4]
        for teller in routers:
            teller.hear({name: Load(calls[name], 0, 0.1, 0) for name in ("r0", "r1", "r2", "r3")}, number / 10)
        calls[routed(one, f"s{number}", None, number / 10).replica] += 1
    assert max(calls.values()) <= 18, calls


def test_what_is_remembered_is_bounded_in_number_and_in_time() -> None:
    one = router(3, RoutingConfig(uneven=1000, max_sessions=10, idle_seconds=60.0))
    for number in range(100):
        routed(one, f"s{number}", f"g{number}", float(number) / 10)
    assert len(one) == 10 and len(one._groups) == 10
    assert sum(replica.sessions for replica in one._replicas.values()) == 10
    routed(one, "late", None, 1000.0)
    assert len(one) == 1
    one.close("late")
    one.close("never heard of")
    assert len(one) == 0 and sum(replica.sessions for replica in one._replicas.values()) == 0


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("route"), st.integers(0, 30), st.integers(0, 6)),
        st.tuples(st.just("end"), st.integers(0, 200), st.just(0)),
        st.tuples(st.just("close"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("update"), st.integers(1, 31), st.just(0)),
        st.tuples(st.just("hear"), st.integers(0, 4), st.integers(0, 40)),
    ),
    max_size=120,
)


@settings(max_examples=60)
@given(_STEPS)
def test_whatever_happens_calls_go_to_replicas_that_live_and_the_counts_are_right(
    steps: list[tuple[str, int, int]],
) -> None:
    one = router(5, RoutingConfig(slack=1, uneven=0, max_sessions=8))
    alive, under_way, now = {f"r{number}" for number in range(5)}, list[Route](), 0.0
    for what, first, second in steps:
        now += 0.7
        if what == "route":
            place = routed(one, f"s{first}", f"g{second}", now)
            assert place.replica in alive
            under_way.append(place)
        elif what == "end" and under_way:
            one.ended(under_way.pop(first % len(under_way)))
        elif what == "close":
            one.close(f"s{first}")
        elif what == "update":
            alive = {f"r{number}" for number in range(5) if first >> number & 1}
            one.update(alive)
            under_way = [place for place in under_way if place.replica in alive]
        elif what == "hear":
            one.hear({f"r{first}": Load(second, second // 4, 0.5, 0)}, now)
        held = {name: replica.under_way for name, replica in one._replicas.items()}
        counted = Counter(place.replica for place in under_way)
        assert held == {name: counted[name] for name in alive}
        here = Counter(known.name for known in one._sessions.values() if known.replica is one._replicas.get(known.name))
        assert {name: replica.sessions for name, replica in one._replicas.items()} == {
            name: here[name] for name in alive
        }
        assert len(one) <= 8


@pytest.mark.parametrize("replicas", [1, 7])
def test_the_mean_is_kept_up_with_as_calls_come_and_go(replicas: int) -> None:
    one = router(replicas)
    places = [routed(one, f"s{number}") for number in range(50)]
    assert one._calls == 50
    one.hear({"r0": Load(100, 20, 0.5, 0)}, 0.5)
    assert one._calls == sum(replica.calls(0.5) for replica in one._replicas.values()) > 100
    one.hear({"r0": Load(0, 0, 0.5, 0)}, 0.6)
    for place in places:
        one.ended(place)
    assert one._calls == 0
