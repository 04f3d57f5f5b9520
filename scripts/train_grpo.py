"""GRPO in plain PyTorch, on rollouts that go on while it trains.

    python -m scripts.train_grpo runs/learn              # 20 minutes on two CPU cores
    python -m scripts.train_grpo runs/learn --seed 1

It plays held-out problems with the bundled model, trains on other ones through the online API (`actors.online`), plays
the held-out ones again, and leaves in the folder: `run/` (the dataset), `weights/` (the last versions), `before/` and
`after/` (what was played), `steps.jsonl`, `learning.png` and `stats.txt`. It needs torch, transformers, matplotlib.

The loop pulls groups, learns and publishes. The ratio of a token is its probability now over the one that vLLM recorded
when it sampled it: nothing else stands between the engine and the loss.
"""

# torch and transformers leave most of what is used here without types.
# pyright: basic

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from actors.online import open_service_sync
from rollout.template import BUNDLED
from scripts.learning import Step, draw, held_out, note, staleness  # noqa: TID251 - the part of this script that draws

CLIP = (0.2, 0.28)
"""How far below and above 1 a ratio still teaches."""
TRUNCATE = 2.0
"""The most that a ratio may weigh."""
RATES = (3e-5, 3e-3, 5e-2)
"""Of matrices, norms' gains, the last norm's gains: these say how sure the model is of any token, and may move fast."""
TOKENS = 4096
"""In one forward pass, padding included: small enough for the caches of a CPU."""


def main() -> int:
    """Plays, learns, plays again, draws: the whole loop."""
    options = _options()
    if find_spec("matplotlib") is None:  # told now, not after 20 minutes
        print("first: pip install matplotlib", file=sys.stderr)
        return 2
    began = time.monotonic()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    out: Path = options.folder
    before = held_out(BUNDLED, out / "before", options.problems)
    learner = Learner(options.rates, options.warmup, options.updates, options.seed)
    conf = [f"run.dir={out / 'run'}", f"run.seed={options.seed}"]
    steps: list[Step] = []
    with open_service_sync("learn", conf, max_behind=options.max_behind, by="start") as service:
        while not steps or time.monotonic() - began < 60 * options.minutes:
            asked = time.monotonic()
            batch = service.pull(options.groups)
            pulled = time.monotonic()
            left = 1 - (pulled - began) / (60 * options.minutes)
            figures = learner.learn(batch.samples(), service.version, left)
            learned = time.monotonic()
            version = service.publish(learner.save(out / "weights" / str(service.version + 1)))
            seconds = {"waited": pulled - asked, "learned": learned - pulled, "published": time.monotonic() - learned}
            steps.append(Step(version, (time.monotonic() - began) / 60, seconds, figures))
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


def step_advantages(table: Any) -> list[np.ndarray]:
    """How much better than its group each turn turned out, by token, where the environment rewards steps.

    The step rewards tell where an episode was lost: a turn behind the first negative one has no part in it and teaches
    nothing, all others are worth the episode's reward. A turn is compared with those of its group that were as far,
    for only they had the same to lose; with all of the group's where they are fewer than four.
    """
    masks, steps = table["loss_mask"].to_pylist(), table["step_rewards"].to_pylist()
    lengths = [len(one) for one in masks]
    mask, sample = np.concatenate(masks).astype(bool), np.repeat(np.arange(len(lengths)), lengths)
    rewards = np.concatenate([step or np.zeros(length) for step, length in zip(steps, lengths, strict=True)])
    starts = mask & ~np.append(False, mask[:-1] & (sample[1:] == sample[:-1]))
    turn, of = np.cumsum(starts)[mask] - 1, sample[starts]
    wrong = np.bincount(turn, rewards[mask]) < 0
    first = np.searchsorted(of, of)  # the first turn of each one's sample: how far a turn is, is its place less that
    lost = np.cumsum(wrong) - wrong
    counts = lost == lost[first]
    worth = np.where(counts, table["reward"].to_numpy()[of], 0.0)
    _, group = np.unique(table["group_id"].to_numpy()[of], return_inverse=True)
    _, peers = np.unique(np.stack([group, np.arange(len(of)) - first]), axis=1, return_inverse=True)
    whole, near = (np.bincount(key, worth) / np.maximum(np.bincount(key, counts), 1) for key in (group, peers))
    mean = np.where(np.bincount(peers, counts)[peers] < 4, whole[group], near[peers])
    advantages = np.zeros(len(mask), np.float32)
    advantages[mask] = np.where(counts, worth - mean, 0.0)[turn]
    return np.split(advantages, np.cumsum(lengths)[:-1])


