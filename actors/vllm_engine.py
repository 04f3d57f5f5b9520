"""vLLM's AsyncLLM as an engine, in the replica's own process.

Prompts go in and completions come out as token ids; vLLM never renders or parses text. Logprobs are `processed`: after
temperature and truncation, what a policy-gradient ratio needs. vllm is imported only where an engine is made, so the
driver can look at a configuration without it.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import random
import re
import subprocess
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from actors.engine import GenerateReply, GenerateRequest, Told, unpack_ids
from actors.places import due
from rollout.config import VllmConfig
from rollout.errors import ContextExceeded, ResourceDown, RolloutError, UserError, boundary, describe, nearest
from rollout.load import Load
from rollout.template import BUNDLED, context_length, resolve_model
from rollout.trajectory import Extras, FailureKind, FinishReason, Sampling, VersionSpan
from rollout.turn import NO_EXTRAS

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.outputs import CompletionOutput

CPU_KV_CACHE_GIB = 1.0
"""KV cache of an engine on a CPU when the configuration names none: vLLM itself would take most of the memory."""
CPU_BLOCK_SIZE = 32
"""Tokens in a block of the KV cache on a CPU. vLLM's own 128 lets most prompts of a conversation miss the cache."""
UPDATE_SECONDS = 600.0
"""What an engine may take to load other weights of its model."""
MAX_TEMPERATURE = 2.0
"""vLLM refuses requests above it, each by itself."""

_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
_CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""vLLM would pin every replica of a machine to the same cores; unpinned, it takes the threads Ray allots."""
_RAISED = re.compile(r"(?:^|[\s.])([A-Z]\w*(?:Error|Exception): .+)$")
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}


class VllmEngine:
    """One AsyncLLM. `model` is what `check_config` returned; `seed` None draws one, for replicas with equal seeds
    would sample equal completions of equal prompts."""

    def __init__(self, config: VllmConfig, model: str, seed: int | None = None) -> None:
        os.environ.update({key: value for key, value in environment(config).items() if key not in os.environ})
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            from actors.vllm_load import LoadKeeper
        except (ImportError, OSError, RuntimeError) as error:
            # PyPI's torchvision, torchaudio and torchcodec are built for the CUDA torch and fail beside another one.
            hint = "beside a CPU torch: pip uninstall torchvision torchaudio torchcodec"
            raise UserError(f"model: vllm cannot be imported: {describe(error)}; {hint}") from error

        drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
        try:
            arguments = AsyncEngineArgs(**engine_arguments(config, model, drawn))
            checked = arguments.create_engine_config()
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"model: vLLM refuses the configuration: {_reason(error)}") from error
        self._reach = checked.model_config.max_model_len
        self._priority_seconds = config.priority_seconds if checked.scheduler_config.policy == "priority" else None
        self._folder = self._own = checked.model_config.model
        self._guard = guard_children()
        output = _Output()
        self._load = LoadKeeper()
        try:
            self._engine = AsyncLLM.from_vllm_config(
                checked, stat_loggers=[self._load.logger], disable_log_stats=arguments.disable_log_stats
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = output.first_error() or describe(error)
            raise RolloutError(f"vLLM could not start its engine: {reason} (process {os.getpid()})") from error

    async def generate(self, request: GenerateRequest, told: Told | None = None) -> GenerateReply:
        """Samples one completion; cancelling it aborts the request in vLLM. One that nobody listens to comes whole.

        Raises ContextExceeded when the prompt leaves no room, ResourceDown when vLLM gives no answer.
        """
        from vllm.inputs import tokens_input

        prompt_ids = unpack_ids(request.prompt_ids)
        if len(prompt_ids) >= self._reach:
            raise ContextExceeded(f"the prompt has {len(prompt_ids)} tokens, the model reaches {self._reach}")
        prompt = tokens_input(prompt_ids.tolist(), cache_salt=request.salt)
        parameters = sampling_parameters(request.sampling, request.max_tokens, request.extras, told is not None)
        final: RequestOutput | None = None
        ids, logprobs = array("i"), array("f")
        priority = self._priority(request)
        async for output in self._engine.generate(prompt, parameters, request.request_id, priority=priority):
            final = output
            for sampled in output.outputs:
                fresh = array("i", sampled.token_ids)
                ids += fresh
                logprobs += _logprobs(sampled, len(fresh))
                if told is not None and fresh:
                    told(fresh)
        if final is None or not final.outputs:
            raise ResourceDown("vLLM ended the request without an answer")
        sampled = final.outputs[0]
        reason = _FINISH_REASONS.get(sampled.finish_reason or "")
        if reason is None:
            raise ResourceDown(f"vLLM ended the request with '{sampled.finish_reason}'")
        return GenerateReply(
            ids=ids.tobytes(),
            logprobs=logprobs.tobytes(),
            finish_reason=reason,
            versions=await self._versions(sampled, len(ids)),
            prompt_tokens=len(prompt_ids),
            cached_tokens=final.num_cached_tokens or 0,
            queue_seconds=_queue_seconds(final),
        )

    async def update(self, version: int, folder: str | None) -> None:
        """See Engine. What is being sampled is frozen, and computed again behind its tokens by the new weights.

        vLLM keeps its prefix cache while requests hold blocks of it, and would go on with keys and values of the old
        weights; so running requests let their blocks go (decisions/0025).
        """
        engine = self._engine
        if folder is None and self._folder == self._own:  # as it was started
            async with boundary(FailureKind.MODEL, self._own, UPDATE_SECONDS):
                await engine.update_weight_version(str(version))
            return
        folder = folder or self._own
        async with boundary(FailureKind.MODEL, folder, UPDATE_SECONDS):
            await engine.pause_generation(mode="keep", clear_cache=False)
            try:
                try:
                    await engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
                except Exception:  # some of them may be in place already
                    await engine.collective_rpc("reload_weights", kwargs={"weights_path": self._folder})
                    raise
                self._folder = folder
                await engine.update_weight_version(str(version))
                self._load.forgive()
                await engine.reset_prefix_cache(reset_running_requests=True)
            finally:
                await engine.resume_generation()

    async def check_health(self) -> None:
        """Raises when the engine's process is gone."""
        await self._engine.check_health()

    def load(self) -> Load:
        """What vLLM told at its last step. It tells nothing of an abort that leaves it without work."""
        return self._load.now(idle=not self._engine.output_processor.has_unfinished_requests())

    async def stop(self) -> None:
        """Ends the engine's processes."""
        self._engine.shutdown()
        del self._engine  # it shuts down once more when it is collected, which fails when the interpreter is ending
        if self._guard is not None:
            self._guard.kill()

    def _priority(self, request: GenerateRequest) -> int:
        """In vLLM's own queue, when the call is due, in tenths of a second; 0 where it takes calls as they come."""
        if self._priority_seconds is None:
            return 0
        return round(10 * due(time.monotonic(), request.priority, self._priority_seconds))

    async def _versions(self, sampled: CompletionOutput, count: int) -> tuple[VersionSpan, ...]:
        if sampled.weight_versions:
            return tuple(VersionSpan(span.version, span.start, span.end) for span in sampled.weight_versions)
        return (VersionSpan(await self._engine.get_weight_version(), 0, count),)


