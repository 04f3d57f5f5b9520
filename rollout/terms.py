"""What passes between a trainer and the service it reads from: the terms it asks for, the batches it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rollout.config import JobConfig, OpenAIConfig
from rollout.errors import UserError
from rollout.samples import to_samples
from rollout.shelf import By


@dataclass(frozen=True, slots=True)
class Terms:
    """What a trainer asks of a service; see `actors.online.open_service`."""

    trainer: str = "trainer"
    max_behind: int = 1
    by: By = "start"
    keeps_equal: bool = False
    address: str | None = None
    resume: bool | str = False

    def check(self, config: JobConfig) -> None:
        """Raises UserError where a job cannot keep them."""
        if isinstance(config.model, OpenAIConfig):
            raise UserError("model.engine: an endpoint elsewhere takes no weights from here; expected vllm or scripted")
        if self.by not in ("start", "token"):
            raise UserError(f"by: expected start or token, found {self.by!r}")
        if self.max_behind < 0:
            raise UserError(f"max_behind: expected 0 or more versions, found {self.max_behind}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole groups of episodes."""

    rows: Any
    """pyarrow table of the dataset's rows, group after group. Surplus, failed and dropped episodes have no reward."""
    cursor: str
    """What a trainer stores with a checkpoint that has learned from this batch and those before it."""
    group_ids: tuple[str, ...]
    version: int
    """Of the weights that served when it was pulled."""
    behind: tuple[int, ...]
    """How many versions older each group is."""

    @property
    def pull(self) -> int:
        """Its number among all pulls of the trainer, from 1."""
        return int(self.cursor.rpartition("/")[2])

    def samples(self) -> Any:
        """The same as a pyarrow table of training samples (`rollout.samples.SAMPLES`)."""
        return to_samples(self.rows)
