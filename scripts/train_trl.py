"""The same lesson with TRL: its own GRPOTrainer learns from groups that it pulls through its rollout hook.

    pip install 'trl>=1.16,<2'      # it warns of a vLLM newer than itself, which it does not use here
    python -m scripts.train_trl runs/trl --steps 60

TRL asks `rollout_func` for completions of the prompts that it drew. Here the prompts of its dataset only count: the
hook publishes the weights that TRL has by now, pulls as many whole groups as prompts were asked for, and hands over
ids, logprobs, masks and rewards as they stand in the dataset. What TRL leaves open, this decides:

- A group is `num_generations` prompts in a row, so that TRL's own advantages are those of our groups.
- Tool results are part of the completion, with `env_mask` 0.
- TRL takes one sequence a prompt: an episode with a segment break would need several and ends the script.
- TRL looks at the engine's logprobs only when it drives vLLM itself. Nothing would correct for staleness, so groups are
  pulled with `max_behind=0`, and the replicas wait while TRL learns. `scripts/train_grpo.py` lets them go on.
"""

# TRL and transformers leave most of what is used here without types; the first is for this example alone.
# pyright: basic, reportMissingImports=false

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from actors.online import SyncService, open_service_sync
from rollout.template import BUNDLED
from scripts.learning import held_out  # noqa: TID251 - what both trainers show for themselves

GENERATIONS = 8
"""Samples of a group: run.samples_per_task of conf/learn.yaml."""


def main() -> int:
    """Plays, learns, plays again; leaves the model in FOLDER/model."""
    options = _options()
    out: Path = options.folder
    torch.set_num_threads(options.threads)
    before = held_out(BUNDLED, out / "before", options.problems)
    conf = [f"run.dir={out / 'run'}", f"run.seed={options.seed}", f"run.samples_per_task={GENERATIONS}"]
    with open_service_sync("learn", conf, trainer="trl", max_behind=0, by="start") as service:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(BUNDLED),
            args=settings(options, out),
            train_dataset=Dataset.from_dict({"prompt": [""] * options.groups * (options.steps + 1)}),
            reward_funcs=recorded_reward,
            rollout_func=Rollouts(service, out / "weights"),
        )
        trainer.train()
        trainer.save_model(str(out / "model"))
        print(service.report())
    after = held_out(out / "model", out / "after", options.problems)
    print(f"held-out reward {before} -> {after} after {options.steps} steps")
    return 0


class Rollouts:
    """TRL's rollout hook."""

    def __init__(self, service: SyncService, folder: Path) -> None:
        self._service = service
        self._folder = folder

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """Whole groups for so many prompts, sampled by the weights that the trainer has now."""
        if trainer.state.global_step > self._service.version:
            place = self._folder / str(trainer.state.global_step)
            trainer.save_model(str(place))
            self._service.publish(place)
        return as_trl(self._service.pull(len(prompts) // GENERATIONS).samples())


def as_trl(samples: Any) -> dict[str, list[Any]]:
    """A table of samples (rollout.samples.SAMPLES) as what `rollout_func` returns; one sequence an entry.

    Raises ValueError for an episode of several segments.
    """
    told: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "episode_reward")
    }
    for sample in samples.to_pylist():
        if sample["num_segments"] != 1:
            raise ValueError(f"{sample['episode_id']} has {sample['num_segments']} segments; TRL takes one a prompt")
        first = sample["prompt_length"]
        told["prompt_ids"].append(sample["token_ids"][:first])
        told["completion_ids"].append(sample["token_ids"][first:])
        told["logprobs"].append(sample["logprobs"][first:])
        told["env_mask"].append(sample["loss_mask"][first:])
        told["episode_reward"].append(sample["reward"])
    return told


def recorded_reward(episode_reward: list[float], **_: Any) -> list[float]:
    """The verifier's reward, which came with the episode."""
    return episode_reward


def settings(options: argparse.Namespace, out: Path) -> GRPOConfig:
    """What TRL is told: one optimizer step on each batch of groups, so that every batch is on policy."""
    episodes = options.groups * GENERATIONS
    return GRPOConfig(
        output_dir=str(out / "trl"),
        max_steps=options.steps,
        learning_rate=options.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta2=0.95,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=episodes // 16,
        num_generations=GENERATIONS,
        max_completion_length=4096,
        loss_type="dapo",
        beta=0.0,
        temperature=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        seed=options.seed,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where everything goes; must be new")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--groups", type=int, default=16, help="to a step")
    parser.add_argument("--rate", type=float, default=5e-5, help="learning rate")
    parser.add_argument("--problems", type=int, default=512, help="held-out problems to play before and after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch; vLLM waits while TRL learns")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
