"""Prices, what calls and sums of calls cost, and limits in USD."""

from __future__ import annotations

import logging
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.agents.pricing import Price, PriceConfig, Prices, PricingConfig, Usage, spent
from rollout.errors import UserError
from rollout.trajectory import Completion, FinishReason

MINI = "gpt-5.4-mini"
SHIPPED = Prices.of(PricingConfig())


def call(read: int | None = 1000, sampled: int | None = 500, cached: int | None = None) -> Completion:
    return Completion(FinishReason.STOP, prompt_tokens=read, sampled_tokens=sampled, cached_tokens=cached)


def test_vector_5_1000_tokens_in_and_500_out() -> None:
    usage = SHIPPED.usage(MINI, call())
    assert usage.usd == pytest.approx(0.0012)
    assert (usage.calls, usage.input_tokens, usage.output_tokens) == (1, 1000, 500)


def test_vector_5_an_unknown_model_has_no_cost_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    prices = Prices.of(PricingConfig())
    with caplog.at_level(logging.WARNING):
        usage = prices.usage("gpt-5.4", call()) + prices.usage("gpt-5.4", call())
    assert usage.usd is None
    assert (usage.calls, usage.unpriced, usage.known_usd) == (2, 2, 0.0)
    assert [record.getMessage() for record in caplog.records] == ["gpt-5.4 has no price: its cost is not known"]


def test_vector_5_the_jobs_own_price_wins_and_null_takes_one_away() -> None:
    prices = Prices.of(PricingConfig(models={MINI: PriceConfig(input=1, output=2), "o1": None}))
    assert prices.usage(MINI, call()).usd == pytest.approx(0.002)
    assert prices.usage("o1", call()).usd is None
    assert SHIPPED.price("o1") == Price(15, 60, 7.5)


def test_dated_names_have_their_price_and_names_are_exact() -> None:
    assert SHIPPED.price("gpt-4o-2024-08-06") == SHIPPED.price("gpt-4o") == Price(2.5, 10, 1.25)
    assert SHIPPED.price("claude-haiku-4-5-20251001") == SHIPPED.price("claude-haiku-4-5")
    assert SHIPPED.price("gpt-4o-2024") is None


def test_cached_tokens_cost_what_cached_tokens_cost() -> None:
    assert SHIPPED.usage("gpt-4o", call(1_000_000, 0, cached=400_000)).usd == pytest.approx(0.6 * 2.5 + 0.4 * 1.25)
    assert SHIPPED.usage("o1-pro", call(1_000_000, 0, cached=400_000)).usd == pytest.approx(150), "as any other"
    assert Price(3, 15, 0.3, 3.75).usd(1_000_000, 0, 100_000, 200_000) == pytest.approx(0.7 * 3 + 0.03 + 0.75)
    assert Price(3, 15).usd(1_000_000, 0, written=200_000) == pytest.approx(3)


def test_a_call_that_does_not_tell_its_tokens_has_no_cost(caplog: pytest.LogCaptureFixture) -> None:
    prices = Prices.of(PricingConfig())
    with caplog.at_level(logging.WARNING):
        assert prices.usage(MINI, call(read=None)).usd is None
        assert prices.usage(MINI, call(sampled=None)).usd is None
    assert len(caplog.records) == 1
    told_by_ids = Completion(FinishReason.STOP, ids=array("i", [1] * 500), prompt_tokens=1000)
    assert prices.usage(MINI, told_by_ids).usd == pytest.approx(0.0012)


USAGES = st.builds(Usage, *[st.integers(0, 10**6)] * 4, st.integers(0, 100).map(float), st.integers(0, 2))


@given(USAGES, USAGES, USAGES)
def test_sums_of_usages_do_not_depend_on_their_order(first: Usage, second: Usage, third: Usage) -> None:
    assert (first + second) + third == third + (second + first)
    assert first + Usage() == first
    assert ((first + second).usd is None) == (first.usd is None or second.usd is None)


def test_a_limit_is_reached_by_what_is_known_to_be_spent() -> None:
    usage = SHIPPED.usage(MINI, call()) + SHIPPED.usage("unknown", call())
    assert spent(usage, 0.0012) and spent(usage, 0.001)
    assert not spent(usage, 0.0013)
    assert not spent(usage, None)


def test_a_limit_needs_a_price() -> None:
    SHIPPED.require(MINI, "limits.episode_usd")
    with pytest.raises(
        UserError, match=r"limits\.episode_usd: gpt-5\.4-mimi has no price.*did you mean 'gpt-5\.4-mini'"
    ):
        SHIPPED.require("gpt-5.4-mimi", "limits.episode_usd")


def test_a_persons_own_file_lies_between_the_shipped_prices_and_the_job(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(
        "models:\n  gpt-4o: {input: 1, output: 2}\n  mine: {input: 3, output: 4, cache_read: 0}\n  o1: null\n"
    )
    prices = Prices.of(PricingConfig(file=str(file), models={"mine": PriceConfig(input=5, output=6)}))
    assert prices.price("gpt-4o") == Price(1, 2)
    assert prices.price("mine") == Price(5, 6)
    assert prices.price("o1") is None
    assert prices.price(MINI) == SHIPPED.price(MINI)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "No such file"),
        ("models: [", "is no YAML"),
        ("[]", "file: "),
        ("prices: {}", "prices: .*known: models|models: Field required"),
        ("models: {m: {input: 1}}", "models.m.output: Field required"),
        ("models: {m: {input: -1, output: 1}}", "models.m.input: .*greater than or equal to 0"),
        ("models: {m: {input: 1, output: 1, cached: 2}}", "models.m.cached: .*cache_read"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str | None, line: str) -> None:
    file = tmp_path / "prices.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=line) as raised:
        Prices.of(PricingConfig(file=str(file)))
    assert str(raised.value).startswith(f"pricing.file: {file}: ")
    assert "\n" not in str(raised.value)