def policy_loss(logprobs: torch.Tensor, sampled: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """What each token adds to the loss; its gradient is that of PPO's clipped surrogate (arXiv 1707.06347) with DAPO's
    higher upper bound (arXiv 2503.14476, section 3.1), weighed by truncated importance (arXiv 1802.01561, section 4.1).

    A token that has moved past its bound in the direction it was taught teaches no more. The ratio is against what the
    engine recorded, not a second pass of the trainer: it corrects at once for staleness, for the steps within a batch
    and for the engine's arithmetic. Where it is large it is cut: else one token that was unlikely when it was sampled
    outweighs the batch. There is no KL term.
    """
    ratios = torch.exp(logprobs.detach() - sampled)
    moved = torch.where(advantages > 0, ratios > 1 + CLIP[1], ratios < 1 - CLIP[0])
    return -ratios.clamp(max=TRUNCATE).masked_fill(moved, 0.0) * advantages * logprobs


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
    advantages: torch.Tensor
    weight: float

    def __len__(self) -> int:
        return len(self.ids)


class Learner:
    """Weights in float32, their optimizer, and one method that learns from a table of samples."""

    def __init__(self, rates: Sequence[float], warmup: int, updates: int, seed: int) -> None:
        self.model: Any = Qwen3ForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
        last = self.model.model.norm.weight
        gains = [parameter for parameter in self.model.parameters() if parameter.ndim == 1 and parameter is not last]
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        parts = zip((matrices, gains, [last]), rates, strict=True)
        groups = [{"params": parameters, "highest": rate} for parameters, rate in parts]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
        self._warmup, self._updates, self._done = warmup, updates, 0
        self._rng = np.random.default_rng(seed)

    def learn(self, table: Any, version: int, left: float = 1.0) -> dict[str, float]:
        """Takes `updates` steps, each on its part of the samples. What there is to see of them, as numbers.

        `left` is the share of the time that is left: the rate falls with it, and the noise of the steps with the rate.
        """
        for settings in self._optimizer.param_groups:
            settings["lr"] = settings["highest"] * max(0.05, left) * min(1.0, (self._done + 1) / self._warmup)
        self._done += 1
        samples = read(table)
        order = self._rng.permutation(len(samples))
        told: list[torch.Tensor] = []
        norms = [self._step([samples[i] for i in part], told) for part in np.array_split(order, self._updates)]
        ratios = torch.cat(told).double().numpy()
        low, middle, high = np.quantile(ratios, [0.01, 0.5, 0.99])
        return {
            "tokens": len(ratios),
            "gradient_norm": float(np.mean(norms)),
            "ratio_std": float(ratios.std()),
            "ratio_p01": float(low),
            "ratio_p50": float(middle),
            "ratio_p99": float(high),
            "clipped": float(np.mean((ratios < 1 - CLIP[0]) | (ratios > 1 + CLIP[1]))),
            **staleness(table, version),
        }

    def _step(self, samples: list[Sample], told: list[torch.Tensor]) -> float:
        """One update, in forward passes of about TOKENS. Every token of the step counts the same (DAPO's token-level
        loss, arXiv 2503.14476, section 3.3), times the weight of its sample among its siblings."""
        total = sum(sample.weight * int(sample.chosen.sum()) for sample in samples)
        for part in by_length(samples):
            ids, chosen, sampled, advantages = (
                padded([getattr(one, name) for one in part]) for name in ("ids", "chosen", "logprobs", "advantages")
            )
            weights = torch.tensor([one.weight for one in part]).repeat_interleave(chosen.sum(1))
            logprobs = token_logprobs(self.model, ids, chosen)
            ((weights * policy_loss(logprobs, sampled[chosen], advantages[chosen])).sum() / total).backward()
            told.append(torch.exp(logprobs.detach() - sampled[chosen]))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
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


# ---------------------------------------------------------------------------------------------
# From columns to tensors


def read(table: Any) -> list[Sample]:
    """The samples of a table (rollout.samples.SAMPLES) with advantages by token, as far as they teach anything."""
    columns = table.select(["token_ids", "loss_mask", "logprobs", "weight"]).to_pylist()
    if table["step_rewards"].null_count < table.num_rows:
        advantages = step_advantages(table)
    else:
        groups, rewards, weights = (table[name].to_numpy() for name in ("group_id", "reward", "weight"))
        whole = group_advantages(groups, rewards, weights).astype(np.float32)
        advantages = [np.full(len(one["token_ids"]), own) for one, own in zip(columns, whole, strict=True)]
    ends = [int(np.flatnonzero(own).max(initial=-1)) + 1 for own in advantages]
    return [
        Sample(
            torch.tensor(one["token_ids"][:end]),
            torch.tensor(one["loss_mask"][:end], dtype=torch.bool),
            torch.tensor(one["logprobs"][:end]),
            torch.from_numpy(own[:end]),
            one["weight"],
        )
        for one, own, end in zip(columns, advantages, ends, strict=True)
        if end
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where everything goes; must be new")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=18.0, help="until the last version, start included")
    parser.add_argument("--groups", type=int, default=32, help="to a version; groups with equal rewards do not count")
    parser.add_argument("--updates", type=int, default=4, help="optimizer steps on each batch")
    parser.add_argument("--rates", type=float, nargs=3, default=RATES, help="at their highest; see RATES")
    parser.add_argument("--warmup", type=int, default=3, help="batches until they are reached")
    parser.add_argument("--max-behind", type=int, default=1, help="versions that a group may be old")
    parser.add_argument("--problems", type=int, default=512, help="held-out problems to play before and after")
    parser.add_argument("--threads", type=int, default=1, help="of torch, while vLLM samples on the other core")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