def guard_children() -> subprocess.Popen[bytes] | None:
    """A shell that ends this process's group as soon as the process is gone. None outside a Ray worker.

    Ray does so too, unless it is killed together with the worker; vLLM's engine would then live on and keep its GPU.
    """
    leads_its_group = os.getpgrp() == os.getpid()
    if not leads_its_group or str(os.getppid()) != os.environ.get("RAY_RAYLET_PID"):
        return None
    command = ["/bin/sh", "-c", f"read _; kill -s KILL -- -{os.getpid()}"]  # the pipe ends when we do, however
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def check_config(config: VllmConfig) -> str:
    """What the replicas' vLLM is to load: an absolute folder, a hub name, or `bundled`. Does not import vllm.

    Raises UserError for a folder that holds no model, a context beyond the model's, an unknown engine argument.
    """
    folder = resolve_model(config.path)
    if not folder.is_dir():
        raise UserError(f"model.path: {config.path}: no such folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path: {config.path}: no config.json in it")
    reach = context_length(folder)
    stretched = "hf_overrides" in config.engine_args
    if config.max_model_len is not None and reach is not None and config.max_model_len > reach and not stretched:
        raise UserError(f"model.max_model_len: {config.max_model_len} is more than the {reach} positions of the model")
    if config.sampling.temperature > MAX_TEMPERATURE:
        raise UserError(f"model.sampling.temperature: vLLM takes 0 to {MAX_TEMPERATURE:g}")
    if config.engine_args and (known := known_engine_arguments()):
        for name in config.engine_args:
            if name not in known:
                raise UserError(f"model.engine_args.{name}: vLLM has no such argument{nearest(name, known)}")
    if config.path == "bundled":
        return config.path
    local = Path(config.path)
    return str(local.resolve()) if local.is_dir() else config.path


