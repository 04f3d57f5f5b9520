"""An agent that makes no model calls: its run is a pipeline of others, or a loop over them, each a child of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.agents.calling import asked
from rollout.agents.child_runs import ChildRuns, NewConduct, NoAnswer
from rollout.agents.children import Place
from rollout.agents.parts import Parts, Pipeline
from rollout.agents.role import last_said
from rollout.agents.teams import Result, loop_pipeline, run_pipeline
from rollout.conduct import Acted, Ended, Ready, Said, Sample
from rollout.errors import BoundaryError
from rollout.family import Family
from rollout.protocols import Ledger, Seeded
from rollout.trajectory import Agent, Json, Lease, Message, StopReason, ToolSpec, Turn

_STOP_SECONDS = 30.0
"""What a person's own `stop_when` may take."""


@dataclass(slots=True)
class PipelineConduct:
    """See Conduct. Its answer is that of the agent that ran last."""

    parts: Parts
    lease: Lease
    new: NewConduct
    _runs: ChildRuns | None = None
    _given: str = ""
    _answer: Json = None

    @property
    def agent(self) -> Agent:
        """See Conduct."""
        return self.parts.agent

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """See Conduct."""
        return ()

    async def open(self, seeded: Seeded, family: Family) -> tuple[Message, ...]:
        """See Conduct."""
        self._runs = ChildRuns(family, seeded, self.new, self.parts.budget, Place(len(self.lease.path)))
        self._given = last_said(seeded.messages)
        return seeded.messages

    async def prepare(
        self, ledger: Ledger, said: Sequence[Message], turns: Sequence[Turn], sample: Sample
    ) -> Ready | StopReason:
        """See Conduct. Runs the whole pipeline, and with that is at its end."""
        runs, crew, pipeline = self._runs, self.parts.crew, self.parts.pipeline
        assert runs is not None and crew is not None and pipeline is not None, "open comes first"
        seconds = runs.family.limits.episode_seconds

        async def stage(agent: str, given: str) -> Result:
            return await run_pipeline(one, agent, given, seconds, pipeline.max_handoffs)

        async def one(agent: str, given: str) -> Result:
            return await runs.run(crew, agent, given)

        stop = StopReason.DONE

        async def over(agent: str, result: Result) -> bool:
            nonlocal stop
            stop = StopReason.ENVIRONMENT if result.done else StopReason.DONE
            return result.done or await _ends(pipeline, agent, result)

        try:
            result = await loop_pipeline(stage, pipeline.agents, self._given, over, seconds, pipeline.rounds)
        except BoundaryError as error:
            if isinstance(error.__cause__, NoAnswer):
                return error.__cause__.stop
            raise
        self._answer = result.value
        return stop

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        """See Conduct."""
        raise AssertionError("a pipeline makes no model calls")

    async def end(self, stop: StopReason, failed: BoundaryError | None) -> Ended:
        """See Conduct."""
        return Ended(self._answer)


async def _ends(pipeline: Pipeline, agent: str, result: Result) -> bool:
    if pipeline.stop_when is None:
        return False
    return bool(await asked(pipeline.stop_when, (agent, result.value), _STOP_SECONDS, "pipeline.stop_when"))
