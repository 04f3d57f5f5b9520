"""A model learns: GRPO in plain PyTorch, on rollouts that go on while it trains.

    python -m scripts.train_grpo runs/learn              # 20 minutes on two CPU cores
    python -m scripts.train_grpo runs/learn --seed 1

It plays held-out problems with the bundled model, trains on other ones through the online API (`actors.online`), plays
the held-out ones again, and leaves in the folder: `run/` (the dataset), `weights/` (the last versions), `before/` and
`after/` (what was played), `steps.jsonl`, `learning.png` and `stats.txt`. It needs torch, transformers, matplotlib.

`main` is the whole loop: pull groups, learn, publish. All between the engine and the loss is one column of the dataset:
the ratio of a token is its probability now over the one that vLLM recorded when it sampled it.
"""

# torch and transformers leave most of what is used here without types.
# pyright: basic

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deltalake import DeltaTable
from transformers import Qwen3ForCausalLM

from actors.online import open_service_sync
from rollout.template import BUNDLED

CLIP = (0.2, 0.28)
"""How far below and above 1 a ratio still teaches."""
TOKENS = 4096
"""In one forward pass, padding included: small enough for the caches of a CPU."""


def main() -> int:
    """Plays, learns, plays again, draws."""
    options = _options()
    began = time.monotonic()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    out: Path = options.folder
    before = held_out(BUNDLED, out / "before", options.problems)
    learner = Learner(options.rate, options.warmup, options.updates, options.seed)
    conf = [f"run.dir={out / 'run'}", f"run.seed={options.seed}"]
    steps: list[Step] = []
    with open_service_sync("learn", conf, max_behind=options.max_behind, by="start") as service:
        while time.monotonic() - began < 60 * options.minutes:
            asked = time.monotonic()
            batch = service.pull(options.groups)
            pulled = time.monotonic()
            figures = learner.learn(batch.samples(), service.version)
            learned = time.monotonic()
            version = service.publish(learner.save(out / "weights" / str(service.version + 1)))
            seconds = {"waited": pulled - asked, "learned": learned - pulled, "published": time.monotonic() - learned}
            steps.append(Step(version, time.monotonic() - began, seconds, figures))
            note(out, steps[-1])
    after = held_out(out / "weights" / str(version), out / "after", options.problems)
    minutes = (time.monotonic() - began) / 60
    line = f"held-out reward {before} -> {after} after {len(steps)} versions and {minutes:.1f} minutes"
    draw(out, steps, before, after, f"seed {options.seed}: {line}")
    with (out / "stats.txt").open("w") as file:
        subprocess.run([sys.executable, "-m", "rollout", "stats", str(out / "run")], stdout=file, check=True)
    print(f"{line}\n{out / 'learning.png'}, {out / 'stats.txt'}")
    return 0


# ---------------------------------------------------------------------------------------------
# The mathematics


def group_advantages(groups: np.ndarray, rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How much better than its group each sample is, in standard deviations: GRPO (arXiv 2402.03300, section 4.1.2).

    Takes arrays of one entry a sample. Samples of one episode share its reward; their weights add up to 1, so that an
    episode counts once. A group without a difference teaches nothing: 0.
    """
    _, of = np.unique(groups, return_inverse=True)
    count = np.bincount(of, weights)
    mean = np.bincount(of, weights * rewards) / count
    apart = rewards - mean[of]
    spread = np.sqrt(np.bincount(of, weights * apart**2) / count)[of]
    return np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 1e-6)


def policy_loss(ratios: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """The clipped surrogate of each token (PPO, arXiv 1707.06347), with DAPO's higher upper bound (arXiv 2503.14476,
    section 3.1).

    `ratios` are against the engine's own probabilities, not against a second pass of the trainer: that corrects at
    once for staleness, for the steps within a batch and for the engine's other arithmetic. There is no KL term.
    """
    clipped = ratios.clamp(1 - CLIP[0], 1 + CLIP[1])
    return -torch.minimum(ratios * advantages, clipped * advantages)


def token_logprobs(model: Any, ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Logprobs at temperature 1 of the tokens that `chosen` (batch, length) marks, as one flat tensor.

    Only their positions go through the head. Padding is on the right of a causal model, so it needs no mask.
    """
    states = model.model(input_ids=ids).last_hidden_state[:, :-1]
    logits = model.lm_head(states[chosen[:, 1:]])
    return torch.log_softmax(logits, -1).gather(1, ids[:, 1:][chosen[:, 1:]][:, None])[:, 0]


# ---------------------------------------------------------------------------------------------
# The learner


