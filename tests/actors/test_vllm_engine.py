"""vLLM itself on the CPU, with the bundled model; and what is looked at before it is started."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from prometheus_client import generate_latest

from actors.engine import GenerateReply, GenerateRequest, pack_ids, unpack_ids
from actors.forward import ForwardPass
from actors.vllm_engine import (
    VllmEngine,
    check_config,
    engine_arguments,
    environment,
    guard_children,
    known_engine_arguments,
)
from rollout.config import CHECKOUT, VllmConfig, load
from rollout.errors import ContextExceeded, UserError
from rollout.load import Load
from rollout.mismatch import compare
from rollout.openai_load import read_load
from rollout.sequences import plan
from rollout.template import BUNDLED, load_template
from rollout.trajectory import FinishReason, Sampling

REACH = 1024
GREEDY = Sampling(temperature=0.0)
SHIPPED = {path.stem: load(path) for path in sorted(CHECKOUT.glob("*.yaml"))}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "eos_token_id": 151645,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    config = VllmConfig(max_model_len=REACH, max_in_flight=8, kv_cache_gib=0.25)
    made = VllmEngine(config, check_config(config), seed=0)
    yield made
    await made.stop()


def asked(question: str = "What is 12+7?") -> list[int]:
    return load_template(BUNDLED).opening([{"role": "user", "content": question}], ())


def request(ids: list[int], sampling: Sampling = GREEDY, max_tokens: int = 64) -> GenerateRequest:
    return GenerateRequest("request", "episode", 0, pack_ids(ids), max_tokens, sampling)


def logprobs(reply: GenerateReply) -> list[float]:
    return array("f", reply.logprobs).tolist()


@pytest.mark.vllm
@pytest.mark.timeout(400)
@pytest.mark.asyncio(loop_scope="module")
class TestGenerating:
    """One engine for all of them: it takes half a minute to start."""

    async def test_ids_come_out_with_a_logprob_each(self, engine: VllmEngine) -> None:
        reply = await engine.generate(request(asked(), Sampling()))
        ids = unpack_ids(reply.ids)
        assert reply.finish_reason is FinishReason.STOP
        assert ids[-1] in load_template(BUNDLED).eos_ids
        assert len(logprobs(reply)) == len(ids)
        assert all(value <= 0 for value in logprobs(reply))
        assert reply.prompt_tokens == len(asked())
        assert reply.queue_seconds >= 0

    async def test_logprobs_are_those_of_what_was_sampled_from(self, engine: VllmEngine) -> None:
        reply = await engine.generate(request(asked(), Sampling(top_k=1)))
        assert logprobs(reply) == pytest.approx([0.0] * len(unpack_ids(reply.ids)), abs=1e-5)

    async def test_logprobs_are_those_of_a_plain_forward_pass(self, engine: VllmEngine) -> None:
        ways = (Sampling(), Sampling(0.5), Sampling(1.5, top_k=20), Sampling(1.5, top_p=0.9), GREEDY)
        rows: list[dict[str, Any]] = []
        for sampling in ways:
            reply = await engine.generate(request(asked(), sampling))
            turn = {"segment": 0, "prompt_ids": asked(), "completion_ids": unpack_ids(reply.ids).tolist()}
            turn |= {"logprobs": logprobs(reply), "versions": [asdict(span) for span in reply.versions]}
            rows.append({"episode_id": str(sampling), "turns": [turn | {"sampling": asdict(sampling)}]})
        chosen = plan(rows, ["default"]).by_version["default"]
        assert len(chosen) == len(ways)
        for scored, told in zip(chosen, ForwardPass(BUNDLED, "bfloat16", "cpu").logprobs(chosen), strict=True):
            found = compare(scored.recorded, told)
            assert found.mean_abs is not None and found.mean_abs < 0.02, scored.episode_id
            assert found.outside <= 1, scored.episode_id

    async def test_a_cut_completion_says_so(self, engine: VllmEngine) -> None:
        reply = await engine.generate(request(asked(), max_tokens=3))
        assert reply.finish_reason is FinishReason.LENGTH
        assert len(unpack_ids(reply.ids)) == 3

    async def test_a_seed_repeats_a_sample(self, engine: VllmEngine) -> None:
        drawn = [await engine.generate(request(asked(), Sampling(temperature=2.0, seed=seed))) for seed in (5, 5, 6)]
        assert drawn[0].ids == drawn[1].ids
        assert drawn[0].ids != drawn[2].ids

    @pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, seed=3), Sampling(0.0, stop=("+",))])
    @pytest.mark.parametrize("most", [64, 5])
    async def test_a_completion_that_is_told_as_it_comes_is_the_one_that_comes_whole(
        self, engine: VllmEngine, sampling: Sampling, most: int
    ) -> None:
        told: list[list[int]] = []
        whole = await engine.generate(request(asked(), sampling, most))
        streamed = await engine.generate(request(asked(), sampling, most), lambda ids: told.append(list(ids)))
        assert [number for piece in told for number in piece] == list(unpack_ids(whole.ids))
        assert streamed.ids == whole.ids
        assert logprobs(streamed) == pytest.approx(logprobs(whole), abs=1e-3)
        kept = ("finish_reason", "versions", "prompt_tokens")
        assert [getattr(streamed, name) for name in kept] == [getattr(whole, name) for name in kept]
        assert len(told) > 1 or len(told[0]) == 1

    async def test_the_next_turn_finds_its_prefix_cached(self, engine: VllmEngine) -> None:
        first = asked("Compute 31 * 17 - 4 and tell me every step that you take on the way there.")
        reply = await engine.generate(request(first))
        longer = [*first, *unpack_ids(reply.ids), *asked("And 2+2?")]
        again = await engine.generate(request(longer))
        assert 0 < again.cached_tokens < len(longer)

    async def test_every_token_has_a_weight_version(self, engine: VllmEngine) -> None:
        reply = await engine.generate(request(asked()))
        ends = [0, *[span.end for span in reply.versions]]
        assert [span.start for span in reply.versions] == ends[:-1]
        assert ends[-1] == len(unpack_ids(reply.ids))
        assert all(span.version for span in reply.versions)

    async def test_stop_strings_end_a_completion_and_stay_in_its_ids(self, engine: VllmEngine) -> None:
        whole = load_template(BUNDLED).decode(unpack_ids((await engine.generate(request(asked()))).ids))
        stop = "</think>"
        assert stop in whole
        reply = await engine.generate(request(asked(), Sampling(temperature=0.0, stop=(stop,))))
        assert reply.finish_reason is FinishReason.STOP
        assert load_template(BUNDLED).decode(unpack_ids(reply.ids)) == whole[: whole.index(stop) + len(stop)]

    async def test_cancelling_aborts_the_request_in_vllm(self, engine: VllmEngine) -> None:
        unfinished = engine._engine.output_processor.get_num_unfinished_requests
        long = [
            asyncio.create_task(engine.generate(request(asked(), Sampling(temperature=2.0), 900))) for _ in range(4)
        ]
        async with asyncio.timeout(30):
            while unfinished() < len(long):  # noqa: ASYNC110 - nothing tells when vLLM has taken a request
                await asyncio.sleep(0)
            while engine.load().running < len(long):  # noqa: ASYNC110 - nor when it has told of its load
                await asyncio.sleep(0.01)
        busy = engine.load()
        assert (busy.running, busy.waiting, busy.preemptions) == (len(long), 0, 0)
        assert 0 < busy.kv_usage < 1
        published = read_load(generate_latest().decode())
        assert published is not None
        assert (published.running, published.waiting, published.kv_usage > 0) == (len(long), 0, True)
        for task in long:
            task.cancel()
        ended = await asyncio.gather(*long, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in ended)
        assert unfinished() == 0
        assert engine.load() == Load(running=0, waiting=0, kv_usage=0.0, preemptions=0)
        assert (await engine.generate(request(asked()))).finish_reason is FinishReason.STOP

    async def test_a_prompt_beyond_the_model_is_refused(self, engine: VllmEngine) -> None:
        with pytest.raises(ContextExceeded, match=f"{REACH} tokens, the model reaches {REACH}"):
            await engine.generate(request([5] * REACH))

    async def test_it_is_well(self, engine: VllmEngine) -> None:
        await engine.check_health()


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"path": "/nowhere"}, "model.path: /nowhere: no such folder"),
        ({"max_model_len": 100_000}, "model.max_model_len: 100000 is more than the 8192 positions of the model"),
        ({"sampling": {"temperature": 2.5}}, "model.sampling.temperature: vLLM takes 0 to 2"),
        (
            {"engine_args": {"max_num_seq": 3}},
            "model.engine_args.max_num_seq: vLLM has no such argument; did you mean 'max_num_seqs'?",
        ),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(VllmConfig.model_validate(section))
    assert str(caught.value) == told


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config.json in it"):
        check_config(VllmConfig(path=str(tmp_path)))


def test_replicas_get_an_absolute_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "own").mkdir(parents=True)
    (tmp_path / "models" / "own" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert check_config(VllmConfig(path="models/own")) == str(tmp_path / "models" / "own")
    assert check_config(VllmConfig()) == "bundled"


def test_the_driver_looks_at_a_configuration_without_vllm() -> None:
    code = (
        "import sys; from rollout.config import VllmConfig; from actors.vllm_engine import check_config;"
        "check_config(VllmConfig(engine_args={'max_num_seqs': 3})); assert not {'vllm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_children_of_a_killed_worker_do_not_outlive_it() -> None:
    code = (
        "import os, signal, subprocess; from actors.vllm_engine import guard_children; guard = guard_children();"
        "child = subprocess.Popen(['sleep', '600']); print(child.pid, guard is not None, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_RAYLET_PID": str(os.getpid())},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    child, guarded = told.stdout.split()
    assert guarded == "True"
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(child)) and psutil.Process(int(child)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_no_group_but_a_ray_workers_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_RAYLET_PID", raising=False)
    assert guard_children() is None


def test_arguments_of_the_configuration_win() -> None:
    config = VllmConfig(max_in_flight=7, engine_args={"block_size": 16, "enforce_eager": False})
    arguments = engine_arguments(config, "somewhere", seed=3)
    assert arguments["max_num_seqs"] == 7
    assert (arguments["block_size"], arguments["enforce_eager"], arguments["seed"]) == (16, False, 3)


def test_vllm_orders_its_own_queue_only_where_priorities_count() -> None:
    assert engine_arguments(VllmConfig(), "m", 0)["scheduling_policy"] == "priority"
    assert "scheduling_policy" not in engine_arguments(VllmConfig(priority_seconds=0.0), "m", 0)
    told = VllmConfig(engine_args={"scheduling_policy": "fcfs"})
    assert engine_arguments(told, "m", 0)["scheduling_policy"] == "fcfs"


def test_workers_are_spread_by_ray_only_where_they_have_gpus() -> None:
    def backend(**section: Any) -> Any:
        return engine_arguments(VllmConfig(**section), "m", 0).get("distributed_executor_backend")

    assert backend() is None
    assert backend(gpus_per_replica=1) is None
    assert backend(tensor_parallel=2) == "mp"
    assert backend(gpus_per_replica=1, tensor_parallel=2) == "ray"
    assert backend(gpus_per_replica=1, pipeline_parallel=2) == "ray"


def test_settings_of_the_cpu_stay_on_the_cpu() -> None:
    gpu = engine_arguments(VllmConfig(gpus_per_replica=1), "m", 0)
    assert not {"kv_cache_memory_bytes", "block_size", "enforce_eager"} & set(gpu)
    assert not any("CPU" in name for name in environment(VllmConfig(gpus_per_replica=1)))


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_vllm_takes_what_we_say_it_takes() -> None:
    from vllm import AsyncEngineArgs

    assert known_engine_arguments() == {field.name for field in fields(AsyncEngineArgs)}


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name, job in SHIPPED.items() if isinstance(job.model, VllmConfig)])
def test_vllm_accepts_every_shipped_configuration(name: str, tmp_path: Path) -> None:
    """As far as a machine without GPUs and hub can say: a stand-in for a model of the hub, no tokenizer."""
    from vllm import AsyncEngineArgs

    model = SHIPPED[name].model
    assert isinstance(model, VllmConfig)
    assert set(model.engine_args) <= known_engine_arguments()
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    folder = str(BUNDLED) if model.path == "bundled" else str(tmp_path)
    arguments = {**engine_arguments(model, folder, 0), "skip_tokenizer_init": True}
    made = AsyncEngineArgs(**arguments).create_engine_config()
    assert made.parallel_config.tensor_parallel_size == model.tensor_parallel
    assert made.scheduler_config.max_num_seqs == model.max_in_flight
    assert made.model_config.logprobs_mode == "processed_logprobs"
    if model.max_model_len is not None:
        assert made.model_config.max_model_len == model.max_model_len
