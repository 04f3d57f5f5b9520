"""Shortened output: what is kept, at which boundaries, and that nothing is lost unsaid."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.agents.trimming import trimmed

LINES = "".join(f"{number:08d}.\n" for number in range(100))
"""A hundred lines of ten characters."""


def test_four_fifths_from_the_beginning_and_one_from_the_end_in_whole_lines() -> None:
    short = trimmed(LINES, 105)
    kept = short.splitlines()
    assert kept[:8] == LINES.splitlines()[:8]
    assert kept[8] == "[... 900 characters left out ...]"
    assert kept[9:] == LINES.splitlines()[-2:]


def test_what_fits_stays_as_it_is_and_no_limit_is_none() -> None:
    assert trimmed(LINES, 1000) == LINES
    assert trimmed(LINES, 0) == LINES


def test_two_lines_are_cut_hard() -> None:
    text = "a" * 50 + "\n" + "b" * 50
    assert trimmed(text, 60) == text[:60] + "\n[... 41 characters left out]"


def test_lines_longer_than_their_share_are_cut() -> None:
    text = "\n".join(["x" * 100, "y" * 100, "z" * 100])
    assert trimmed(text, 50) == "x" * 40 + "\n[... 252 characters left out ...]\n" + "z" * 10


@settings(max_examples=50)
@given(st.text(alphabet="ab\n\r\u2028", max_size=200), st.integers(1, 100))
def test_what_is_kept_and_what_is_left_out_add_up(text: str, limit: int) -> None:
    short = trimmed(text, limit)
    if len(text) <= limit:
        assert short == text
        return
    begin, _, rest = short.partition("[... ")
    count, _, end = rest.partition(" characters left out")
    end = end.removeprefix(" ...]\n") if end.startswith(" ...]") else ""
    begin = begin if text.startswith(begin) and len(begin) + int(count) + len(end) == len(text) else begin[:-1]
    assert text.startswith(begin)
    assert text.endswith(end)
    assert len(begin) + int(count) + len(end) == len(text)
    assert len(begin) + len(end) <= limit
