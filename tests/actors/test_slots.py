"""Slots that lose calls are out until somebody has their seat; what is seen of replicas feeds the router."""

from __future__ import annotations

from collections import Counter

from actors.slots import LOOK_SECONDS, Slots
from rollout.config import RoutingConfig
from rollout.load import Load
from rollout.serving.routing import Router, Why

EVEN = RoutingConfig(uneven=0)


def slots(count: int) -> Slots:
    made = Slots([f"slot {number}" for number in range(count)], Router(EVEN))
    for number, name in enumerate(made.names):
        made.answered(name, f"r{number}")
    return made


def place(one: Slots, session: str, group: str | None = None, now: float = 0.0) -> tuple[str, Why]:
    route = one.route(session, group, now)
    one.router.ended(route)
    return route.replica, route.why


def test_sessions_of_a_slot_that_is_out_go_to_all_others_and_the_rest_stay() -> None:
    one = slots(4)
    before = {f"s{number}": place(one, f"s{number}")[0] for number in range(40)}
    assert set(Counter(before.values()).values()) == {10}
    one.lost("slot 1", 1.0)
    after = {session: place(one, session, now=2.0) for session in before}
    moved = Counter(slot for session, (slot, _) in after.items() if before[session] == "slot 1")
    assert set(moved) == {"slot 0", "slot 2", "slot 3"}
    assert all(after[session] == (slot, Why.STICKS) for session, slot in before.items() if slot != "slot 1")


def test_a_slot_is_back_when_a_replica_has_its_seat_that_has_no_other() -> None:
    one = slots(3)
    one.lost("slot 0", 1.0)
    assert one.due(1.0 + LOOK_SECONDS / 2) == []
    assert one.due(1.0 + LOOK_SECONDS) == ["slot 0"]
    assert one.due(1.5 + LOOK_SECONDS) == [], "somebody is looking"
    one.seen("slot 0", "r1")
    assert one.due(9.0) == ["slot 0"], "that is its neighbour"
    one.seen("slot 0", "r9")
    assert one.due(99.0) == []
    assert {place(one, f"s{number}")[0] for number in range(12)} == set(one.names)


def test_a_slot_whose_replica_was_replaced_unseen_has_lost_its_sessions() -> None:
    one = slots(1)
    assert place(one, "s") == ("slot 0", Why.PLACED)
    assert place(one, "s") == ("slot 0", Why.STICKS)
    one.answered("slot 0", "r7")
    assert place(one, "s") == ("slot 0", Why.LOST)


def test_a_slot_that_a_neighbour_answers_for_is_out() -> None:
    one = slots(2)
    one.answered("slot 1", "r0")
    assert {place(one, f"s{number}")[0] for number in range(6)} == {"slot 0"}
    assert one.due(LOOK_SECONDS) == ["slot 1"]


def test_with_none_left_all_are_tried() -> None:
    one = slots(2)
    one.lost("slot 0", 1.0)
    one.lost("slot 1", 1.0)
    one.lost("slot 1", 1.0)
    assert {place(one, f"s{number}", now=2.0)[0] for number in range(6)} == {"slot 0"}, "the last to be lost"
    one.lost("slot 0", 3.0)
    assert {place(one, f"t{number}", now=4.0)[0] for number in range(18)} == set(one.names)


def test_an_answer_that_was_under_way_brings_no_slot_back() -> None:
    one = slots(2)
    one.lost("slot 0", 1.0)
    one.answered("slot 0", "r0")
    assert {place(one, f"s{number}", now=2.0)[0] for number in range(6)} == {"slot 1"}


def test_what_replicas_tell_moves_sessions() -> None:
    one = slots(2)
    home, _ = place(one, "s")
    one.hear(home, Load(5, 3, 0.99, 0), 1.0)
    assert place(one, "s", now=1.0)[1] is Why.LOAD
    assert one.take_routed() == {"placed": 1, "load": 1}
    assert one.take_routed() == {}
