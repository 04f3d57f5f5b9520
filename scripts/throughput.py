"""Tokens a second of a job's episodes through everything, against vLLM alone on the same prompts and lengths.

    python scripts/throughput.py --model 135m --at-once 64
    python scripts/throughput.py --model bundled --at-once 128

Through everything: driver, runner, resource host, Ray Serve, vLLM, rows that are committed. Then vLLM's AsyncLLM in a
process of its own is asked for what the rows tell: the same prompts, with its own completions in them, each as long as
it was (`ignore_eos`), as many episodes at once, each turn behind the one before. Both engines are configured alike, on
as many threads; they work in turn, every round on other tasks. `135m` is SmolLM2-135M's architecture with random
weights and the bundled model's tokenizer: an episode is one turn then, as long as a turn may be. CPU is that of all
processes, by the part they play, for a thousand sampled tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow.compute as pc
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from actors.cluster import Cluster, started
from actors.connection import connect, disconnect
from actors.driver import Driver
from actors.keeper import Keeper
from actors.setting import Names
from actors.vllm_engine import check_config, engine_arguments, environment, sampling_parameters
from resources.catalog import load_resource
from rollout.config import JobConfig, VllmConfig, validate
from rollout.dataset import Committer
from rollout.live import Live
from rollout.progress import Done
from rollout.scheduling import Scheduler, samples
from rollout.tasks import read_tasks
from rollout.template import BUNDLED
from rollout.trajectory import Extras, Sampling

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
RAW_SECONDS = 300.0
"""What vLLM alone may take to start, or for a round."""
PARTS = (
    ("VLLM::", "engine core"),
    ("ray::ServeReplica", "replica"),
    ("ray::EpisodeRunner", "runner"),
    ("ray::ResourceHost", "host"),
    ("ray::Serve", "Serve"),
    ("ray::Proxy", "Serve"),
)
Episode = list[tuple[list[int], int]]
"""By turn, the tokens that were appended before it, and how many were sampled."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one side did in one round."""

    tokens: int
    seconds: float
    cpu: dict[str, float]
    """Seconds, by part."""

    @property
    def rate(self) -> float:
        """Sampled tokens a second."""
        return self.tokens / self.seconds


