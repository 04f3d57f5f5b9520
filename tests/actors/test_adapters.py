"""Episodes inside verl's and SkyRL's own loops, against the types of the packages where they are installed."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.adapters.player import Player, sample_of, task_in
from rollout.errors import RolloutError, UserError
from rollout.scripted import ScriptedPolicy, encode_lines
from rollout.template import BUNDLED, load_template
from rollout.trajectory import StopReason

TEMPLATE = load_template(BUNDLED)
ADD = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
GOLD = (ADD, ADD, SUBMIT)
JOB = ("resource.options={count: 3, target: 2}", "scheduler.max_attempts=1", "run.limits.turn_seconds=20")


@dataclass
class Engine:
    """Another's engine: it samples lines turn by turn, and keeps what it was asked."""

    lines: Sequence[str] = GOLD
    broken: frozenset[int] = frozenset()
    """Which of its calls fail."""
    asked: list[tuple[str, list[int], dict[str, Any]]] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    finished: list[str] = field(default_factory=list)

    def sample(self, session: str, prompt: list[int], params: dict[str, Any]) -> list[int]:
        """Ids of the session's next line, cut at `max_tokens`."""
        self.asked.append((session, prompt, params))
        if len(self.asked) - 1 in self.broken:
            raise ConnectionError("the engine is gone")
        line = self.lines[min(self.turns[session], len(self.lines) - 1)]
        self.turns[session] += 1
        return encode_lines(TEMPLATE, [line])[0][: params["max_tokens"]]


@pytest.fixture
def player() -> Player:
    return Player.of("scripted", JOB)


def rows(player: Player) -> list[dict[str, Any]]:
    return list(player.dataset())


async def test_a_job_is_played_with_whatever_policy_is_given(player: Player) -> None:
    policy = ScriptedPolicy(TEMPLATE, GOLD)
    tasks = [task_in(row["extra_info"]) for row in rows(player)]
    assert [task.index for task in tasks] == [0, 1, 2]
    played = [await player.play(policy, task, player.sampling) for task in (*tasks, tasks[0])]
    assert [one.reward for one in played] == [1.0] * 4
    assert len({one.lease.episode_id for one in played}) == 4, "also of one task"
    assert len(player.tables[""]) == 0, "all sessions are closed"


def test_a_row_without_a_task_is_refused(player: Player) -> None:
    with pytest.raises(UserError, match="expected a row"):
        task_in({"index": 0})


async def test_an_episode_that_failed_is_no_sample(player: Player) -> None:
    policy = ScriptedPolicy(TEMPLATE, lambda prompt: [])  # there is no line to say
    trajectory = await player.play(policy, task_in(rows(player)[0]["extra_info"]), player.sampling)
    with pytest.raises(RolloutError, match="model at scripted"):
        sample_of(trajectory)


# verl


@dataclass
class VerlServer(Engine):
    """verl's LLMServerClient as far as agent loops call it."""

    steps: Sequence[int] = (7, 8)

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> Any:
        TokenOutput = importlib.import_module("verl.workers.rollout.replica").TokenOutput

        ids = self.sample(request_id, prompt_ids, sampling_params)
        step = self.steps[min(self.turns[request_id] - 1, len(self.steps) - 1)]
        told = {"global_steps": step, "min_global_steps": step, "max_global_steps": step}
        logprobs = [-0.5 - number for number in range(len(ids))]
        return TokenOutput(token_ids=ids, log_probs=logprobs, stop_reason="completed", extra_fields=told)


def verl_loop(server: VerlServer, prompt_length: int = 512, response_length: int = 512) -> Any:
    verl = pytest.importorskip("verl.experimental.agent_loop.agent_loop", exc_type=ImportError)
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer

    from actors.adapters.verl_loop import RolloutAgentLoop

    rollout = {"prompt_length": prompt_length, "response_length": response_length}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    return RolloutAgentLoop(
        trainer_config=verl.DictConfigWrap(config),
        server_manager=server,
        tokenizer=AutoTokenizer.from_pretrained(BUNDLED),
        processor=None,
        dataset_cls=verl.RLHFDataset,
        data_config=verl.DictConfigWrap(config.data),
        conf="scripted",
        overrides=JOB,
    )


