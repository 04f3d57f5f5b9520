"""`rollout` with an engine that talks garbage in the share of replies that GARBAGE_SHARE says."""

from __future__ import annotations

import os
from functools import wraps

import actors.model
from fault_runs.world import GarbageFactory
from rollout.cli import main
from rollout.config import JobConfig


def _spoil() -> None:
    honest = actors.model.engine_factory

    @wraps(honest)
    def spoilt(config: JobConfig) -> GarbageFactory:
        return GarbageFactory(honest(config), float(os.environ["GARBAGE_SHARE"]))

    actors.model.engine_factory = spoilt


if __name__ == "__main__":
    _spoil()
    main(prog_name="rollout")
