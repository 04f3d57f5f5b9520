"""verl's AgentLoop: each `run` plays one episode of a job with verl's own engine.

In verl: `actor_rollout_ref.rollout.agent.agent_loop_config_path` names a file with

    - {name: rollout, _target_: actors.adapters.verl_loop.RolloutAgentLoop, conf: job.yaml}

and the dataset's rows are those of `Player.dataset`, which carry the task and choose this loop by `agent_name`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from actors.adapters.player import Player, Within, sample_of, sampling_of, task_in
from actors.foreign import imported
from rollout.trajectory import Completion, FinishReason, Prompt, Trajectory, VersionSpan

_verl = imported("verl.experimental.agent_loop.agent_loop", "verl")


@lru_cache(maxsize=8)
def _player(conf: str, overrides: tuple[str, ...]) -> Player:
    """verl makes a loop for every episode; what they share is made once."""
    return Player.of(conf, overrides)


class RolloutAgentLoop(_verl.AgentLoopBase):
    """An AgentLoopBase over one job."""

    def __init__(self, *args: Any, conf: str, overrides: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.player = _player(conf, tuple(overrides))

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """Plays the task of a dataset row to its end and gives it as an AgentLoopOutput.

        Raises RolloutError for an episode that failed after all its attempts: verl fills its group up again, or ends
        the step; a reward of 0 would be learned from.
        """
        engine = VerlPolicy(self.server_manager, sampling_params)
        config = self.rollout_config
        policy = Within(engine, config.prompt_length, config.response_length)
        sampling = sampling_of(sampling_params, self.player.sampling)
        trajectory = await self.player.play(policy, task_in(kwargs["extra_info"]), sampling)
        return _verl.AgentLoopOutput(**output_of(trajectory, engine.steps))


@dataclass(frozen=True, slots=True)
class VerlPolicy:
    """verl's LLMServerClient as the Policy of one episode, which is a sticky session there."""

    server: Any
    params: Mapping[str, Any]
    steps: list[int] = field(default_factory=list[int])
    """Trainer steps whose weights have sampled."""

    async def complete(self, prompt: Prompt) -> Completion:
        """Samples with verl's parameters and what is left of the episode's tokens."""
        told = await self.server.generate(
            request_id=prompt.session_id,
            prompt_ids=list(prompt.ids),
            sampling_params={**self.params, "max_tokens": prompt.max_tokens, "logprobs": True},
        )
        ids, told_of = array("i", told.token_ids), told.extra_fields
        steps = [told_of[key] for key in ("min_global_steps", "max_global_steps") if told_of.get(key) is not None]
        self.steps.extend(steps)
        return Completion(
            finish_reason=_reason(told.stop_reason, len(ids), prompt.max_tokens),
            ids=ids,
            logprobs=array("f", told.log_probs or ()),  # fewer than tokens are the engine's failure
            # Which of its tokens an updated engine sampled verl does not tell: they count as old as the oldest.
            versions=(VersionSpan(str(steps[0]), 0, len(ids)),) if steps else (),
            cached_tokens=told_of.get("num_cached_tokens"),
            replica="verl",
        )


def output_of(trajectory: Trajectory, steps: Sequence[int] = ()) -> dict[str, Any]:
    """The fields of an AgentLoopOutput; `steps` are those of the trainer whose weights have sampled.

    Raises RolloutError for an episode without a sample.
    """
    sample = sample_of(trajectory)
    split = sample["prompt_length"]
    seconds = trajectory.seconds
    rewards = [turn.reward for turn in trajectory.turns]
    return {
        "prompt_ids": sample["token_ids"][:split],
        "response_ids": sample["token_ids"][split:],
        "response_mask": sample["loss_mask"][split:],
        "response_logprobs": sample["logprobs"][split:],
        "reward_score": sample["reward"],
        "num_turns": len(trajectory.messages),
        "metrics": {
            "generate_sequences": seconds.queue + seconds.model,
            "tool_calls": seconds.tool,
            "compute_score": seconds.verify,
        },
        "extra_fields": {
            "episode_id": sample["episode_id"],
            "stop_reason": sample["stop_reason"],
            "turn_scores": [reward for reward in rewards if reward is not None],
            "tool_rewards": [],
            "min_global_steps": min(steps, default=None),
            "max_global_steps": max(steps, default=None),
            "reward_extra_info": {"truncated": float(trajectory.stop_reason.truncated)},  # the same keys in all
        },
    }


def _reason(told: str | None, sampled: int, room: int) -> FinishReason:
    if told == "aborted":
        return FinishReason.ABORT
    return FinishReason.LENGTH if sampled >= room else FinishReason.STOP
