"""What a gateway has done so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rollout.serving.prefixes import Touched, tallied


@dataclass(slots=True)
class Counts:
    """Of one gateway, since it began."""

    requests: int = 0
    """Model calls that were asked for."""
    running: int = 0
    refused: int = 0
    """Those that were not answered, or not to the end."""
    gone: int = 0
    """Those whose client hung up first."""
    slow: int = 0
    """Those whose client was cut off because it did not read."""
    prefilled: int = 0
    """Prompts that were read ahead of their request."""
    prefixes: dict[str, Touched] = field(default_factory=dict[str, Touched])
    """By rule."""
    tokens: dict[str, float] = field(default_factory=dict[str, float])
    """Tokens that a rule took out, about: its characters, at the characters for a token of the prompt they stood in."""

    def touched(self, removed: Mapping[str, int], characters: int, tokens: int) -> None:
        """One more prompt, of so many characters and tokens when the rules had been applied."""
        if not removed:
            return
        self.prefixes = tallied(self.prefixes, removed)
        each = min(1.0, tokens / max(1, characters))
        for name, count in removed.items():
            self.tokens[name] = self.tokens.get(name, 0.0) + count * each

    def told(self) -> dict[str, Any]:
        """As JSON."""
        prefixes = {name: {**asdict(one), "tokens": round(self.tokens[name])} for name, one in self.prefixes.items()}
        others = ("requests", "running", "refused", "gone", "slow", "prefilled")
        return {**{name: getattr(self, name) for name in others}, "prefixes": prefixes}
