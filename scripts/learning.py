"""What an example of a trainer shows for itself: held-out problems before and after, its steps, and a plot of them."""

# matplotlib and deltalake leave most of what is used here without types; the first is for the examples alone.
# pyright: basic, reportMissingImports=false

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from deltalake import DeltaTable


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
    """Mean reward on so many held-out problems like those that are learned from, each played once at temperature 1."""
    job = [f"run.dir={run}", "run.samples_per_task=1", f"model.path={model}"]
    options = {"split": "heldout", "count": problems, "ends_astray": "false"}
    job += [f"resource.options.{name}={value}" for name, value in options.items()]
    subprocess.run([sys.executable, "-m", "rollout", "run", "learn", *job], check=True)
    rewards = DeltaTable(run / "episodes").to_pyarrow_table(columns=["reward"])["reward"].drop_null().to_numpy()
    return Mean(float(rewards.mean()), float(rewards.std() / len(rewards) ** 0.5))


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
    import matplotlib  # here, because only the plot needs it
    from matplotlib import pyplot

    matplotlib.use("agg")
    figure, axes = pyplot.subplots(5, 1, figsize=(9, 13), sharex=True, layout="constrained")
    figure.suptitle(title)
    versions = [step.version for step in steps]
    panels = {
        "mean reward": {},
        "versions behind": {"stale_max": "oldest token", "stale_mean": "mean over tokens"},
        "share of sampled tokens": {"off_policy": "of older versions", "clipped": "ratio outside the clip"},
        "importance ratio": {"ratio_p99": "99th percentile", "ratio_p50": "median", "ratio_p01": "1st percentile"},
        "seconds a version": {"waited": "waited", "learned": "learned", "published": "published"},
    }
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        axis.set_ylabel(name)
        for key, label in lines.items():
            axis.plot(versions, [{**step.figures, **step.seconds}[key] for step in steps], label=label)
    axes[0].plot(*rewards_by_version(out / "run"), label="training problems, every episode", linewidth=1)
    ends, means = [0, versions[-1]], [before, after]
    errors = [2 * mean.error for mean in means]
    axes[0].errorbar(ends, [mean.value for mean in means], errors, fmt="ok", capsize=4, label="held out, ± 2 errors")
    spread = axes[3].twinx()
    spread.plot(versions, [step.figures["ratio_std"] for step in steps], "k:", label="standard deviation")
    spread.legend(loc="lower right", fontsize="small")
    for axis in axes:
        axis.legend(loc="upper left", fontsize="small")
    axes[-1].set_xlabel("version of the weights")
    figure.savefig(out / "learning.png", dpi=120)
