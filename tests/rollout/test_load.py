"""What is remembered of what replicas and hosts say."""

from __future__ import annotations

from rollout.load import Heard, Load


def load(running: int) -> Load:
    return Load(running, 0, 0.0, 0)


def test_the_newest_word_of_each_holds() -> None:
    heard = Heard[Load](10.0)
    heard.hear({"a": load(1), "b": load(2)}, now=0.0)
    heard.hear({"a": load(3)}, now=5.0)
    assert heard.fresh(6.0) == {"a": load(3), "b": load(2)}


def test_a_part_that_is_silent_is_forgotten() -> None:
    heard = Heard[Load](10.0)
    heard.hear({"a": load(1)}, now=0.0)
    heard.hear({"b": load(2)}, now=5.0)
    assert heard.fresh(10.0) == {"b": load(2)}
    heard.hear({"a": load(4)}, now=11.0)
    assert heard.fresh(12.0) == {"a": load(4), "b": load(2)}
