"""What model calls cost: prices by a model's exact name, the usage of calls and its sums, limits in USD.

A model without a price costs None, never 0.0, which would look like free; a sum that holds such a call does as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from rollout.errors import UserError, nearest
from rollout.sections import PathText, Section
from rollout.trajectory import Completion

SHIPPED = Path(__file__).parent / "prices.yaml"
"""The prices that come with the package; the file says of when they are."""
_MILLION = 1_000_000
_Usd = Annotated[float, Field(ge=0)]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million tokens. A cache price of None is the input price."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None

    def usd(self, read: int, sampled: int, cached: int = 0, written: int = 0) -> float:
        """The cost of a call that read `read` prompt tokens, `cached` of them from a cache and `written` into one."""
        from_cache = self.input if self.cache_read is None else self.cache_read
        into_cache = self.input if self.cache_write is None else self.cache_write
        plain = max(0, read - cached - written) * self.input
        return (plain + cached * from_cache + written * into_cache + sampled * self.output) / _MILLION


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls took. A sum of usages is one."""

    calls: int = 0
    input_tokens: int = 0
    """Prompt tokens, those from a cache included."""
    output_tokens: int = 0
    cache_read_tokens: int = 0
    known_usd: float = 0.0
    """What the calls with a known cost cost together."""
    unpriced: int = 0
    """Calls whose cost nobody knows."""

    @property
    def usd(self) -> float | None:
        """The cost in USD; None when that of any call is not known."""
        return None if self.unpriced else self.known_usd

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.known_usd + other.known_usd,
            self.unpriced + other.unpriced,
        )


class PriceConfig(Section):
    """USD for a million tokens of one model."""

    input: _Usd
    """Prompt tokens."""
    output: _Usd
    """Sampled tokens."""
    cache_read: _Usd | None = None
    """Prompt tokens that came from the endpoint's cache; the input price when not given."""
    cache_write: _Usd | None = None
    """Prompt tokens that were written into it; the input price when not given."""

    def value(self) -> Price:
        """As a call is priced."""
        return Price(**self.model_dump())


PriceTable = dict[str, PriceConfig | None]


class PricingConfig(Section):
    """What model calls cost. Names in `models` beat those in the file, and both beat the shipped prices."""

    file: PathText | None = None
    """YAML with `models`, as here."""
    models: PriceTable = Field(default_factory=PriceTable)
    """Prices by the model's exact name; null takes away a price known from elsewhere."""


class CostLimitsConfig(Section):
    """How much may be spent on models that have a price."""

    episode_usd: Annotated[float, Field(gt=0)] | None = None
    """An episode that has spent so much stops before its next model call."""
    job_usd: Annotated[float, Field(gt=0)] | None = None
    """A job that has spent so much begins no further episode."""


class _PriceFile(Section):
    models: PriceTable


class Prices:
    """The prices a job goes by."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = dict(prices)
        self._told: set[str] = set()

    @staticmethod
    def of(config: PricingConfig) -> Prices:
        """The shipped prices as a job's configuration and its file change them. Raises UserError for a file that
        cannot be read."""
        tables = [_read(SHIPPED), _read(Path(config.file)) if config.file is not None else {}, config.models]
        merged = {name: price for table in tables for name, price in table.items()}
        return Prices({name: price.value() for name, price in merged.items() if price is not None})

    def price(self, model: str) -> Price | None:
        """The price of a model; None when there is none by exactly this name."""
        return self._prices.get(model)

    def usage(self, model: str, completion: Completion) -> Usage:
        """What one call took. Warns once of each model that has no price or does not tell its token counts."""
        read, sampled, cached = completion.prompt_tokens, completion.num_sampled, completion.cached_tokens or 0
        told = read is not None and (completion.sampled_tokens is not None or completion.ids is not None)
        price = self.price(model)
        counted = Usage(1, read or 0, sampled, cached)
        if price is not None and told:
            return counted + Usage(known_usd=price.usd(read or 0, sampled, cached))
        self._warn(model, "has no price" if price is None else "does not tell how many tokens its calls take")
        return counted + Usage(unpriced=1)

    def require(self, model: str, key: str) -> None:
        """For whoever limits cost under `key`: raises UserError when `model` has no price, as no limit would hold."""
        if model not in self._prices:
            raise UserError(f"{key}: {model} has no price: give it in pricing.models{nearest(model, self._prices)}")

    def _warn(self, model: str, what: str) -> None:
        if model not in self._told:
            self._told.add(model)
            log.warning("%s %s: its cost is not known", model, what)


def spent(usage: Usage, limit: float | None) -> bool:
    """Whether so much USD is known to be spent that nothing more may be begun; without a limit, never."""
    return limit is not None and usage.known_usd >= limit


def _read(path: Path) -> PriceTable:
    """The prices of a file. Raises UserError in one line."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _PriceFile.model_validate(raw).models
    except OSError as error:
        raise UserError(f"pricing.file: {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"pricing.file: {path}: is no YAML: {first}") from error
    except ValidationError as error:
        wrong = error.errors()[0]
        key = [str(part) for part in wrong["loc"]] or ["file"]
        known = (PriceConfig if len(key) > 1 else _PriceFile).model_fields
        hint = nearest(key[-1], known) if wrong["type"] == "extra_forbidden" else ""
        raise UserError(f"pricing.file: {path}: {'.'.join(key)}: {wrong['msg']}{hint}") from error
