"""vLLM's own tool and reasoning parsers, for the formats that `rollout.parsing` does not read.

A reference is `vllm:TOOL` or `vllm:TOOL+REASONING`, as `vllm:hermes+deepseek_r1`. Two limits come from vLLM: it says
what was reasoning, what content and which calls were made, but not in which order, so a completion that reasons again
between its calls comes out as reasoning, content, calls (and some parsers drop the later reasoning); and it keeps no
text of a call, so a call's segment shows its arguments. vllm is imported when a parser is made, which takes seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout.errors import UserError, nearest
from rollout.parsing import FORMATS
from rollout.trajectory import Segment, ToolCall, ToolSpec

_PREFIX = "vllm:"
_ANY_TOOL = ToolSpec("any", "", {"type": "object"})
"""vLLM looks for calls only where a request offers tools."""

log = logging.getLogger(__name__)


class VllmParser:
    """Reads completions as one of vLLM's parsers does."""

    def __init__(self, parser: Any, tokenizer: Any) -> None:
        self._parser = parser
        self._tokenizer = tokenizer

    def __call__(
        self, text: str, turn: int, ids: Sequence[int] = (), tools: Sequence[ToolSpec] = ()
    ) -> tuple[Segment, ...]:
        """Segments of a finished completion.

        `ids` are its sampled ids, made from the text when not given. `tools` tell the formats that write arguments
        as XML which of them are numbers; without them every argument of those is a string.
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        offered = [tool.as_openai() for tool in tools or (_ANY_TOOL,)]
        request = ChatCompletionRequest.model_validate(
            {"model": "", "messages": [{"role": "user", "content": ""}], "tools": offered}
        )
        ids = list(ids) or self._tokenizer.encode(text, add_special_tokens=False)
        reader = self._parser(self._tokenizer, request.tools)  # they keep state: one a completion
        try:
            reasoning, content, calls = reader.parse(text, request, enable_auto_tools=True, model_output_token_ids=ids)
        except Exception:  # foreign code on whatever a model says: what it cannot read is content
            log.warning("vLLM's parser failed on a completion", exc_info=True)
            return _text("content", text)
        called = [
            Segment("tool_call", call.arguments, ToolCall(f"call_{turn}_{number}", call.name, call.arguments))
            for number, call in enumerate(calls or ())
        ]
        read = (*_text("reasoning", reasoning), *_text("content", content), *called)
        return read or _text("content", text)  # some drop a call that was cut off


def vllm_parser(reference: str, folder: Path) -> VllmParser:
    """The parser `vllm:TOOL[+REASONING]` names, with the tokenizer of the model in `folder`.

    Raises UserError for a name that vLLM does not know and for a tokenizer that lacks the parser's special tokens.
    """
    tool, reasoning = split_reference(reference)
    from vllm.parser import ParserManager
    from vllm.reasoning import ReasoningParserManager
    from vllm.tokenizers import get_tokenizer
    from vllm.tool_parsers import ToolParserManager

    _known("tool", tool, ToolParserManager.list_registered())
    if reasoning is not None:
        _known("reasoning", reasoning, ReasoningParserManager.list_registered())
    logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)  # a traceback for each call that is no JSON
    tokenizer = get_tokenizer(str(folder))
    try:
        parser = ParserManager.get_parser(
            tool_parser_name=tool, reasoning_parser_name=reasoning, enable_auto_tools=True, tokenizer=tokenizer
        )
    except TypeError as error:
        raise UserError(f"model.parser: {reference} does not fit the tokenizer in {folder}: {error}") from error
    return VllmParser(parser, tokenizer)


def split_reference(reference: str) -> tuple[str, str | None]:
    """Names of the tool and the reasoning parser. Raises UserError for anything but `vllm:TOOL[+REASONING]`."""
    tool, plus, reasoning = reference.removeprefix(_PREFIX).partition("+")
    if not reference.startswith(_PREFIX) or not tool or (plus and not reasoning):
        expected = "expected a format of our own or vllm:TOOL[+REASONING]"
        raise UserError(f"model.parser: {expected}, found {reference!r}{nearest(reference, FORMATS)}")
    return tool, reasoning or None


def _known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise UserError(f"model.parser: vLLM has no {kind} parser '{name}'{nearest(name, names)}")


def _text(kind: Any, text: str | None) -> tuple[Segment, ...]:
    said = (text or "").strip()
    return (Segment(kind, said),) if said else ()