PARAMS = {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


async def test_verl_gets_an_episode_as_it_was_sampled(player: Player) -> None:
    server = VerlServer()
    loop = verl_loop(server)
    output = await loop.run(dict(PARAMS), **rows(player)[0], raw_prompt=[])
    verl = importlib.import_module("verl.experimental.agent_loop.agent_loop")
    assert isinstance(output, verl.AgentLoopOutput)
    assert (output.reward_score, len(server.asked), len(set(server.turns))) == (1.0, 3, 1), "one sticky session"
    assert output.prompt_ids == server.asked[0][1]
    sampled = [id for id, ours in zip(output.response_ids, output.response_mask, strict=True) if ours]
    assert sampled == [id for line in GOLD for id in encode_lines(TEMPLATE, [line])[0]]
    last = server.asked[2][1]
    assert (output.prompt_ids + output.response_ids)[: len(last)] == last, "the engine read what is trained on"
    told = zip(output.response_logprobs, output.response_mask, strict=True)
    assert all((logprob == 0.0) != bool(ours) for logprob, ours in told)
    assert server.asked[0][2] == {**PARAMS, "max_tokens": 512}
    extra = output.extra_fields
    assert (extra["min_global_steps"], extra["max_global_steps"]) == (7, 8)
    fields = output.as_dict()
    assert fields["rm_scores"].sum() == fields["rm_scores"][-1] == 1.0
    assert len(fields["rollout_log_probs"]) == len(fields["responses"])


async def test_verl_gets_no_more_tokens_than_it_has_room_for(player: Player) -> None:
    whole = await verl_loop(VerlServer()).run(dict(PARAMS), **rows(player)[0], raw_prompt=[])
    room = len(whole.response_ids) - 3
    cut = await verl_loop(VerlServer(), response_length=room).run(dict(PARAMS), **rows(player)[0], raw_prompt=[])
    assert cut.response_ids == whole.response_ids[:room]
    assert (cut.extra_fields["stop_reason"], cut.reward_score) == (StopReason.MAX_TOKENS, 0.0)


async def test_verl_is_told_of_an_episode_that_failed_or_does_not_fit(player: Player) -> None:
    with pytest.raises(RolloutError, match="the engine is gone"):
        await verl_loop(VerlServer(broken=frozenset({1}))).run(dict(PARAMS), **rows(player)[0], raw_prompt=[])
    with pytest.raises(RolloutError, match="context before a token was sampled"):
        await verl_loop(VerlServer(), prompt_length=20).run(dict(PARAMS), **rows(player)[0], raw_prompt=[])


# SkyRL


@dataclass
class SkyServer(Engine):
    """SkyRL's inference engine client as far as generators call it."""

    async def generate(self, input_batch: Any, model: str | None = None) -> Any:
        (prompt,), (session,) = input_batch["prompt_token_ids"], input_batch["session_ids"]
        ids = self.sample(session, prompt, input_batch["sampling_params"])
        stopped = "stop" if len(ids) < input_batch["sampling_params"]["max_tokens"] else "length"
        return {"response_ids": [ids], "stop_reasons": [stopped], "response_logprobs": [[-0.5] * len(ids)]}

    async def finish_session(self, session_id: str) -> None:
        self.finished.append(session_id)


def skyrl() -> Any:
    try:
        return importlib.import_module("skyrl.train.generators.base")
    except Exception as error:  # on Python 3.11 its own import fails, with an error of pydantic's
        pytest.skip(f"SkyRL cannot be imported: {type(error).__name__}")


async def sky_output(player: Player, server: SkyServer, response_tokens: int = 512) -> Any:
    base = skyrl()
    prepare_generator_input = importlib.import_module("skyrl.train.generators.utils").prepare_generator_input
    validate_generator_output = importlib.import_module("skyrl.train.utils.trainer_utils").validate_generator_output
    from actors.adapters.skyrl_generator import RolloutGenerator

    prompts = []
    for number, row in enumerate(rows(player)[:2]):
        prompt, env_class = row.pop("prompt"), row.pop("env_class")
        prompts.append({"prompt": prompt, "env_class": env_class, "env_extras": row, "uid": str(number)})
    params = {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "max_tokens": 300, "logprobs": None}
    batch, _ = prepare_generator_input(prompts, 2, params, "rollout", "train", 5)
    generator = RolloutGenerator("scripted", server, 512, response_tokens, JOB)
    assert isinstance(generator, base.GeneratorInterface)
    output = await generator.generate(batch)
    assert set(output) <= set(base.GeneratorOutput.__annotations__)
    validate_generator_output(len(batch["prompts"]), output)
    return output


async def test_skyrl_gets_episodes_in_the_order_of_its_batch(player: Player) -> None:
    server = SkyServer()
    output = await sky_output(player, server)
    assert output["rewards"] == [1.0] * 4
    assert [one.to_string() for one in output["trajectory_ids"]] == ["0_0", "0_1", "1_0", "1_1"]
    expected = [id for line in GOLD for id in encode_lines(TEMPLATE, [line])[0]]
    for ids, mask, logprobs in zip(
        output["response_ids"], output["loss_masks"], output["rollout_logprobs"], strict=True
    ):
        assert [id for id, ours in zip(ids, mask, strict=True) if ours] == expected
        assert [logprob == -0.5 for logprob in logprobs] == [bool(ours) for ours in mask]
    assert {session for session, _, _ in server.asked} == set(server.finished)
    assert server.asked[0][2]["logprobs"] == 1


async def test_a_group_with_an_episode_that_failed_teaches_skyrl_nothing(player: Player) -> None:
    output = await sky_output(player, SkyServer(broken=frozenset({1})))  # the second of the first prompt
    assert [any(mask) for mask in output["loss_masks"]] == [False, False, True, True]
    assert output["rewards"] == [0.0, 0.0, 1.0, 1.0]
    assert output["rollout_metrics"]["rollout/failed_episodes"] == 1
    assert output["rollout_metrics"]["rollout/masked_groups"] == 1


async def test_skyrl_gets_no_more_tokens_than_it_has_room_for(player: Player) -> None:
    output = await sky_output(player, SkyServer(), response_tokens=60)
    assert {len(ids) for ids in output["response_ids"]} == {60}
    assert set(output["stop_reasons"]) == {"length"}
