"""Who sits where: balanced when all are there, and nobody moves who need not."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.router import Seats, in_order, seated

NAMES = st.sets(st.sampled_from("abcdefgh"), min_size=1)


def preferred(seats: Seats, slots: int) -> list[str]:
    return [in_order(seats, slot)[0] for slot in range(slots)]


@given(NAMES, st.integers(1, 4))
def test_slots_are_spread_exactly(names: set[str], each: int) -> None:
    counts = Counter(preferred(seated((), names), each * len(names)))
    assert counts == {name: each for name in names}


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_everybody_present_has_one_seat(changes: list[set[str]]) -> None:
    seats: Seats = ()
    for names in changes:
        seats = seated(seats, names)
        assert sorted(name for name in seats if name is not None) == sorted(names)


@given(st.lists(NAMES, min_size=2, max_size=6))
def test_who_stays_keeps_the_seat(changes: list[set[str]]) -> None:
    seats: Seats = ()
    for names in changes:
        before, seats = seats, seated(seats, names)
        assert all(seats[at] == name for at, name in enumerate(before) if name in names)


def test_only_the_slots_of_a_dead_replica_move_and_its_replacement_gets_them_back() -> None:
    whole = seated((), ["a", "b", "c"])
    torn = seated(whole, ["a", "c"])
    assert preferred(whole, 6) == ["a", "b", "c", "a", "b", "c"]
    assert preferred(torn, 6) == ["a", "c", "c", "a", "c", "c"]
    assert preferred(seated(torn, ["a", "c", "z"]), 6) == ["a", "z", "c", "a", "z", "c"]


def test_the_order_tells_every_replica_once() -> None:
    assert in_order(("a", None, "c", "d"), 1) == ["c", "d", "a"]
    assert in_order((), 3) == []