def known_engine_arguments() -> set[str]:
    """Names that vLLM's AsyncEngineArgs takes, read from its source: importing it takes seconds and much memory.

    Empty on a machine without vLLM; there the replica finds out.
    """
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        return set()
    source = Path(package.origin).parent / "engine" / "arg_utils.py"
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    return {
        item.target.id
        for node in classes
        if node.name in ("EngineArgs", "AsyncEngineArgs")
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def engine_arguments(config: VllmConfig, model: str, seed: int) -> dict[str, Any]:
    """Keyword arguments of AsyncEngineArgs; those the configuration gives win.

    vLLM keeps its tokenizer although it gets and gives ids: the end of turn of some models is known only there, and
    stop strings are found in text.
    """
    on_cpu = config.gpus_per_replica == 0
    arguments: dict[str, Any] = {
        "model": str(BUNDLED) if model == "bundled" else model,
        "dtype": config.dtype,
        "seed": seed,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "max_num_seqs": config.max_in_flight,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
    }
    if config.priority_seconds:
        arguments["scheduling_policy"] = "priority"
    if config.max_model_len is not None:
        arguments["max_model_len"] = config.max_model_len
    if config.tensor_parallel * config.pipeline_parallel > 1:
        arguments["distributed_executor_backend"] = "mp" if on_cpu else "ray"
    if on_cpu:
        arguments["enforce_eager"] = True
        arguments["block_size"] = CPU_BLOCK_SIZE
        arguments["kv_cache_memory_bytes"] = int((config.kv_cache_gib or CPU_KV_CACHE_GIB) * 2**30)
    return {**arguments, **config.engine_args}


def environment(config: VllmConfig) -> Mapping[str, str]:
    """What vLLM reads from the environment when it is imported. Variables that are set already are left alone."""
    return {**_ENVIRONMENT, **_CPU_ENVIRONMENT} if config.gpus_per_replica == 0 else _ENVIRONMENT


def sampling_parameters(
    sampling: Sampling, max_tokens: int, extras: Extras = NO_EXTRAS, piecewise: bool = False
) -> SamplingParams:
    """How vLLM is told to sample, and to give what it sampled: whole or piece by piece.

    It makes text of the tokens only to look for stop strings, which may be special tokens; the ids keep them. Raises
    ResourceDown for extras that vLLM does not know.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    try:
        grammar = None if extras.grammar is None else StructuredOutputsParams(**extras.grammar)
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop=list(sampling.stop) or None,
            detokenize=bool(sampling.stop),
            skip_special_tokens=not sampling.stop,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.DELTA if piecewise else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
            structured_outputs=grammar,
            **extras.vllm,
        )
    except (TypeError, ValueError) as error:
        raise ResourceDown(f"vLLM does not take this call's settings: {error}") from error


def _logprobs(sampled: CompletionOutput, count: int) -> array[float]:
    """One logprob a sampled token. Raises AssertionError when vLLM gives another number of them."""
    given = getattr(sampled.logprobs, "logprobs", ())
    assert len(given) == count, f"vLLM gave {len(given)} logprobs for {count} sampled tokens"
    return array("f", given)


def _queue_seconds(final: RequestOutput) -> float:
    """How long the request waited in vLLM before it was first scheduled; 0 when vLLM keeps no statistics."""
    times = final.metrics
    if times is None or not times.scheduled_ts or not times.queued_ts:
        return 0.0
    return max(0.0, times.scheduled_ts - times.queued_ts)


def _reason(error: Exception) -> str:
    """The line of an error that says what is wrong; pydantic puts it below a heading."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'][:1])}: {first['msg']}"
    return describe(error)


class _Output:
    """What this process and its children print from now on, where that goes to files, as it does in a Ray worker.

    vLLM's engine dies in a child, and what killed it is told only there.
    """

    def __init__(self) -> None:
        self._places: list[tuple[Path, int]] = []
        for number in (1, 2):
            path = Path(f"/proc/self/fd/{number}")
            if path.is_file():
                self._places.append((path.resolve(), path.stat().st_size))

    def first_error(self) -> str | None:
        """The first exception told."""
        for path, start in self._places:
            with path.open(errors="replace") as file:
                file.seek(start)
                for line in file:
                    if (found := _RAISED.search(line)) is not None:
                        return found[1][:300]
        return None
