"""A model's chat template and tokenizer, used in the two ways an episode needs.

`opening` renders a whole conversation once, at an episode's start. `continuation` renders only what follows the
policy's own tokens: it lays the new messages behind a stand-in for the policy's turn and takes what the template put
after it. History is never rendered twice, so a template that drops old reasoning or writes arguments anew has
nothing to rewrite. Rendering follows transformers' `apply_chat_template` (sandboxed jinja2, trimmed blocks).
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from rollout.errors import UserError, describe
from rollout.parsing.history import ReasoningForm, form_for, reformed
from rollout.template_names import names_read
from rollout.trajectory import Message, ToolSpec

_STAND_IN = "THE_POLICY_SPOKE_HERE"
_GIVEN = frozenset(("messages", "tools", "add_generation_prompt"))
"""What every rendering tells a template."""
_USER: Message = {"role": "user", "content": "?"}
BUNDLED = Path(__file__).parent / "bundled_model"


class _Generation(Extension):
    """`{% generation %}` marks assistant text for trainers; for rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Messages to token ids and token ids to text, for one model."""

    def __init__(self, tokenizer: Tokenizer, source: str, specials: dict[str, str], eos_ids: frozenset[int]) -> None:
        """Raises jinja2's TemplateSyntaxError when `source` is no template."""
        environment: Any = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self.source = source
        self._environment = environment
        self._template = environment.from_string(source)
        self._tokenizer = tokenizer
        self._specials = specials
        self._chosen: dict[str, Any] = {}
        self.eos_ids = eos_ids
        self._eos_texts = [text for number in sorted(eos_ids) if (text := tokenizer.id_to_token(number))]

    def using(self, variables: Mapping[str, Any]) -> ChatTemplate:
        """The same template, always rendered with these values of its `variables`."""
        made = copy.copy(self)
        made.__dict__.pop("opens_with_reasoning", None)  # it may depend on them
        made._chosen = dict(variables)
        return made

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that it reads beside what every rendering tells it: how much to reason, and the like."""
        return names_read(self._environment, self.source) - _GIVEN - self._specials.keys()

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec], prompted: bool) -> str:
        """The conversation as text; `prompted` adds the header of the policy's next turn.

        Raises UserError when the template refuses these messages.
        """
        try:
            return self._template.render(
                messages=[self._placed(message) for message in messages],
                tools=[spec.as_openai() for spec in tools] or None,
                add_generation_prompt=prompted,
                **self._specials,
                **self._chosen,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:  # it runs foreign code
            raise UserError(f"the model's chat template refuses the conversation: {describe(error)}") from error

    def _placed(self, message: Message) -> dict[str, Any]:
        """A message as the template reads it: reasoning in one text, unless it reads lists."""
        listed = isinstance(message.get("reasoning_content"), list) and self.reasoning_form != "list"
        return _objects(reformed(message, "text") if listed else message)

    @cached_property
    def reasoning_form(self) -> ReasoningForm:
        """How it reads earlier reasoning; one that knows none of it can be shown it in the content."""
        return form_for(self.source)

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Token ids of a whole conversation, ending with the header of the policy's turn.

        Raises UserError when the template refuses these messages.
        """
        return self.encode(self.render(messages, tools, prompted=True))

    def continuation(self, messages: Sequence[Message], ended: bool) -> list[int]:
        """Token ids that follow the policy's sampled ids: end of its turn, `messages`, header of its next turn.

        `ended` says that the sampled ids hold the end-of-turn token already.
        Raises UserError when the template cannot put these messages after a turn of the policy.
        """
        text = self._after_turn(messages)
        if ended:
            bare = text.lstrip()  # some templates write a newline between what was said and the end of turn
            for eos in self._eos_texts:
                if bare.startswith(eos):
                    text = bare[len(eos) :]
                    break
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of text in which special tokens are written out."""
        clean = text.encode("utf-8", "replace").decode()  # JSON can write half a surrogate pair, UTF-8 cannot
        return self._tokenizer.encode(clean, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text with special tokens written out, without the end of turn; bytes that are no UTF-8 become U+FFFD."""
        kept = list(ids)
        while kept and kept[-1] in self.eos_ids:
            kept.pop()
        return self.decode_all(kept)

    def decode_all(self, ids: Sequence[int]) -> str:
        """The same with the end of turn."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def opens_with_reasoning(self) -> bool:
        """True when the header of the policy's turn ends in `<think>`, so that its text starts inside it."""
        return self.render([_USER], (), prompted=True).rstrip().endswith("<think>")

    def _after_turn(self, messages: Sequence[Message]) -> str:
        """What the template writes behind the policy's words when `messages` follow them."""
        try:
            rendered = self.render([_USER, {"role": "assistant", "content": _STAND_IN}, *messages], (), prompted=True)
        except UserError:
            if not messages or messages[0]["role"] != "tool":
                raise
            return self._after_calls(messages)
        _, found, after = rendered.partition(_STAND_IN)
        if not found:
            raise UserError("the model's chat template drops the policy's own turn, so it cannot be continued")
        return after

    def _after_calls(self, messages: Sequence[Message]) -> str:
        """The same for a template that looks back for the calls which tool messages answer: it is shown some, and
        what it writes after the last one counts from the end of turn on."""
        calls = [_stand_in_call(message) for message in messages if message["role"] == "tool"]
        called: Message = {"role": "assistant", "content": "", "tool_calls": calls}
        rendered = self.render([_USER, called, *messages], (), prompted=True)
        after = rendered.rpartition(_STAND_IN)[2]
        ends = [at for eos in self._eos_texts if (at := after.find(eos)) >= 0]
        if after == rendered or not ends:
            raise UserError("the model's chat template writes no end of turn after a tool call")
        return after[min(ends) :]


