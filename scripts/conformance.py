"""Reads exports of a run with the trainers' own code, where it can be imported, and compares with the samples.

    python scripts/conformance.py RUN

Installs nothing: what is not there is said to be not there. A package may be put on PYTHONPATH without its
dependencies (pip install --no-deps --target). Exit status 1 when a trainer reads something else than was exported.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
import tempfile
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import typing_extensions

from rollout.advantages import with_advantages
from rollout.export.exporting import Asked, export
from rollout.export.formats import CHATS, NAMES
from rollout.export.sample import Sample, samples_of
from rollout.sample_reading import read_samples

Rows = list[dict[str, Any]]
Check = Callable[[Rows, Sequence[Sample]], str]
"""Reads rows with the trainer's code, asserts that it holds the samples, and says what read them."""


def module(name: str) -> Any:
    return importlib.import_module(name)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def trl(rows: Rows, samples: Sequence[Sample]) -> str:
    assert module("trl").GRPOTrainer is not None
    output = {key: [row[key] for row in rows] for key in rows[0]}
    source = Path(module("trl.trainer.grpo_trainer").__file__).read_text()
    assert 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}' in source and '"env_mask"' in source
    for row, sample in zip(rows, samples, strict=True):
        same(row["prompt_ids"] + row["completion_ids"], sample.token_ids)
        same(row["env_mask"], sample.response_mask)
        same(np.float32(row["logprobs"]), sample.response_logprobs)
    return f"keys that GRPOTrainer's source requires, {len(output)} columns of one length"


def trl_async(rows: Rows, samples: Sequence[Sample]) -> str:
    worker = module("trl.experimental.async_grpo.async_rollout_worker")
    trainer = module("trl.experimental.async_grpo.async_grpo_trainer")
    packing = module("trl.experimental.async_grpo.packing")
    row_of = packing.TreeRow()
    for row, sample in zip(rows[:16], samples, strict=False):
        row.pop("rollout")
        arrays = {key: np.asarray(row[key]) for key in ("input_ids", "completion_mask", "old_log_probs")}
        made = worker.RolloutSample(**row | arrays)
        row_of.add({field.name: getattr(made, field.name) for field in dataclasses.fields(made)})
        same(made.completion_mask, sample.loss_mask)
    batch = trainer.DataCollatorForRollout(pad_token_id=0).torch_call([[row_of]])
    ones = sum(sample.sampled for sample in samples[: len(row_of.samples)])
    assert int(batch["global_n_tokens"][0]) == ones, (batch["global_n_tokens"], ones)
    return "RolloutSample, TreeRow, DataCollatorForRollout: its trained tokens are the mask's ones"


def verl(rows: Rows, samples: Sequence[Sample]) -> str:
    loop = module("verl.experimental.agent_loop.agent_loop")
    for row, sample in zip(rows, samples, strict=True):
        made = loop.AgentLoopOutput(**row).as_dict()
        same(np.concatenate([made["prompts"], made["responses"]]), sample.token_ids)
        same(made["response_mask"], sample.response_mask)
        same(made["rollout_log_probs"], sample.response_logprobs)
        assert float(made["rm_scores"].sum()) == np.float32(sample.reward) if "rm_scores" in made else True
    return "AgentLoopOutput(**row).as_dict()"


def skyrl(rows: Rows, samples: Sequence[Sample]) -> str:
    if sys.version_info < (3, 12):  # pydantic wants it for SkyRL's types
        typing.TypedDict = typing_extensions.TypedDict
    checks, preprocess = module("skyrl.train.utils.trainer_utils"), module("skyrl.train.dataset.preprocess")
    trajectory = module("skyrl.train.generators.base").TrajectoryID
    output = {key: [row[key] for row in rows] for key in rows[0] if key != "rollout"}
    output["trajectory_ids"] = [trajectory(**told) for told in output["trajectory_ids"]]
    checks.validate_generator_output(len(rows), output, step_wise=True)
    names = ("prompt_token_ids", "response_ids", "rewards", "loss_masks", "rollout_logprobs")
    sequences, attention, _, rewards, masks, logprobs, *_ = preprocess.convert_prompts_responses_to_batch_tensors(
        0, *(output[name] for name in names)
    )
    for at, sample in enumerate(samples):
        same(sequences[at][attention[at].bool()], sample.token_ids)
        same(masks[at][-len(sample.response_ids) :], sample.response_mask)
        same(logprobs[at][-len(sample.response_ids) :], sample.response_logprobs)
        assert float(rewards[at].sum()) == np.float32(sample.reward if sample.is_last else 0.0)
    return "validate_generator_output(step_wise=True), convert_prompts_responses_to_batch_tensors"


