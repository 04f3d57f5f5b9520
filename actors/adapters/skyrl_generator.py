"""SkyRL's GeneratorInterface: `generate` plays the batch's episodes with SkyRL's own inference engine.

    class Experiment(BasePPOExp):
        def get_generator(self, cfg, tokenizer, inference_engine_client):
            return RolloutGenerator("job.yaml", inference_engine_client, cfg.trainer..., ...)

The dataset's rows are those of `Player.dataset`: all but prompt and env_class come back as `env_extras`.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.adapters.player import Player, Within, sample_of, sampling_of, task_in
from actors.foreign import imported
from rollout.errors import BoundaryError, UserError, boundary
from rollout.trajectory import Completion, FailureKind, FinishReason, Prompt, Trajectory, VersionSpan

CLOSE_SECONDS = 10.0
"""What telling SkyRL's router that a session is over may take."""
log = logging.getLogger(__name__)
_skyrl = imported("skyrl.train.generators.base", "skyrl")


class RolloutGenerator(_skyrl.GeneratorInterface):
    """A GeneratorInterface over one job. `prompt_tokens` and `response_tokens` are what the trainer has room for."""

    def __init__(
        self, conf: str, engine: Any, prompt_tokens: int, response_tokens: int, overrides: Sequence[str] = ()
    ) -> None:
        """`engine` is SkyRL's inference engine client. Raises UserError for a conf that cannot be used."""
        self._player = Player.of(conf, overrides)
        self._engine = engine
        self._room = prompt_tokens, response_tokens

    async def generate(self, input_batch: Any) -> Any:
        """Plays one episode for each prompt, all at once, and gives a GeneratorOutput in the order of the batch.

        SkyRL wants an output for every prompt. Where an episode failed after all its attempts, nothing of its group is
        trained on (all masks 0, all rewards equal), and `rollout_metrics` counts it: a reward of 0 for what was no
        fault of the policy would move the others' advantages.
        """
        extras = input_batch["env_extras"]
        if not extras:
            raise UserError("env_extras: none, expected the rows of Player.dataset()")
        metadata = input_batch.get("batch_metadata")
        version = None if metadata is None else str(metadata.global_step)
        played = await asyncio.gather(
            *(self._play(extra, input_batch.get("sampling_params") or {}, version) for extra in extras)
        )
        return output_of(played, input_batch.get("trajectory_ids"))

    async def _play(self, extra: Mapping[str, Any], params: Mapping[str, Any], version: str | None) -> Trajectory:
        policy = SkyPolicy(self._engine, params, version)
        sampling = sampling_of(params, self._player.sampling)
        trajectory = await self._player.play(Within(policy, *self._room), task_in(extra["extra_info"]), sampling)
        await self._finish(trajectory.lease.episode_id)
        return trajectory

    async def _finish(self, session: str) -> None:
        """Lets SkyRL's router forget the session: a help to it, which costs no episode when it fails."""
        try:
            async with boundary(FailureKind.MODEL, "skyrl", CLOSE_SECONDS):
                await self._engine.finish_session(session)
        except BoundaryError as error:
            log.warning("a session was not finished: %s", error)


@dataclass(frozen=True, slots=True)
class SkyPolicy:
    """SkyRL's inference engine client as a Policy: the episode is the session that its router keeps in one place."""

    engine: Any
    params: Mapping[str, Any]
    version: str | None

    async def complete(self, prompt: Prompt) -> Completion:
        """Samples with SkyRL's parameters and what is left of the episode's tokens."""
        sampling = prompt.sampling
        own = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1}
        told = await self.engine.generate(
            {
                "prompt_token_ids": [list(prompt.ids)],
                "session_ids": [prompt.session_id],
                "sampling_params": {**own, **self.params, "max_tokens": prompt.max_tokens, "logprobs": 1},
            }
        )
        ids, logprobs = array("i", told["response_ids"][0]), told.get("response_logprobs")
        return Completion(
            finish_reason=_REASONS.get(told["stop_reasons"][0], FinishReason.ABORT),
            ids=ids,
            logprobs=array("f", logprobs[0] if logprobs else ()),  # fewer than tokens are the engine's failure
            versions=() if self.version is None else (VersionSpan(self.version, 0, len(ids)),),
            replica="skyrl",
        )


_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def output_of(played: Sequence[Trajectory], trajectory_ids: Sequence[Any] | None) -> dict[str, Any]:
    """A GeneratorOutput of the episodes of a batch; ids tell which are of one group."""
    groups = [one.instance_id for one in trajectory_ids] if trajectory_ids else [str(n) for n in range(len(played))]
    lost = {group for group, one in zip(groups, played, strict=True) if one.failure is not None or not one.turns}
    rows = [_row(one, group in lost) for group, one in zip(groups, played, strict=True)]
    return {
        **{key: [row[key] for row in rows] for key in rows[0]},
        "trajectory_ids": list(trajectory_ids) if trajectory_ids else None,
        "rollout_metrics": {
            "rollout/failed_episodes": sum(one.failure is not None for one in played),
            "rollout/masked_groups": len(lost),
            "rollout/truncated_episodes": sum(one.stop_reason.truncated for one in played),
        },
        "rollout_expert_indices": None,
        "is_last_step": None,
        "pixel_values": None,
        "image_grid_thw": None,
    }


def _row(trajectory: Trajectory, masked: bool) -> dict[str, Any]:
    seconds = trajectory.seconds
    told = {
        "stop_reasons": "length" if trajectory.stop_reason.truncated else "stop",
        "trajectory_generation_times": seconds.total,
        "env_metrics": dict(trajectory.score.metrics) if trajectory.score is not None else {},
    }
    if trajectory.failure is not None or not trajectory.turns:
        nothing = {"prompt_token_ids": [0], "response_ids": [0], "loss_masks": [0], "rollout_logprobs": [0.0]}
        return {**nothing, "rewards": 0.0, **told, "stop_reasons": str(trajectory.stop_reason)}
    sample = sample_of(trajectory)
    split = sample["prompt_length"]
    mask = sample["loss_mask"][split:]
    return {
        "prompt_token_ids": sample["token_ids"][:split],
        "response_ids": sample["token_ids"][split:],
        "loss_masks": [0] * len(mask) if masked else mask,
        "rollout_logprobs": sample["logprobs"][split:],
        "rewards": 0.0 if masked else sample["reward"],
        **told,
    }
