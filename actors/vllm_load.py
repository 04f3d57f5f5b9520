"""What vLLM tells of its load, kept for whoever asks. Imports vllm: only `actors.vllm_engine` imports it, late."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from rollout.load import Load


class LoadKeeper:
    """The newest statistics of an engine; of each of its data-parallel ranks, where it has several."""

    def __init__(self) -> None:
        self._ranks: dict[int, Any] = {}
        self._preemptions = 0
        self._forgiven = 0

    def logger(self, config: Any, index: int = 0) -> StatLoggerBase:
        """vLLM's factory of stat loggers: one for each rank."""
        return _Logger(self, index)

    def record(self, rank: int, scheduler: Any, iteration: Any) -> None:
        """Takes in what vLLM's scheduler and its last step tell; either may be None."""
        if scheduler is not None:
            self._ranks[rank] = scheduler
        if iteration is not None:
            told = iteration.num_preempted_reqs
            forgiven = min(told, self._forgiven)
            self._forgiven -= forgiven
            self._preemptions += told - forgiven

    def forgive(self) -> None:
        """What runs now is about to be preempted by an update of the weights: that says nothing about memory."""
        self._forgiven = sum(rank.num_running_reqs for rank in self._ranks.values())

    def now(self, idle: bool) -> Load:
        """The load; `idle` says that the engine has no request, whatever it told last."""
        ranks = [] if idle else self._ranks.values()
        return Load(
            running=sum(rank.num_running_reqs for rank in ranks),
            waiting=sum(rank.num_waiting_reqs + rank.num_skipped_waiting_reqs for rank in ranks),
            kv_usage=max((rank.kv_cache_usage for rank in ranks), default=0.0),
            preemptions=self._preemptions,
        )


class _Logger(StatLoggerBase):
    """vLLM calls it at every step of one rank."""

    def __init__(self, keeper: LoadKeeper, index: int) -> None:
        self._keeper = keeper
        self._index = index

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        self._keeper.record(self._index, scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """vLLM says so itself."""