def prime_rl(rows: Rows, samples: Sequence[Sample]) -> str:
    import msgspec

    types = beside("prime_rl", "transports/rollouts/types.py")
    for row, sample in zip(rows, samples, strict=True):
        row.pop("rollout")
        wire = msgspec.msgpack.encode(types.TrainingSample(**row))
        made = msgspec.msgpack.decode(wire, type=types.TrainingSample)
        same(made.token_ids, sample.token_ids)
        same(made.mask, sample.loss_mask)
        same(np.float32(made.logprobs), sample.logprobs)
        same(np.float32(made.advantages), sample.token_advantages())
        assert len(made.temperatures) == len(made.token_ids)
    return "TrainingSample(**row), over msgpack and back with its types"


def slime(rows: Rows, samples: Sequence[Sample]) -> str:
    types = module("slime.utils.types")
    for row, sample in zip(rows, samples, strict=True):
        made = types.Sample.from_dict(row)
        made._validate_response_metadata_lengths()
        same(made.tokens, sample.token_ids)
        same(made.loss_mask, sample.response_mask)
        assert made.effective_response_length == sample.sampled and made.rollout_id == sample.episode_number
    return "Sample.from_dict and its own check of lengths"


def nemo_rl(rows: Rows, samples: Sequence[Sample]) -> str:
    import torch

    logs = module("nemo_rl.data.llm_message_utils")
    for row, sample in zip(rows, samples, strict=True):
        log = [
            {key: torch.tensor(told) if isinstance(told, list) else told for key, told in message.items()}
            for message in ({k: v for k, v in said.items() if v is not None} for said in row["message_log"])
        ]
        logs.add_loss_mask_to_message_log([log])
        flat = logs.message_log_to_flat_messages(log)
        same(flat["token_ids"], sample.token_ids)
        same(flat["token_loss_mask"], sample.loss_mask)
        same(flat["generation_logprobs"], sample.logprobs[sample.loss_mask == 1])
    return "add_loss_mask_to_message_log, message_log_to_flat_messages"


def openrlhf(rows: Rows, samples: Sequence[Sample]) -> str:
    generator = module("openrlhf.trainer.ppo_utils.samples_generator").SamplesGenerator
    for row, sample in zip(rows, samples, strict=True):
        made = generator._process_response_into_experience(None, row | {"extra_logs": {}}, max_len=1 << 20)
        same(made.sequences[0], sample.token_ids)
        same(made.action_mask[0], sample.loss_mask[1:])
        same(made.rollout_log_probs[0], sample.logprobs[1:])
        assert float(made.rewards) == np.float32(sample.reward) and bool(made.truncated) == sample.truncated
    return "SamplesGenerator._process_response_into_experience"


def tinker(rows: Rows, samples: Sequence[Sample]) -> str:
    types = module("tinker")
    for row, sample in zip(rows, samples, strict=True):
        names = ("target_tokens", "logprobs", "advantages", "mask")
        arrays = {name: np.asarray(row[name], np.int64 if name == "target_tokens" else np.float32) for name in names}
        made = types.Datum(model_input=types.ModelInput.from_ints(row["model_input"]), loss_fn_inputs=arrays)
        same(made.model_input.to_ints(), sample.token_ids[:-1])
        same(made.loss_fn_inputs["target_tokens"].to_numpy(), sample.token_ids[1:])
        same(made.loss_fn_inputs["mask"].to_numpy(), sample.loss_mask[1:])
        assert {made.model_input.length} == {value.shape[0] for value in made.loss_fn_inputs.values()}
    return "Datum, ModelInput.from_ints, TensorData"


