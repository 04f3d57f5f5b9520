"""What a varying line in front of a system prompt costs, and what taking it out brings back.

    python scripts/measure_prefixes.py

Sessions of a program share a system prompt of --tokens tokens. `stable`: nothing varies. `varying`: in front stand a
billing line, the id of the session and the time, as coding agents write them, other ones in every session. `stripped`:
the same after the rules of `rollout.serving.prefixes`. Every session asks vLLM for a token of the bundled model, one
after the other, the three in turn; each has a cache salt of its own. `cached`: prompt tokens that vLLM had. `first
token`: seconds until it came, in the median; the first session of each, for whom nothing can be cached, counts too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

from actors.engine import GenerateRequest, pack_ids
from actors.vllm_engine import VllmEngine, check_config
from rollout.config import VllmConfig
from rollout.segments import hermes
from rollout.serving.prefixes import PrefixesConfig, Touched, stabilized, tallied
from rollout.template import BUNDLED, load_template
from rollout.tokens import TokenLedger
from rollout.trajectory import Message, Sampling

RULES = PrefixesConfig(rules=("billing_header", "session_ids", "dates", "uuids"))
SENTENCE = "Tools are called with their names and arguments; what they answer is told in the next message. "


@dataclass(slots=True)
class Seen:
    """What was seen of one way to write the prompt."""

    prompts: list[int] = field(default_factory=list[int])
    cached: list[int] = field(default_factory=list[int])
    seconds: list[float] = field(default_factory=list[float])


def varying(chance: random.Random, shared: str) -> list[Message]:
    """The messages of one session."""
    name = uuid.UUID(int=chance.getrandbits(128), version=4)
    day = f"2026-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02}T{chance.randrange(24):02}:07:19Z"
    billing = f"x-anthropic-billing-header: cc_version=2.1.{chance.randrange(99)}; cch={chance.getrandbits(20):05x};"
    front = f"{billing}\nSession ID: {name}\nToday is {day}.\n"
    return conversation(front + shared, chance)


def conversation(system: str, chance: random.Random) -> list[Message]:
    """A session's own question behind the system prompt."""
    question = f"What is {chance.randrange(100, 999)} + {chance.randrange(100, 999)}?"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


class Prompts:
    """The prompts of all sessions."""

    def __init__(self, tokens: int) -> None:
        self._template = load_template(BUNDLED)
        each = len(self._template.encode(SENTENCE * 8)) / 8
        self._shared = SENTENCE * round(tokens / each)
        self.touched: Mapping[str, Touched] = {}
        """What each rule has done."""

    def of(self, session: int) -> dict[str, list[int]]:
        """Token ids of a session's prompt, by the way it is written."""
        written = varying(random.Random(session), self._shared)
        stable = stabilized(written, (), RULES.value())
        self.touched = tallied(self.touched, stable.removed)
        plain = conversation(self._shared, random.Random(session))
        stripped: list[Message] = [{"role": one["role"], "content": one["content"]} for one in stable.messages]
        return {
            name: self._ids(messages)
            for name, messages in (("stable", plain), ("varying", written), ("stripped", stripped))
        }

    def _ids(self, messages: list[Message]) -> list[int]:
        ledger = TokenLedger(self._template, hermes)
        ledger.extend(messages, ())
        return list(ledger.prompt()[0])


async def asked(engine: VllmEngine, ids: list[int], salt: str, number: int, seen: Seen) -> None:
    """One request, taken down."""
    first = list[float]()
    request = GenerateRequest(f"{salt}-{number}", "", 0, pack_ids(ids), 1, Sampling(), salt=salt)
    began = time.monotonic()
    reply = await engine.generate(request, lambda told: first.append(time.monotonic()))
    seen.prompts.append(reply.prompt_tokens)
    seen.cached.append(reply.cached_tokens)
    seen.seconds.append(first[0] - began)


async def main(options: argparse.Namespace) -> None:
    """Asks and prints."""
    config = VllmConfig(max_model_len=8192)
    engine = VllmEngine(config, check_config(config), 0)
    prompts, found = Prompts(options.tokens), {name: Seen() for name in ("stable", "varying", "stripped")}
    try:
        for number in range(3):
            await asked(engine, prompts.of(-1 - number)["stable"], f"warm-up {number}", number, Seen())
        prompts.touched = {}
        for session in range(options.sessions):
            for name, ids in prompts.of(session).items():
                await asked(engine, ids, name, session, found[name])
    finally:
        await engine.stop()
    stable = sum(found["stable"].cached)
    table = Table("prompt", "tokens", "cached", "of stable", "first token", "slowest")
    for name, seen in found.items():
        share = f"{sum(seen.cached) / sum(seen.prompts):.1%}"
        times = (f"{1000 * median(seen.seconds):.0f} ms", f"{1000 * max(seen.seconds):.0f} ms")
        table.add_row(name, f"{median(seen.prompts):,.0f}", share, f"{sum(seen.cached) / stable:.3f}", *times)
    console = Console(width=110)
    console.print(table)
    for name, touched in prompts.touched.items():
        console.print(f"{name}: {touched.requests} requests, {touched.characters} characters", highlight=False)
    console.print(f"{options.sessions} sessions, the first of each included")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4000, help="of the system prompt that all sessions share")
    parser.add_argument("--sessions", type=int, default=24)
    asyncio.run(main(parser.parse_args()))