def make_135m(folder: Path) -> None:
    """A model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SMOLLM2, dtype=torch.bfloat16, bos_token_id=None, eos_token_id=369, pad_token_id=370)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUNDLED / name, folder)


def job(options: argparse.Namespace, folder: Path, model: str) -> JobConfig:
    """The job whose episodes are played."""
    tree = {
        "run": {"dir": str(folder / "run"), "limits": {"max_turns": 8, "turn_tokens": options.tokens}},
        "resource": {"name": "calculator", "options": {"count": options.episodes * (options.rounds + 1)}},
        "model": {
            "path": model,
            "max_in_flight": options.at_once,
            "cpus_per_replica": 1.0,
            "max_model_len": 2048,
            "kv_cache_gib": 2.0,
        },
        "scheduler": {"in_flight": options.at_once},
    }
    return validate(tree, "throughput")


class Through:
    """All that a job has, for one round after the other."""

    def __init__(self, config: JobConfig, cluster: Cluster, table: str, options: argparse.Namespace) -> None:
        self._config, self._table, self._options = config, table, options
        self._runner = cluster.new_runner("throughput")
        environment = config.environments[""]
        resource = load_resource(environment.name, environment.options)
        self._tasks = iter(list(read_tasks(config.tasks, resource, 0)))

    async def play(self, number: int) -> tuple[Round, list[Episode]]:
        """Plays other tasks, and tells what the rows have of them."""
        run_id, config = f"round-{number}", self._config
        tasks = [next(self._tasks) for _ in range(self._options.episodes)]
        driver = Driver(
            scheduler=Scheduler(samples(tasks, run_id, 1, 0, Done(), 1), config.scheduler.in_flight, 1),
            keeper=Keeper(Committer(self._table, run_id), config.dataset),
            new_runner=lambda name: self._runner,
            end_runner=lambda runner: None,
            live=Live(every=3600.0),
            names=Names.of(config),
            total=None,
            start_seconds=60.0,
            silent_seconds=config.scheduler.silent_seconds,
        )
        before, began = cpu(psutil.Process()), time.monotonic()
        await driver.run(1)
        seconds = time.monotonic() - began
        spent = less(cpu(psutil.Process()), before)
        return Round(driver.tally.completion_tokens, seconds, spent), self._rows(run_id)

    def _rows(self, run_id: str) -> list[Episode]:
        table: Any = DeltaTable(self._table)
        rows = table.to_pyarrow_dataset().to_table(columns=["turns", "status"], filter=pc.field("run_id") == run_id)
        assert "failed" not in rows["status"].to_pylist(), "episodes failed: see the log"
        told = rows["turns"].to_pylist()
        return [[(list(turn["prompt_ids"]), len(turn["completion_ids"])) for turn in turns] for turns in told]


class Alone:
    """vLLM by itself, in a process of its own."""

    def __init__(self, config: JobConfig, folder: Path) -> None:
        self._asked, told = folder / "asked.json", folder / "config.json"
        told.write_text(config.model.model_dump_json())
        command = [sys.executable, __file__, "--raw", str(told), "--at-once", str(config.scheduler.in_flight)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def play(self, episodes: list[Episode]) -> Round:
        """Asks for the same again."""
        self._asked.write_text(json.dumps(episodes))
        whole = psutil.Process(self.process.pid)
        before = cpu(whole)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self._asked}\n")
        self.process.stdin.flush()
        told = json.loads(self._line())
        spent = less(cpu(whole), before)
        return Round(told["tokens"], told["seconds"], {"engine core": spent["engine core"], "asking": spent["driver"]})

    def _line(self) -> str:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return line
        raise SystemExit("vLLM alone has ended: see above")

    def stop(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


async def raw(config: VllmConfig, at_once: int) -> None:
    """What runs in the other process: a line in, a file of episodes; a line out, what they took."""
    os.environ.update(environment(config))
    from vllm import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(config, check_config(config), 1)))

    async def sampled(ids: array[int], count: int, name: str) -> list[int]:
        parameters = sampling_parameters(Sampling(), count, Extras(vllm={"ignore_eos": True}))
        final: Any = None
        async for output in engine.generate(tokens_input(ids.tolist()), parameters, name):
            final = output
        return list(final.outputs[0].token_ids)

    async def turns(episode: Episode, name: str) -> int:
        ids, count = array("i"), 0
        for number, (appended, length) in enumerate(episode):
            ids.extend(appended)
            got = await sampled(ids, length, f"{name}-{number}")
            ids.extend(got)
            count += len(got)
        return count

    async def play(episodes: list[Episode], number: int) -> int:
        waiting, total = enumerate(episodes), 0

        async def slot() -> None:
            nonlocal total
            for place, episode in waiting:
                got = await turns(episode, f"{number}-{place}")
                total += got

        await asyncio.gather(*(slot() for _ in range(at_once)))
        return total

    await sampled(array("i", range(8)), 2, "warm-up")
    print("{}", flush=True)
    number = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        episodes = read(Path(line.strip()))
        number, began = number + 1, time.monotonic()
        tokens = await play(episodes, number)
        print(json.dumps({"tokens": tokens, "seconds": time.monotonic() - began}), flush=True)
    engine.shutdown()


def read(file: Path) -> list[Episode]:
    """What the other process has written."""
    return json.loads(file.read_text())


def cpu(root: psutil.Process) -> dict[str, float]:
    """CPU seconds by part, of a process and what descends from it; vLLM alone is not the job's."""
    spent = defaultdict[str, float](float)
    for process in [root, *root.children(recursive=True)]:
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process != root and any("--raw" in " ".join(one.cmdline()) for one in lineage(process, root)):
            continue
        part = "driver" if process == root else next((part for mark, part in PARTS if mark in line), "Ray")
        spent[part] += times.user + times.system
    return spent


