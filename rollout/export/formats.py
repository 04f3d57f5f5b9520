"""The formats by name: what each reads and writes. docs/export.md says how its trainer reads the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rollout.errors import UserError, nearest
from rollout.export import nemo_rl, openrlhf, prime_rl, sft, skyrl, slime, tinker, trl, verl
from rollout.export.atif import trajectory
from rollout.export.chat import Row
from rollout.export.nemo_gym import verify_response
from rollout.export.sample import Sample


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """A projection of training samples."""

    project: Callable[[Sample], Row]
    schema: Any
    """Of the Parquet file."""
    forks: bool
    """Whether its trainer gives several samples of an episode the weight of one."""
    advantages: bool
    """Whether its trainer takes advantages; the others compute them from rewards."""
    equal_groups: bool = False
    """Whether its trainer expects as many episodes of each task, one group after the other."""
    suffix = ".parquet"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A projection of episodes with their messages."""

    project: Callable[[Row], Row]
    schema: Any = None
    """Of the Parquet file; None: JSON lines alone."""
    unscored: bool = False
    """Whether episodes without a reward have a place in it."""
    suffix = ".jsonl"


TOKENS: dict[str, TokenFormat] = {
    "trl": TokenFormat(trl.rollout_func, trl.ROLLOUT_FUNC, forks=False, advantages=False, equal_groups=True),
    "trl-async": TokenFormat(trl.rollout_sample, trl.ROLLOUT_SAMPLE, forks=True, advantages=True),
    "verl": TokenFormat(verl.agent_loop_output, verl.SCHEMA, forks=False, advantages=False),
    "skyrl": TokenFormat(skyrl.generator_output, skyrl.SCHEMA, forks=True, advantages=False),
    "prime-rl": TokenFormat(prime_rl.training_sample, prime_rl.SCHEMA, forks=True, advantages=True),
    "slime": TokenFormat(slime.slime_sample, slime.SCHEMA, forks=True, advantages=False, equal_groups=True),
    "nemo-rl": TokenFormat(nemo_rl.datum_spec, nemo_rl.SCHEMA, forks=False, advantages=False),
    "openrlhf": TokenFormat(openrlhf.agent_response, openrlhf.SCHEMA, forks=False, advantages=False, equal_groups=True),
    "tinker": TokenFormat(tinker.datum, tinker.SCHEMA, forks=True, advantages=True),
}
CHATS: dict[str, ChatFormat] = {
    "sft": ChatFormat(sft.chat, sft.SCHEMA),
    "nemo-gym": ChatFormat(verify_response),
    "atif": ChatFormat(trajectory, unscored=True),
}
NAMES = (*TOKENS, *CHATS)


def find(name: str) -> TokenFormat | ChatFormat:
    """The format of that name. Raises UserError with the nearest."""
    if (found := TOKENS.get(name) or CHATS.get(name)) is None:
        raise UserError(f"--to {name}: no such format{nearest(name, NAMES)}")
    return found