@dataclass(frozen=True, slots=True)
class Sample:
    """A training sample as tensors of one length."""

    ids: torch.Tensor
    chosen: torch.Tensor
    logprobs: torch.Tensor
    advantage: float
    weight: float

    def __len__(self) -> int:
        return len(self.ids)


class Learner:
    """Weights in float32, their optimizers, and one method that learns from a table of samples."""

    def __init__(self, rate: float, warmup: int, updates: int, seed: int) -> None:
        self.model: Any = Qwen3ForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
        self._optimizers = optimizers(self.model, rate)
        self._schedules = [
            torch.optim.lr_scheduler.LinearLR(one, 1 / warmup, total_iters=warmup) for one in self._optimizers
        ]
        self._updates = updates
        self._rng = np.random.default_rng(seed)

    def learn(self, table: Any, version: int) -> dict[str, float]:
        """Takes `updates` steps, each on its part of the samples. What there is to see of them, as numbers."""
        samples = read(table)
        order = self._rng.permutation(len(samples))
        told: list[torch.Tensor] = []
        norms = [self._step([samples[i] for i in part], told) for part in np.array_split(order, self._updates)]
        ratios = torch.cat(told).double()
        low, middle, high = torch.quantile(
            ratios[:: 1 + len(ratios) // 1_000_000], torch.tensor([0.01, 0.5, 0.99]).double()
        )
        return {
            "tokens": len(ratios),
            "gradient_norm": float(np.mean(norms)),
            "ratio_std": float(ratios.std()),
            "ratio_p01": float(low),
            "ratio_p50": float(middle),
            "ratio_p99": float(high),
            "clipped": float(((ratios < 1 - CLIP[0]) | (ratios > 1 + CLIP[1])).double().mean()),
            **staleness(table, version),
        }

    def _step(self, samples: list[Sample], told: list[torch.Tensor]) -> float:
        """One update, in forward passes of about TOKENS. Every token of the step counts the same (DAPO's token-level
        loss, arXiv 2503.14476, section 3.3), times the weight of its sample among its siblings."""
        total = sum(sample.weight * int(sample.chosen.sum()) for sample in samples)
        for part in by_length(samples):
            ids, chosen, sampled = (
                padded([getattr(one, name) for one in part]) for name in ("ids", "chosen", "logprobs")
            )
            counts = chosen.sum(1)
            advantages = torch.tensor([one.advantage for one in part]).repeat_interleave(counts)
            weights = torch.tensor([one.weight for one in part]).repeat_interleave(counts)
            ratios = torch.exp(token_logprobs(self.model, ids, chosen) - sampled[chosen])
            ((weights * policy_loss(ratios, advantages)).sum() / total).backward()
            told.append(ratios.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.model.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path) -> Path:
        """Writes a model that vLLM can load, in bfloat16, beside its tokenizer; forgets the version before the last."""
        shutil.copytree(BUNDLED, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        copy: Any = Qwen3ForCausalLM(self.model.config).bfloat16()
        copy.load_state_dict(self.model.state_dict())
        copy.generation_config = self.model.generation_config
        copy.save_pretrained(folder)
        shutil.rmtree(folder.with_name(str(int(folder.name) - 2)), ignore_errors=True)
        return folder


def optimizers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """AdamW without decay."""
    return [torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]


# ---------------------------------------------------------------------------------------------
# From columns to tensors


def read(table: Any) -> list[Sample]:
    """The samples of a table (rollout.samples.SAMPLES), with their advantages."""
    columns = table.select(["token_ids", "loss_mask", "logprobs", "weight"]).to_pylist()
    groups, rewards, weights = (table[name].to_numpy() for name in ("group_id", "reward", "weight"))
    advantages = group_advantages(groups, rewards, weights)
    return [
        Sample(
            torch.tensor(one["token_ids"]),
            torch.tensor(one["loss_mask"], dtype=torch.bool),
            torch.tensor(one["logprobs"]),
            float(advantage),
            one["weight"],
        )
        for one, advantage in zip(columns, advantages, strict=True)
    ]


def by_length(samples: list[Sample]) -> Iterator[list[Sample]]:
    """Batches of about TOKENS, of samples about as long as each other: little of them is padding."""
    waiting = sorted(samples, key=len)
    while waiting:
        count = max(1, TOKENS // len(waiting[-1]))
        yield waiting[-count:]
        del waiting[-count:]


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    """Rows as one tensor, with zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def staleness(table: Any, version: int) -> dict[str, float]:
    """How many versions older than the trainer's the sampled tokens are, and what share is older at all."""
    spans = [span for spans in table["versions"].to_pylist() for span in spans]
    behind = np.array([version - int(span["version"]) for span in spans])
    tokens = np.array([span["end"] - span["start"] for span in spans])
    return {
        "stale_mean": float(np.average(behind, weights=tokens)),
        "stale_max": float(behind.max()),
        "off_policy": float(np.average(behind > 0, weights=tokens)),
    }


# ---------------------------------------------------------------------------------------------
# What comes out


@dataclass(frozen=True, slots=True)
class Step:
    """One version of the weights, and how it came about."""

    version: int
    minutes: float
    seconds: dict[str, float]
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


def held_out(model: Path, run: Path, problems: int) -> Mean:
    """Mean reward of the demo's job on so many held-out problems, each played once at temperature 1."""
    job = [f"run.dir={run}", "run.samples_per_task=1", f"resource.options.count={problems}", f"model.path={model}"]
    subprocess.run([sys.executable, "-m", "rollout", "run", "demo", *job], check=True)
    rewards = DeltaTable(run / "episodes").to_pyarrow_table(columns=["reward"])["reward"].drop_null().to_numpy()
    return Mean(float(rewards.mean()), float(rewards.std() / len(rewards) ** 0.5))


def note(out: Path, step: Step) -> None:
    """Appends a step to steps.jsonl and tells it."""
    with (out / "steps.jsonl").open("a") as file:
        file.write(json.dumps(asdict(step)) + "\n")
    told = {**step.seconds, **step.figures}
    shown = ("waited", "learned", "tokens", "gradient_norm", "ratio_std", "clipped", "stale_mean", "off_policy")
    print(
        f"{step.minutes:5.1f} min  version {step.version}", *(f"{name} {told[name]:.3g}" for name in shown), flush=True
    )


def rewards_by_version(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Versions, and the mean reward of all episodes that began under each: also of groups that taught nothing, so that
    the curve is that of the model and not of what the trainer picked."""
    table = DeltaTable(run / "episodes").to_pyarrow_table(columns=["step", "reward"]).drop_null()
    versions, rewards = table["step"].to_numpy(), table["reward"].to_numpy()
    known = np.unique(versions)
    return known, np.array([rewards[versions == version].mean() for version in known])


def draw(out: Path, steps: list[Step], before: Mean, after: Mean, title: str) -> None:
    """learning.png: reward, staleness, share of off-policy tokens, spread of the importance ratios, time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    versions = [step.version for step in steps]
    figure, axes = pyplot.subplots(5, 1, figsize=(9, 13), sharex=True, layout="constrained")
    reward, stale, policy, ratio, seconds = axes
    figure.suptitle(title)
    reward.plot(*rewards_by_version(out / "run"), label="training problems, every episode", linewidth=1)
    for version, mean in ((0, before), (versions[-1], after)):
        label = "held-out problems, ± 2 standard errors" if version else None
        reward.errorbar(version, mean.value, 2 * mean.error, fmt="ok", capsize=4, label=label)
    reward.set_ylabel("mean reward")
    stale.plot(versions, [step.figures["stale_max"] for step in steps], label="oldest token")
    stale.plot(versions, [step.figures["stale_mean"] for step in steps], label="mean over tokens")
    stale.set_ylabel("versions behind")
    policy.plot(versions, [step.figures["off_policy"] for step in steps], label="tokens of older versions")
    policy.plot(versions, [step.figures["clipped"] for step in steps], label="ratios outside the clip")
    policy.set_ylabel("share of sampled tokens")
    low, middle, high = ([step.figures[f"ratio_p{at}"] for step in steps] for at in ("01", "50", "99"))
    ratio.fill_between(versions, low, high, alpha=0.3, label="1st to 99th percentile")
    ratio.plot(versions, middle, label="median")
    ratio.plot(versions, [1 + step.figures["ratio_std"] for step in steps], label="1 + standard deviation")
    ratio.set_ylabel("importance ratio")
    for name in ("waited", "learned", "published"):
        seconds.plot(versions, [step.seconds[name] for step in steps], label=name)
    seconds.set_ylabel("seconds a version")
    seconds.set_xlabel("version of the weights")
    for axis in axes:
        axis.legend(loc="best", fontsize="small")
    figure.savefig(out / "learning.png", dpi=120)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where everything goes; must be new")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=18.0, help="until the last version, start included")
    parser.add_argument("--groups", type=int, default=32, help="to a version; groups with equal rewards do not count")
    parser.add_argument("--updates", type=int, default=4, help="optimizer steps on each batch")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--warmup", type=int, default=20, help="updates until it is reached")
    parser.add_argument("--max-behind", type=int, default=1, help="versions that a group may be old")
    parser.add_argument("--problems", type=int, default=512, help="held-out problems to play before and after")
    parser.add_argument("--threads", type=int, default=1, help="of torch, while vLLM samples on the other core")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
