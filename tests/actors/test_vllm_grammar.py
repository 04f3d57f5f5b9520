"""Answers drawn under a grammar by vLLM itself on the CPU: what it samples, what rows say of it, what verify does."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import pytest
import pytest_asyncio
from jsonschema import validate
from ray_jobs import Jobs, assert_one_each, rows

from actors.engine import GenerateReply, GenerateRequest, pack_ids, unpack_ids
from actors.forward import ForwardPass
from actors.vllm_engine import VllmEngine, check_config
from rollout.config import CHECKOUT, VllmConfig, load
from rollout.mismatch import compare
from rollout.sequences import plan
from rollout.template import BUNDLED, load_template
from rollout.trajectory import Extras, FinishReason, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
TEMPLATE = load_template(BUNDLED)
NATIVE = load(CHECKOUT / "agents" / "structured_native.yaml", ["model.max_model_len=1024"])
FORM: Any = NATIVE.agent.output_schema
TASKS = 6


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    assert isinstance(NATIVE.model, VllmConfig)
    made = VllmEngine(NATIVE.model, check_config(NATIVE.model), seed=0)
    yield made
    await made.stop()


def asked() -> list[int]:
    return TEMPLATE.opening([{"role": "user", "content": "What is 12+7?"}], ())


def request(sampling: Sampling, extras: Extras) -> GenerateRequest:
    return GenerateRequest("request", "episode", 0, pack_ids(asked()), 128, sampling, extras)


def as_row(reply: GenerateReply, sampling: Sampling, constrained: bool) -> dict[str, Any]:
    """As `verify` reads an episode of one turn."""
    turn = {"segment": 0, "prompt_ids": asked(), "completion_ids": unpack_ids(reply.ids).tolist()}
    turn |= {"logprobs": array("f", reply.logprobs).tolist(), "versions": [asdict(span) for span in reply.versions]}
    return {"episode_id": "e", "turns": [turn | {"sampling": asdict(sampling), "constrained": constrained}]}


@pytest.mark.asyncio(loop_scope="module")
class TestGenerating:
    """One engine for all of them."""

    @pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
    async def test_a_schema_is_kept_however_hot_the_policy_is(self, engine: VllmEngine, temperature: float) -> None:
        reply = await engine.generate(request(Sampling(temperature, seed=1), Extras(grammar={"json": FORM})))
        ids = unpack_ids(reply.ids)
        assert reply.finish_reason is FinishReason.STOP
        assert ids[-1] in TEMPLATE.eos_ids
        validate(json.loads(TEMPLATE.decode(ids)), FORM)

    async def test_logprobs_are_of_what_the_grammar_left(self, engine: VllmEngine) -> None:
        """What is shared among fewer tokens is more for each: no token is less likely than without the grammar."""
        sampling = Sampling(1.0, seed=1)
        reply = await engine.generate(request(sampling, Extras(grammar={"json": FORM})))
        logprobs = array("f", reply.logprobs)
        assert len(logprobs) == len(unpack_ids(reply.ids))
        assert all(value <= 0 for value in logprobs)
        (scored,) = plan([as_row(reply, sampling, False)], ["default"]).by_version["default"]
        (own,) = ForwardPass(BUNDLED, "bfloat16", "cpu").logprobs([scored])
        assert (scored.recorded - own).min() > -0.5, "which is what bfloat16 may be off by for unlikely tokens"
        found = compare(scored.recorded, own)
        assert found.mean_abs is not None and found.mean_abs > 0.1, "so verify must not compare them"
        skipping = plan([as_row(reply, sampling, True)], ["default"])
        assert (skipping.by_version, skipping.skipped) == ({}, {"drawn under a grammar": len(logprobs)})

    async def test_without_a_grammar_the_same_prompt_is_answered_freely(self, engine: VllmEngine) -> None:
        reply = await engine.generate(request(Sampling(0.0), Extras()))
        assert not TEMPLATE.decode(unpack_ids(reply.ids)).lstrip().startswith("{")


@pytest.fixture(scope="module")
def cut() -> list[str]:
    return [f"resource.options.count={TASKS}", "scheduler.in_flight=4"]


@pytest.mark.ray
def test_native_answers_of_a_job_have_their_form(jobs: Jobs, cut: list[str]) -> None:
    run = jobs.finish("run", *cut, conf="agents/structured_native")
    assert_one_each(run.folder, TASKS)
    for row in rows(run.folder):
        assert (row["status"], row["stop_reason"]) == ("completed", "done")
        assert [turn["constrained"] for turn in row["turns"]] == [True]
        validate(json.loads(row["answer"]), FORM)
        (turn,) = row["turns"]
        assert json.loads(TEMPLATE.decode(turn["completion_ids"])) == json.loads(row["answer"])
    told = verified(jobs, run.folder)
    assert told["ok"], told
    assert told["recomputed"]["skipped"] == {"drawn under a grammar": sum_tokens(rows(run.folder), True)}


@pytest.mark.ray
def test_two_phases_think_freely_and_answer_in_the_form(jobs: Jobs, cut: list[str]) -> None:
    run = jobs.finish("run", *cut, conf="agents/structured_two_phase")
    assert_one_each(run.folder, TASKS)
    finished = [row for row in rows(run.folder) if row["stop_reason"] == "done"]
    assert finished
    for row in finished:
        marks = [turn["constrained"] for turn in row["turns"]]
        assert marks == [False] * (len(marks) - 1) + [True]
        assert {turn["segment"] for turn in row["turns"]} == {0}, "the second call goes on from the first"
        validate(json.loads(row["answer"]), FORM)
    free = [part["kind"] for row in finished for turn in row["turns"][:-1] for part in turn["segments"]]
    assert "reasoning" in free
    assert "tool_call" in free
    told = verified(jobs, run.folder)
    assert told["ok"], told
    assert told["recomputed"]["skipped"] == {"drawn under a grammar": sum_tokens(rows(run.folder), True)}
    compared = told["recomputed"]["versions"]["default"]["tokens"]
    assert compared == sum_tokens(rows(run.folder), False), "what was drawn freely is held against the weights"


def sum_tokens(found: list[dict[str, Any]], constrained: bool) -> int:
    turns = [turn for row in found for turn in row["turns"] if turn["constrained"] == constrained]
    return sum(len(turn["completion_ids"]) for turn in turns)


def verified(jobs: Jobs, folder: Any) -> dict[str, Any]:
    """What `rollout verify` tells of a run, all of its episodes compared."""
    command = [sys.executable, "-m", "rollout", "verify", str(folder), "--json", "--episodes=0"]
    done = subprocess.run(command, env=jobs.env, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)
