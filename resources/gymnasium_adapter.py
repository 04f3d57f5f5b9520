"""Gymnasium environments whose actions are discrete or text, played by saying the action.

Gymnasium is an optional dependency: it is imported when the resource is built, not when this module is.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from rollout.errors import ToolError, UserError, describe, nearest
from rollout.resource import Solution, Step, StepResource
from rollout.trajectory import Message, Task

_COLOURED = re.compile(r"\x1b\[[\d;]*m(.*?)\x1b\[0m", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Known:
    """How a well-known environment is told to somebody who reads."""

    rules: str
    actions: tuple[str, ...]
    seen: str | None = None
    """Format of an observation, for environments that draw nothing."""


_KNOWN = {
    "FrozenLake-v1": Known(
        "Walk on a frozen lake from S to G. F is ice, H is a hole that ends the game, [ ] is where you stand.",
        ("left", "down", "right", "up"),
    ),
    "CliffWalking-v1": Known(
        "Walk from the bottom left to T. x is where you stand; C is a cliff that sends you back.",
        ("up", "right", "down", "left"),
    ),
    "Blackjack-v1": Known(
        "Play a hand of blackjack against the dealer.",
        ("stick", "hit"),
        "Your hand: {0}. The dealer shows: {1}. Usable ace: {2}.",
    ),
}


@dataclass(slots=True)
class Game:
    """A session: the environment, and whether it has ended."""

    env: Any
    over: bool = False


class GymnasiumResource(StepResource):
    """Any Gymnasium environment with discrete or text actions; FrozenLake-v1 unless told otherwise.

    FrozenLake is not slippery and draws a lake for each task, unless env_options say otherwise.

    Args:
        env: Gymnasium's name of the environment.
        env_options: Keyword arguments of the environment.
        actions: Names of the discrete actions in their order; None uses known names, or the numbers.
        count: How many tasks; None never ends.
        max_steps: Steps before an episode is truncated; None uses the environment's own limit.
    """

    name = "gymnasium"
    instructions = "You play a game. Say one action a turn, and nothing else."
    restores = "replay"  # chance follows from the seed
    rescores = "transcript"  # the step rewards are recorded

    def __init__(
        self,
        env: str = "FrozenLake-v1",
        env_options: Mapping[str, Any] | None = None,
        actions: list[str] | None = None,
        count: NonNegativeInt | None = None,
        max_steps: PositiveInt | None = None,
    ) -> None:
        self._gymnasium = _import()
        self._env = env
        self._draws_lake = env == "FrozenLake-v1" and not {"desc", "map_name"} & set(env_options or {})
        slippery = {"is_slippery": False} if env == "FrozenLake-v1" else {}
        self._options = slippery | dict(env_options or {})
        self.num_tasks = count
        self._max_steps = max_steps
        self._render_mode: str | None = None
        try:
            probe = self._make(0)
        except (self._gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise UserError(f"gymnasium cannot make {env}: {describe(error)}") from error
        self._render_mode = "ansi" if "ansi" in probe.metadata.get("render_modes", ()) else None
        self._actions = self._named(probe.action_space, actions)
        probe.close()

    def tasks(self, seed: int) -> Iterator[Task]:
        known = _KNOWN.get(self._env)
        rules = known.rules if known is not None else f"Play the environment {self._env}."
        said = f" Actions: {', '.join(self._actions)}." if self._actions else ""
        message: Message = {"role": "user", "content": rules + said}
        for index in itertools.count() if self.num_tasks is None else range(self.num_tasks):
            # Far apart, so that the tasks of neighbouring seeds do not overlap.
            data = {"seed": (seed * 1_000_003 + index) % 2**31}
            yield Task(f"gymnasium-{self._env}-{index}", (message,), data, index)

    async def reset(self, task: Task, seed: int) -> tuple[Game, str]:
        """The task fixes where the game starts; `seed` fixes what chance does afterwards."""
        env = self._make(task.data["seed"])
        observation, _ = env.reset(seed=task.data["seed"])
        env.unwrapped.np_random = self._gymnasium.utils.seeding.np_random(seed)[0]
        return Game(env), self._text(env, observation)

    async def act(self, session: Game, action: str) -> Step:
        if session.over:  # by an earlier call of the same turn
            raise ToolError("the game is over")
        observation, reward, terminated, truncated, _ = session.env.step(self._index(session.env, action))
        session.over = bool(terminated or truncated)
        return Step(self._text(session.env, observation), float(reward), bool(terminated), bool(truncated))

    async def leave(self, session: Game) -> None:
        session.env.close()

    def gold(self, task: Task) -> Solution:
        """The shortest way to a reward, for environments that show a deterministic transition table."""
        env = self._make(task.data["seed"])
        env.reset(seed=task.data["seed"])
        table, start = getattr(env.unwrapped, "P", None), getattr(env.unwrapped, "s", None)
        env.close()
        path = _shortest(table, int(start)) if table is not None and start is not None else None
        if path is None:
            raise NotImplementedError(f"no certain way to solve {self._env} is known")
        return Solution(tuple(("step", {"action": self._actions[action]}) for action in path))

    def _make(self, seed: int) -> Any:
        options = dict(self._options)
        if self._draws_lake:
            lakes = importlib.import_module("gymnasium.envs.toy_text.frozen_lake")
            options["desc"] = lakes.generate_random_map(size=4, seed=seed)
        return self._gymnasium.make(
            self._env,
            max_episode_steps=self._max_steps,
            disable_env_checker=True,
            render_mode=self._render_mode,
            **options,
        )

    def _named(self, space: Any, given: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the actions, in the space's order; none where an action is any text."""
        if isinstance(space, self._gymnasium.spaces.Text):
            return ()
        if not isinstance(space, self._gymnasium.spaces.Discrete):
            raise UserError(f"gymnasium: {self._env} has {type(space).__name__} actions; only Discrete and Text fit")
        self._first = int(space.start)
        known = _KNOWN.get(self._env)
        numbers = tuple(str(self._first + offset) for offset in range(int(space.n)))
        names = tuple(given) if given is not None else known.actions if known is not None else numbers
        if len(names) != len(numbers) or len({name.lower() for name in names}) != len(names):
            raise UserError(f"gymnasium: actions must be {len(numbers)} different names for {self._env}")
        return names

    def _index(self, env: Any, action: str) -> Any:
        said = action.strip()
        if not self._actions:
            if env.action_space.contains(said):
                return said
            raise ToolError(f"{self._env} does not take this action")
        for offset, name in enumerate(self._actions):
            if name.lower() == said.lower().rstrip("."):
                return self._first + offset
        raise ToolError(f"no action '{said[:40]}'{nearest(said[:40].lower(), self._actions)}")

    def _text(self, env: Any, observation: Any) -> str:
        if self._render_mode == "ansi":
            return _COLOURED.sub(r"[\1]", str(env.render())).strip("\n")
        if isinstance(observation, str):
            return observation
        known = _KNOWN.get(self._env)
        parts = [part.tolist() if hasattr(part, "tolist") else part for part in _parts(observation)]
        if known is not None and known.seen is not None:
            return known.seen.format(*parts)
        return ", ".join(map(str, parts))


def _import() -> Any:
    try:
        return importlib.import_module("gymnasium")
    except ImportError:
        raise UserError("resource gymnasium needs the package gymnasium: pip install gymnasium") from None


def _parts(observation: Any) -> Sequence[Any]:
    return observation if isinstance(observation, (tuple, list)) else (observation,)


def _shortest(table: Mapping[int, Mapping[int, Sequence[Any]]], start: int) -> list[int] | None:
    """Breadth-first search over `table[state][action] = [(probability, next state, reward, ended)]`."""
    paths: dict[int, list[int]] = {start: []}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        for action, outcomes in table[state].items():
            if len(outcomes) != 1:
                return None
            _, after, reward, ended = outcomes[0]
            if ended and reward > 0:
                return [*paths[state], int(action)]
            if not ended and after not in paths:
                paths[after] = [*paths[state], int(action)]
                queue.append(after)
    return None