def lineage(process: psutil.Process, root: psutil.Process) -> Iterator[psutil.Process]:
    """A process and those above it, up to the root and without it."""
    at: psutil.Process | None = process
    while at is not None and at != root:
        yield at
        at = at.parent()


def less(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """What was spent between."""
    return defaultdict(float, {part: seconds - before.get(part, 0.0) for part, seconds in after.items()})


def show(through: list[Round], alone: list[Round], options: argparse.Namespace) -> None:
    """Rounds, then CPU by part."""
    console = Console(width=110)
    table = Table("round", "tokens", "through everything", "vLLM alone", "ratio")
    ratios = [one.rate / other.rate for one, other in zip(through, alone, strict=True)]
    for number, (one, other, ratio) in enumerate(zip(through, alone, ratios, strict=True)):
        table.add_row(str(number), f"{one.tokens:,}", f"{one.rate:,.0f}/s", f"{other.rate:,.0f}/s", f"{ratio:.3f}")
    table.add_row("median", "", "", "", f"{median(ratios):.3f}")
    console.print(table)
    table = Table("CPU seconds, 1,000 tokens", "through everything", "vLLM alone")
    for part in ("engine core", "replica", "runner", "host", "driver", "Serve", "Ray", "asking"):
        row = [
            f"{1000 * sum(one.cpu.get(part, 0.0) for one in side) / sum(one.tokens for one in side):.3f}"
            for side in (through, alone)
        ]
        table.add_row(part, *row)
    whole = [sum(sum(one.cpu.values()) for one in side) / sum(one.tokens for one in side) for side in (through, alone)]
    table.add_row("all", *(f"{1000 * seconds:.3f}" for seconds in whole))
    console.print(table)
    console.print(f"where the CPU is what is short, {whole[1] / whole[0]:.3f} of vLLM alone is to be had")
    turns = "" if options.model == "bundled" else f", turns of {options.tokens} tokens"
    console.print(f"{options.model}, {options.episodes} episodes a round, {options.at_once} at once{turns}")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def everything(config: JobConfig, options: argparse.Namespace) -> AsyncIterator[Through]:
    """The job's parts, until the block is left."""
    table = str(Path(config.run.dir) / "episodes")
    async with started(config, "throughput", table, tell=print) as cluster:
        yield Through(config, cluster, table, options)


async def main(options: argparse.Namespace) -> None:
    """Plays in turn and prints."""
    with scratch() as folder:
        model = "bundled"
        if options.model == "135m":
            make_135m(folder / "model")
            model = str(folder / "model")
        config = job(options, folder, model)
        alone = Alone(config, folder)
        through: list[Round] = []
        again: list[Round] = []
        try:
            async with everything(config, options) as parts:
                for number in range(options.rounds + 1):
                    one, episodes = await parts.play(number)
                    other = await asyncio.wait_for(asyncio.to_thread(alone.play, episodes), RAW_SECONDS)
                    assert one.tokens == other.tokens, (one.tokens, other.tokens)
                    print(
                        f"round {number}: {one.rate:,.0f}/s and {other.rate:,.0f}/s, {one.rate / other.rate:.3f}",
                        flush=True,
                    )
                    if number:  # the first one warms up
                        through.append(one)
                        again.append(other)
        finally:
            alone.stop()
    show(through, again, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=("135m", "bundled"), default="bundled")
    parser.add_argument("--at-once", type=int, default=128, help="episodes")
    parser.add_argument("--episodes", type=int, default=None, help="a round; twice as many as at once")
    parser.add_argument("--tokens", type=int, default=None, help="of a turn at most; 48 of 135m, 256 of the bundled")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of an engine")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--raw", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.raw is not None:
        asyncio.run(raw(VllmConfig.model_validate_json(given.raw.read_text()), given.at_once))
        sys.exit()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # Ray would allot a replica as many as it has CPUs
    # Ray's workers have a niceness of 15 and would wait for all else on the machine; vLLM alone has 0.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray calls it
    given.episodes = given.episodes or 2 * given.at_once
    given.tokens = given.tokens or (48 if given.model == "135m" else 256)
    connect("local")
    try:
        asyncio.run(main(given))
    finally:
        disconnect()