def load_template(folder: Path, override: Path | None = None) -> ChatTemplate:
    """The chat template and tokenizer of a model folder.

    Raises UserError naming the file that is missing or malformed: tokenizer.json, or a chat template
    (chat_template.jinja or in tokenizer_config.json) when `override` gives none.
    """
    if not folder.is_dir():
        raise UserError(f"model.path: {folder}: no such folder")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"model.path: {folder}: no tokenizer.json in it")
    settings = _json(folder / "tokenizer_config.json")
    source = _source(folder, settings, override)
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    specials = {key: _content(value) for key, value in named.items() if value is not None}
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more exact
        raise UserError(f"model.path: {folder}: tokenizer.json: {describe(error)}") from error
    try:
        return ChatTemplate(tokenizer, source, specials, _eos_ids(folder, tokenizer, specials))
    except TemplateSyntaxError as error:
        place = f"{override or folder}: chat template: line {error.lineno}"
        raise UserError(f"{place}: {error.message}") from error


def resolve_model(path: str) -> Path:
    """The folder that holds a model's tokenizer: `bundled`, a folder, or a hub name whose tokenizer is fetched."""
    if path == "bundled":
        return BUNDLED
    folder = Path(path).expanduser()
    if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~", "models/")):
        return folder
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["tokenizer*", "chat_template*", "config.json", "generation_config.json", "special_tokens_map.json"]
    try:
        return Path(snapshot_download(path, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError) as error:
        reason = describe(error)
        raise UserError(f"model.path: {path}: neither a folder nor to be had from the model hub: {reason}") from error


def context_length(folder: Path) -> int | None:
    """Positions the model reaches, from its config.json; None when it does not say."""
    return _size(folder, "max_position_embeddings")


def vocabulary_size(folder: Path) -> int | None:
    """Token ids the model can sample, which may be more than its tokenizer has; None when config.json does not say."""
    return _size(folder, "vocab_size")


def _size(folder: Path, key: str) -> int | None:
    config = _json(folder / "config.json")
    value = config.get("text_config", config).get(key)
    return value if isinstance(value, int) else None


def _source(folder: Path, settings: dict[str, Any], override: Path | None) -> str:
    if override is not None:
        if not override.is_file():
            raise UserError(f"model.chat_template: {override}: no such file")
        return _text(override)
    if (beside := folder / "chat_template.jinja").is_file():
        return _text(beside)
    named = settings.get("chat_template")
    if isinstance(named, list):
        by_name = {entry["name"]: entry["template"] for entry in cast(list[dict[str, str]], named)}
        named = by_name.get("tool_use", by_name.get("default"))
    if not isinstance(named, str):
        raise UserError(f"model.path: {folder}: no chat template; give one with model.chat_template")
    return named


def _content(special: Any) -> str:
    """A special token's text; tokenizer_config.json writes it alone or with its settings."""
    return str(cast(dict[str, Any], special).get("content", "")) if isinstance(special, dict) else str(special)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def _eos_ids(folder: Path, tokenizer: Tokenizer, specials: dict[str, str]) -> frozenset[int]:
    """Every id that ends a turn: the tokenizer's, and those of config.json and generation_config.json."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = _json(folder / name).get("eos_token_id")
        found.update([value] if isinstance(value, int) else value or [])
    if (own := tokenizer.token_to_id(specials.get("eos_token", ""))) is not None:
        found.add(own)
    return frozenset(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        value: Any = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"model.path: {path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"model.path: {path}: expected an object")
    return cast(dict[str, Any], value)


def _objects(message: Message) -> dict[str, Any]:
    """Templates write arguments with `tojson` or as they are; they all expect an object where one is to be had."""
    plain = dict(message)
    if calls := message.get("tool_calls"):
        plain["tool_calls"] = [_object_call(call) for call in calls]
    return plain


def _stand_in_call(message: Message) -> dict[str, Any]:
    function = {"name": message.get("name", ""), "arguments": json.dumps({"call": _STAND_IN})}
    return {"id": message.get("tool_call_id", ""), "type": "function", "function": function}


def _object_call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    with contextlib.suppress(ValueError, TypeError):
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **others: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
