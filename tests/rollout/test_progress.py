"""Sets of sample numbers as ranges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollout.progress import Done

NUMBERS = st.lists(st.integers(0, 60))


def done(numbers: list[int]) -> Done:
    return Done.of(np.array(numbers, dtype=np.int64))


@given(NUMBERS)
def test_ranges_hold_the_numbers_they_were_made_of(numbers: list[int]) -> None:
    found = done(numbers)
    assert [number for number in range(-2, 63) if number in found] == sorted(set(numbers))
    assert len(found) == len(set(numbers))
    assert all(start < end for start, end in zip(found.starts, found.ends, strict=True))
    assert all(end < start for end, start in zip(found.ends, found.starts[1:], strict=False)), "disjoint, not touching"


@given(NUMBERS, NUMBERS)
def test_two_sets_together_are_the_set_of_both(one: list[int], other: list[int]) -> None:
    assert done(one) | done(other) == done([*one, *other])


def test_invariant_7_what_is_done_in_order_is_one_range_however_much_it_is() -> None:
    assert done(list(range(100_000))) == Done((0,), (100_000,))
