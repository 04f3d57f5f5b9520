"""Jobs whose agent is a program: each runner has the gateway that its episodes' programs reach, in its own process."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace

from actors.gateway import gateway_of, served_of
from actors.setting import Job, vocabulary_of
from rollout.config import JobConfig, OpenAIConfig
from rollout.episode import Setting
from rollout.errors import UserError
from rollout.external.hosting import Hosting
from rollout.external.playing import External
from rollout.external.section import ExternalConfig


async def with_program(job: Job, settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Settings of a job whose program makes the model calls, its gateway begun; as they are for any other job.

    Raises UserError for a program that is not there, a variable that is not set, and a place where nothing can listen.
    """
    config = job.config
    if (section := config.agent.external) is None:
        return dict(settings)
    _check_found(section)
    first = next(iter(settings.values()))
    served = replace(served_of(config, first.policy, int(time.time())), vocabulary=vocabulary_of(config))
    hosting = await Hosting.start(section, served, gateway_of(config))
    external = External(
        config=section,
        agent=first.agent,
        template=served.template,
        limits=first.limits,
        model=served.profile.name,
        context=served.profile.context,
        origin=hosting.origin,
        episodes=hosting.episodes,
        secrets=section.secrets(),
        environ=dict(os.environ),
        trainable=config.agent.trainable,
        priced=first.priced,
        episode_usd=config.cost.episode_usd,
    )
    # What a program did with its files and the network is in no turn, so nobody can go on behind those of another try.
    return {
        name: replace(one, program=external.program, restores=None, closes=hosting.close)
        for name, one in settings.items()
    }


def check_program(config: JobConfig) -> None:
    """Raises UserError for a job whose programs could not be served."""
    if config.agent.external is not None and isinstance(config.model, OpenAIConfig):
        if config.model.tokenizer is None:
            raise UserError("model.tokenizer: missing; beside agent.external prompts are token ids")
        if config.model.max_model_len is None:
            raise UserError("model.max_model_len: missing; beside agent.external it has to be known")


def _check_found(section: ExternalConfig) -> None:
    section.secrets()
    program = section.engine if section.image is not None else next(iter(section.command), None)
    if program is not None and "{" not in program and shutil.which(program) is None:
        key = "agent.external.engine" if section.image is not None else "agent.external.command"
        raise UserError(f"{key}: there is no program '{program}' on the PATH of the runners")
