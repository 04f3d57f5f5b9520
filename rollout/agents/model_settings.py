"""`api_kwargs`, what an agent wants of its model calls, brought to where each key is understood.

The same key means something in up to four places: how a token is drawn (`Sampling`), the body of an OpenAI-compatible
request, vLLM's SamplingParams, and the variables of a chat template. Names follow OpenAI's API reference and vLLM's
`SamplingParams` (0.32); what is sent on to vLLM's own server is what that server would have made of it. A key that
nobody here knows goes to the body as it is, and on the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from pydantic import Field, PositiveInt, ValidationError

from rollout.agents.replies import skipped
from rollout.errors import UserError
from rollout.sections import SamplingConfig, Section
from rollout.trajectory import Json, Message, Sampling, ToolCall, ToolUse

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_DRAWN = ("temperature", "top_p", "top_k", "stop", "seed")
_BUDGETS = ("reasoning_budget", "thinking_token_budget")
_VLLM = (
    "allowed_token_ids",
    "bad_words",
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "stop_token_ids",
)
"""Keys that vLLM's SamplingParams and the body of a request have in common."""
_OURS = {
    "model": "it is named in the model section",
    "messages": "they are the episode's",
    "prompt": "it is the episode's",
    "tools": "they are the agent's",
    "functions": "tools are the agent's",
    "n": "samples are the run's: run.samples_per_task",
    "best_of": "samples are the run's: run.samples_per_task",
    "stream": "answers are read whole",
    "logprobs": "one a sampled token is always asked for",
    "top_logprobs": "one a sampled token is always asked for",
    "return_token_ids": "they are always asked for",
    "api_key": "a key is named in model.api_key_env",
    "extra_headers": "a key is named in model.api_key_env",
}
"""What the engine says itself, and why nobody else may."""
_FORCED = "There are no more tool calls. Give your final answer now, with what you have."


class ModelSettingsConfig(Section):
    """What an agent wants of its model calls."""

    api_kwargs: dict[str, Any] = Field(default_factory=dict[str, Any])
    """temperature, top_p, max_tokens, reasoning_effort and so on, over the model's own sampling; keys that are not
    known go into the request as they are."""
    max_iterations: PositiveInt = 10
    """Model calls in one run of an agent."""
    on_max_iterations: Literal["stop", "force_final"] = "stop"
    """After them the run stops, or gets one last call with its tools off."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What the calls of an agent are made with."""

    sampling: Sampling
    max_tokens: int | None = None
    """Sampled tokens in a turn at most; None leaves the episode's own limit."""
    body: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """For an OpenAI-compatible request, beside what `sampling` and `max_tokens` make there."""
    vllm: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Arguments of vLLM's SamplingParams."""
    template: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Variables of the chat template, where prompts are rendered here."""
    implied: frozenset[str] = frozenset()
    """Those of them that were not given by name: two names for how much to reason, of which a template has one."""
    unknown: tuple[str, ...] = ()
    """Keys that only an endpoint can make sense of: where prompts are tokens in our own engine they do nothing."""
    given: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """As they were written, for the record."""


def model_settings(api_kwargs: Mapping[str, Json], base: Sampling, key: str) -> ModelSettings:
    """The settings of an agent whose model samples as `base` says where it says nothing. A null means nothing is said.

    Raises UserError that begins with `key` for a value that cannot be, and for keys that are the engine's own.
    """
    rest = {name: value for name, value in api_kwargs.items() if value is not None}
    extra = dict(_object(rest.pop("extra_body", {}), f"{key}.extra_body"))
    for place, said in ((key, rest), (f"{key}.extra_body", extra)):
        if (ours := next((name for name in said if name in _OURS), None)) is not None:
            raise UserError(f"{place}.{ours}: cannot be set here: {_OURS[ours]}")
    if (hidden := next((name for name in extra if name in (*_DRAWN, *_LIMITS)), None)) is not None:
        raise UserError(f"{key}.extra_body.{hidden}: expected beside extra_body, where it goes on the record")
    drawn = {name: rest.pop(name) for name in _DRAWN if name in rest}
    limits = [_number(rest.pop(name), f"{key}.{name}", least=1) for name in _LIMITS if name in rest]
    known = {name: rest.pop(name) for name in _VLLM if name in rest}
    thinking = _thinking(rest, extra, key)
    return ModelSettings(
        sampling=_sampling(drawn, base, key),
        max_tokens=min(limits, default=None),
        body={**rest, **known, **thinking.body, **extra},
        vllm={**_for_vllm(known, key), **thinking.vllm},
        template=thinking.template,
        implied=thinking.implied,
        unknown=tuple(sorted({*rest, *extra})),
        given=dict(api_kwargs),
    )


def next_call(turns: int, max_iterations: int, on_max_iterations: str) -> Literal["call", "final", "stop"]:
    """What follows after `turns` model calls of a run: a call, the `final` one with tools off, or none."""
    if turns < max_iterations:
        return "call"
    return "final" if turns == max_iterations and on_max_iterations == "force_final" else "stop"


FINAL_BODY: Mapping[str, Json] = {"tool_choice": "none"}
"""What the final call adds to a request that has tools. They stay in the prompt, which is only ever extended."""
FINAL_MESSAGE: Message = {"role": "user", "content": _FORCED}
"""What the policy is told before it; not sampled, so masked."""


def final_uses(calls: Sequence[ToolCall]) -> tuple[ToolUse, ...]:
    """The results of calls that the policy makes in its final turn all the same: none of them runs."""
    return tuple(skipped(call, "not run: there are no more tool calls") for call in calls)


@dataclass(frozen=True, slots=True)
class _Thinking:
    """How much a model is to reason, in every place's own words."""

    body: Mapping[str, Json]
    vllm: Mapping[str, Json]
    template: Mapping[str, Json]
    implied: frozenset[str]


