"""api_kwargs in their places, and what follows when the iterations are used up."""

from typing import Any

import pytest

from rollout.agents.model_settings import (
    FINAL_BODY,
    FINAL_MESSAGE,
    ModelSettingsConfig,
    final_uses,
    model_settings,
    next_call,
)
from rollout.errors import UserError
from rollout.openai_wire import Dialect, encode_tools, request_body
from rollout.trajectory import Prompt, Sampling, ToolCall

BASE = Sampling(temperature=0.7, top_k=20, stop=("END",), seed=5)


def split(**api_kwargs: Any) -> Any:
    return model_settings(api_kwargs, BASE, "agent.api_kwargs")


def test_nothing_said_changes_nothing() -> None:
    settings = split()
    assert (settings.sampling, settings.max_tokens) == (BASE, None)
    assert (settings.body, settings.vllm, settings.template, settings.unknown) == ({}, {}, {}, ())
    assert ModelSettingsConfig().api_kwargs == {}


def test_how_tokens_are_drawn_goes_over_the_models_own_sampling() -> None:
    settings = split(temperature=0, top_p=0.5, stop="STOP", top_k=-1, seed=7, max_tokens=100, max_completion_tokens=90)
    assert settings.sampling == Sampling(0.0, 0.5, 0, ("STOP",), 7)
    assert settings.max_tokens == 90
    assert (settings.body, settings.vllm) == ({}, {})
    assert split(stop=["a", "b"], temperature=None).sampling == Sampling(0.7, 1.0, 20, ("a", "b"), 5)


def test_what_vllm_and_endpoints_both_know_goes_to_both() -> None:
    settings = split(min_p=0.1, presence_penalty=1, logit_bias={"50": -100})
    assert settings.body == {"min_p": 0.1, "presence_penalty": 1, "logit_bias": {"50": -100}}
    assert settings.vllm == {"min_p": 0.1, "presence_penalty": 1, "logit_bias": {50: -100.0}}
    assert settings.unknown == ()


@pytest.mark.parametrize(
    ("given", "body", "vllm", "template"),
    [
        (
            {"reasoning_effort": "low"},
            {"reasoning_effort": "low"},
            {},
            {"reasoning_effort": "low", "enable_thinking": True},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {},
            {"reasoning_effort": "none", "enable_thinking": True},
        ),
        (
            {"reasoning": {"effort": "high", "max_tokens": 2000}},
            {"reasoning": {"effort": "high", "max_tokens": 2000}},
            {"thinking_token_budget": 2000},
            {"reasoning_effort": "high", "enable_thinking": True},
        ),
        (
            {"reasoning_budget": 500, "enable_thinking": False},
            {"thinking_token_budget": 500, "chat_template_kwargs": {"enable_thinking": False}},
            {"thinking_token_budget": 500},
            {"enable_thinking": False},
        ),
    ],
)
def test_reasoning_in_every_places_own_words(
    given: dict[str, Any], body: dict[str, Any], vllm: dict[str, Any], template: dict[str, Any]
) -> None:
    settings = split(**given)
    assert (settings.body, settings.vllm, settings.template, settings.unknown) == (body, vllm, template, ())


def test_variables_of_the_template_are_found_where_openai_clients_put_them() -> None:
    settings = split(
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "top_n": 3}, reasoning_effort="low"
    )
    assert settings.template == {"reasoning_effort": "low", "enable_thinking": False}
    assert settings.implied == {"reasoning_effort"}
    assert settings.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert settings.unknown == ("top_n",)


def test_vector_16_unknown_keys_go_to_the_body_as_they_are_and_everything_is_recorded() -> None:
    given = {"temperature": 0.2, "verbosity": "low", "extra_body": {"provider": {"order": ["x"]}}, "user": None}
    settings = split(**given)
    assert settings.body == {"verbosity": "low", "provider": {"order": ["x"]}}
    assert settings.unknown == ("provider", "verbosity")
    assert settings.vllm == {}
    assert settings.given == given


def test_a_request_is_made_with_them() -> None:
    settings = split(temperature=0.2, reasoning_effort="low")
    prompt = Prompt("r", "s", 0, (), [FINAL_MESSAGE], (), 10, settings.sampling, 5.0)
    body = request_body(prompt, "m", Dialect(), encode_tools(()), {**settings.body, **FINAL_BODY})
    for part in (b'"temperature":0.2', b'"reasoning_effort":"low"', b'"tool_choice":"none"'):
        assert part in body


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"temperature": -1}, "agent.api_kwargs.temperature: Input should be greater than or equal to 0, found -1"),
        ({"top_p": "much"}, "agent.api_kwargs.top_p: "),
        ({"seed": 1.5}, "agent.api_kwargs.seed: expected a whole number, found 1.5"),
        ({"max_tokens": 0}, "agent.api_kwargs.max_tokens: expected a whole number of at least 1, found 0"),
        ({"reasoning_budget": True}, "agent.api_kwargs.reasoning_budget: expected a whole number of at least 0"),
        ({"reasoning": {"max_tokens": "x"}}, "agent.api_kwargs.reasoning.max_tokens: expected a whole number"),
        ({"reasoning": "high"}, "agent.api_kwargs.reasoning: expected an object, found 'high'"),
        ({"logit_bias": {"a": 1}}, "agent.api_kwargs.logit_bias: expected numbers by token id"),
        ({"chat_template_kwargs": 1}, "agent.api_kwargs.chat_template_kwargs: expected an object"),
        ({"n": 4}, "agent.api_kwargs.n: cannot be set here: samples are the run's: run.samples_per_task"),
        ({"extra_body": {"stream": True}}, "agent.api_kwargs.extra_body.stream: cannot be set here"),
        ({"extra_body": {"temperature": 0}}, "agent.api_kwargs.extra_body.temperature: expected beside extra_body"),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        split(**given)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_invariant_12_a_key_is_refused_and_not_repeated() -> None:
    for given in ({"api_key": "sk-secret"}, {"extra_body": {"api_key": "sk-secret"}}):
        with pytest.raises(
            UserError, match=r"api_key: cannot be set here: a key is named in model\.api_key_env"
        ) as caught:
            split(**given)
        assert "sk-secret" not in str(caught.value)


def test_vector_11_ten_iterations_then_stop_or_one_final_call() -> None:
    config = ModelSettingsConfig()
    assert (config.max_iterations, config.on_max_iterations) == (10, "stop")
    assert [next_call(turns, 10, "stop") for turns in (0, 9, 10, 11)] == ["call", "call", "stop", "stop"]
    assert [next_call(turns, 10, "force_final") for turns in (0, 9, 10, 11)] == ["call", "call", "final", "stop"]


def test_invariant_4_calls_of_the_final_turn_get_results_and_do_not_run() -> None:
    calls = [ToolCall("a", "search", "{}"), ToolCall("b", "", "{")]
    uses = final_uses(calls)
    assert [use.call for use in uses] == calls
    assert all(use.result.skipped for use in uses)
    assert FINAL_MESSAGE["role"] == "user"
