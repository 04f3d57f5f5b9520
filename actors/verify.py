"""`rollout verify`: every rule on every row, and the logprobs of some against a plain forward pass of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from actors.forward import DTYPES, ForwardPass
from actors.publisher import read_edition
from rollout.errors import UserError
from rollout.findings import Known
from rollout.mismatch import Mismatch, compare
from rollout.run_folder import Run, read_run
from rollout.sequences import BASE, Plan, plan
from rollout.storage import Place
from rollout.template import resolve_model, vocabulary_size
from rollout.trajectory import Limits
from rollout.verification import Recomputed, Report, check_run, choose, render

_BASE = "default"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's options."""

    episodes: int | None
    """How many get their logprobs recomputed; None for all."""
    model: str | None
    """The weights a run began with; None for those its configuration names."""
    weights: Sequence[str]
    """VERSION=FOLDER for each later version that is to be compared."""
    dtype: str | None
    device: str | None
    mean_bound: float
    share_bound: float


def verify(run: Place, asked: Asked, as_json: bool = False, console: Console | None = None) -> bool:
    """Prints what was found. True when nothing is wrong.

    Raises UserError when there is no run at `run`, and for weights that cannot be loaded.
    """
    report = look(run, asked)
    console = console or Console(highlight=False)
    if as_json:
        console.out(msgspec.json.format(msgspec.json.encode(report.as_json())).decode(), highlight=False)
    else:
        console.print(render(report))
    return report.ok


def look(run: Place, asked: Asked) -> Report:
    """Reads the run once; holds the tokens of the chosen episodes, about 50 bytes each. Raises as `verify`."""
    told = read_run(run)
    model = told.config["model"]
    weights, note = _weights(model, asked, _published(run))
    chosen = choose(run, asked.episodes) if weights else frozenset[str]()
    plans: list[Plan] = []
    compared: set[str] = set()
    processed = model.get("engine_args", {}).get("logprobs_mode", "processed_logprobs") == "processed_logprobs"

    def take(batch: pa.RecordBatch, wrong: frozenset[str]) -> None:
        """Tokens of a row that is wrong may not even have logprobs that are theirs."""
        if kept := _picked(batch, chosen - wrong):
            plans.append(plan(kept, weights, processed))
            compared.update(row["episode_id"] for row in kept)

    samples: int = told.config["run"]["samples_per_task"]
    findings, checked, still_open = check_run(run, _known(told, weights.get(_BASE)), samples, take)
    dtype = asked.dtype or (model.get("dtype") if model.get("dtype") in DTYPES else "bfloat16")
    recomputed = _recompute(plans, weights, dtype, asked.device, len(compared)) if weights else None
    return Report(checked, findings, still_open, recomputed, note, asked.mean_bound, asked.share_bound)


def _published(run: Place) -> dict[str, str]:
    """What a trainer published last, if it still lies there; what was before it, trainers throw away."""
    edition, _ = read_edition(run)
    there = edition.folder is not None and Path(edition.folder).is_dir()
    return {str(edition.version): edition.folder} if edition.folder is not None and there else {}


def _weights(model: Mapping[str, Any], asked: Asked, published: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    """Folder or hub name by version, and why there is none."""
    weights = dict(published)
    for entry in asked.weights:
        version, equals, folder = entry.partition("=")
        if not equals or not version or not Path(folder).is_dir():
            raise UserError(f"--weights: {entry}: expected VERSION=FOLDER")
        weights[_BASE if version in BASE else version] = folder
    base = asked.model or (model["path"] if model["engine"] == "vllm" else None)
    if base is not None:
        weights.setdefault(_BASE, _found(base))
    return weights, None if weights else f"nobody knows the weights of engine '{model['engine']}'; --model names them"


def _found(path: str) -> str:
    """What transformers is to load: a folder, or a hub name as it is."""
    folder = resolve_model(path)
    if not folder.is_dir():
        raise UserError(f"model.path: {path}: no such folder; --model says where the weights are")
    return path if path != "bundled" and not Path(path).expanduser().is_dir() else str(folder)


def _known(told: Run, base: str | None) -> Known:
    """Limits are known unless a resumption was told to take others."""
    limits = None if told.forced else Limits(**told.config["run"]["limits"])
    vocabulary = vocabulary_size(Path(base)) if base is not None and Path(base).is_dir() else None
    return Known(told.run_id, vocabulary, limits)


def _picked(batch: pa.RecordBatch, chosen: frozenset[str]) -> list[dict[str, Any]]:
    """Ids and turns of those rows of a batch that were chosen."""
    wanted = cast(Any, pc).is_in(batch["episode_id"], value_set=pa.array(sorted(chosen), pa.string()))
    return cast(Any, batch).select(["episode_id", "turns"]).filter(wanted).to_pylist()


def _recompute(
    plans: Sequence[Plan], weights: Mapping[str, str], dtype: str, device: str | None, episodes: int
) -> Recomputed:
    """One version of the weights after the other: there may be room for one only."""
    found: dict[str, Mismatch] = {}
    used = "-"
    for version in sorted({version for part in plans for version in part.by_version}):
        sequences = [scored for part in plans for scored in part.by_version.get(version, ())]
        forward = ForwardPass(weights[version], dtype, device)
        used = forward.device
        recomputed = forward.logprobs(sequences)
        recorded = np.concatenate([scored.recorded for scored in sequences])
        found[version] = compare(recorded, np.concatenate(recomputed))
        del forward
    skipped: dict[str, int] = {}
    for cause, count in ((cause, count) for part in plans for cause, count in part.skipped.items() if count):
        skipped[cause] = skipped.get(cause, 0) + count
    return Recomputed(episodes, dtype, used, found, skipped)