def _thinking(rest: dict[str, Json], extra: dict[str, Json], key: str) -> _Thinking:
    """Takes what is about reasoning, and variables of the template, out of `rest`; the latter out of `extra` too, where
    clients of OpenAI's have to put them."""
    body: dict[str, Json] = {name: rest.pop(name) for name in ("reasoning_effort", "reasoning") if name in rest}
    reasoning = _object(body.get("reasoning", {}), f"{key}.reasoning")
    effort = body.get("reasoning_effort", reasoning.get("effort"))
    template: dict[str, Json] = {}
    if effort is not None:
        template = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    own = _object(rest.pop("chat_template_kwargs", {}), f"{key}.chat_template_kwargs")
    place = f"{key}.extra_body.chat_template_kwargs"
    own = {**own, **_object(extra.pop("chat_template_kwargs", {}), place)}
    if "enable_thinking" in rest:
        own = {**own, "enable_thinking": rest.pop("enable_thinking")}
    if own:
        body["chat_template_kwargs"] = own
    budgets = [_number(rest.pop(name), f"{key}.{name}", least=0) for name in _BUDGETS if name in rest]
    if budgets:
        body["thinking_token_budget"] = min(budgets)
    elif reasoning.get("max_tokens") is not None:
        budgets = [_number(reasoning["max_tokens"], f"{key}.reasoning.max_tokens", least=0)]
    vllm: dict[str, Json] = {"thinking_token_budget": min(budgets)} if budgets else {}
    return _Thinking(body, vllm, {**template, **own}, frozenset(template.keys() - own.keys()))


def _sampling(drawn: Mapping[str, Json], base: Sampling, key: str) -> Sampling:
    """`base` with what an agent says over it, checked as the model's own sampling is."""
    said = dict(drawn)
    seed = _number(said.pop("seed"), f"{key}.seed") if "seed" in said else base.seed
    if said.get("top_k") == -1:
        said["top_k"] = 0  # vLLM's word for all
    if isinstance(stop := said.get("stop"), str):
        said["stop"] = (stop,)
    try:
        checked = SamplingConfig.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{key}.{first['loc'][0]}: {first['msg']}, found {first['input']!r}") from None
    return replace(base, seed=seed, **{name: getattr(checked, name) for name in said})


def _for_vllm(known: Mapping[str, Json], key: str) -> dict[str, Json]:
    """JSON writes the ids of logit_bias as text."""
    if "logit_bias" not in known:
        return dict(known)
    bias = _object(known["logit_bias"], f"{key}.logit_bias")
    try:
        return {**known, "logit_bias": {int(token): float(value) for token, value in bias.items()}}
    except (TypeError, ValueError):
        raise UserError(f"{key}.logit_bias: expected numbers by token id, found {dict(bias)!r}") from None


def _object(value: Json, key: str) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: expected an object, found {value!r}")
    return cast(Mapping[str, Json], value)


def _number(value: Json, key: str, least: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise UserError(f"{key}: expected a whole number{bound}, found {value!r}")
    return value