def sft(rows: Rows, samples: Sequence[Sample]) -> str:
    is_chat = module("trl.data_utils").is_conversational
    assert all(is_chat(row) for row in rows) and len(rows) >= len({sample.episode_id for sample in samples})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "chats.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        read = module("datasets").load_dataset("json", data_files=str(file), cache_dir=folder)["train"]
        assert len(read) == len(rows) and read[0]["messages"][0]["role"] == rows[0]["messages"][0]["role"]
    return "trl.data_utils.is_conversational, datasets.load_dataset"


def nemo_gym(rows: Rows, samples: Sequence[Sample]) -> str:
    utils = module("nemo_gym.openai_utils")
    sampled = 0
    for row in rows:
        utils.NeMoGymResponseCreateParamsNonStreaming.model_validate(row["responses_create_params"])
        made = utils.NeMoGymResponse.model_validate(row["response"])
        trained = [item for item in made.output if hasattr(item, "generation_token_ids")]
        seen: list[int] = []
        for item in trained:
            assert item.prompt_token_ids[: len(seen)] == seen or item.prompt_token_ids
            seen = item.prompt_token_ids + item.generation_token_ids
            assert len(item.generation_token_ids) == len(item.generation_log_probs)
            sampled += len(item.generation_token_ids)
    assert sampled == sum(sample.sampled for sample in samples), sampled
    return "NeMoGymResponseCreateParamsNonStreaming, NeMoGymResponse: its training items hold all sampled tokens"


def atif(rows: Rows, samples: Sequence[Sample]) -> str:
    model = module("harbor.models.trajectories").Trajectory
    made = [model.model_validate(row) for row in rows]
    metrics = [step.metrics for one in made for step in one.steps if step.metrics is not None]
    sampled = sum(len(one.completion_token_ids) for one in metrics)
    assert sampled == sum(sample.sampled for sample in samples), sampled
    return "harbor.models.trajectories.Trajectory"


CHECKS: dict[str, tuple[str, Check]] = {
    "trl": ("trl", trl),
    "trl-async": ("trl", trl_async),
    "verl": ("verl", verl),
    "skyrl": ("skyrl", skyrl),
    "prime-rl": ("prime_rl", prime_rl),
    "slime": ("slime", slime),
    "nemo-rl": ("nemo_rl", nemo_rl),
    "openrlhf": ("openrlhf", openrlhf),
    "tinker": ("tinker", tinker),
    "sft": ("trl", sft),
    "nemo-gym": ("nemo_gym", nemo_gym),
    "atif": ("harbor", atif),
}
assert set(CHECKS) == set(NAMES)


def beside(package: str, path: str) -> ModuleType:
    """One file of a package whose own imports are not all there."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named '{package}'")
    for folder in spec.submodule_search_locations:
        if Path(folder, path).is_file():
            name = f"{package}_{Path(path).stem}"
            found = importlib.util.spec_from_file_location(name, Path(folder, path))
            assert found is not None and found.loader is not None
            made = sys.modules[name] = importlib.util.module_from_spec(found)
            found.loader.exec_module(made)
            return made
    raise ModuleNotFoundError(f"No file {path} in '{package}'")


def main(run: str) -> int:
    samples = list(samples_of(with_advantages(table) for table in read_samples(run)))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, (package, check) in CHECKS.items():
            path = Path(folder, f"{name}.{'jsonl' if name in CHATS else 'parquet'}")
            export(run, Asked(name, path))
            table = name not in CHATS
            rows = pq.read_table(path).to_pylist() if table else [json.loads(line) for line in path.open()]
            try:
                said = f"ok    {check(rows, samples)}"
            except ImportError as error:
                said = f"-     not here: {error}"
            except AssertionError as error:
                failed += 1
                said = f"FAIL  {' '.join(str(error).split())[:200]}"
            print(f"{name:<10} {package:<9} {said}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
