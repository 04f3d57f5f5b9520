"""Arithmetic problems that take several calculator calls, and the calculator.

The bundled model is trained on the `train` split and played on `heldout`. Everything here is a
pure function of its arguments, so any process can make problem 70,000 without the ones before it.
"""

import ast
import hashlib
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

INSTRUCTIONS: Final = "Work out the expression one operation at a time with calculate."
"""The system message, word for word what the bundled model was trained on."""

TOOLS: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "the result of one operation",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
                "additionalProperties": False,
            },
        },
    },
)
"""The calculator as an OpenAI-style tool list."""

SPLITS: Final = ("train", "heldout")
LARGEST: Final = 99_999
"""No result on the way, and no answer, is larger than this in magnitude."""

_HELD_OUT_BYTES: Final = 26  # of 256: about one expression in ten is held out
_OPERATIONS: Final = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4)
MOST_OPERATIONS: Final = max(_OPERATIONS)
"""No problem has more."""
_DIGITS: Final = (1, 2, 2, 3)
_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2}
_APPLY: Final[dict[str, Callable[[int, int], int]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
# The digits are bounded: a model may write thousands, and a product of them is slow to print.
_ONE_OPERATION: Final = re.compile(r"\s*(-?[0-9]{1,18})\s*([+*-])\s*(-?[0-9]{1,18})\s*", re.ASCII)
_ANSWER: Final = re.compile(r"The answer is (-?[0-9]{1,18})(?![0-9])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Problem:
    """An expression, its value, and the operations that lead there in one valid order."""

    expression: str
    answer: int
    steps: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Operation:
    symbol: str
    left: "_Tree"
    right: "_Tree"


_Tree = int | _Operation


def problem(seed: int, index: int, split: str) -> Problem:
    """Return problem number `index` of a split: the same for the same arguments, anywhere."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    # A string seeds Random through SHA-512: equal in every process, unlike hash().
    rng = random.Random(f"{seed}/{index}/{split}")
    while True:
        tree = _draw(rng, rng.choice(_OPERATIONS))
        expression = _render(tree)
        if split_of(expression) != split:
            continue
        steps: list[tuple[str, int]] = []
        answer = _solve(tree, steps)
        if _is_playable(steps):
            return Problem(expression, answer, tuple(steps))


def split_of(expression: str) -> str:
    """Return the one split an expression belongs to, which is what keeps the splits disjoint."""
    first = hashlib.sha256(expression.encode()).digest()[0]
    return "heldout" if first < _HELD_OUT_BYTES else "train"


def prompt(problem: Problem) -> str:
    """Return the user message that poses a problem."""
    return f"Compute {problem.expression}."


def evaluate(expression: str) -> int:
    """Return the value of exactly one operation (+, - or *) on two whole numbers."""
    match = _ONE_OPERATION.fullmatch(expression)
    if match is None:
        shown = expression if len(expression) <= 40 else expression[:37] + "..."
        raise ValueError(f"one operation at a time, such as 12+7, not {shown!r}")
    left, symbol, right = match.groups()
    return _APPLY[symbol](int(left), int(right))


def parse_answer(text: str) -> int | None:
    """Return the number a final message commits to, or None; what it thought does not count."""
    said = text.rpartition("</think>")[2]
    found = _ANSWER.findall(said)
    return int(found[-1]) if found else None


def ready(node: ast.expr) -> Iterator[ast.BinOp]:
    """Yields, from left to right, the operations whose operands are numbers already."""
    if not isinstance(node, ast.BinOp):
        return
    if not isinstance(node.left, ast.BinOp) and not isinstance(node.right, ast.BinOp):
        yield node
    yield from ready(node.left)
    yield from ready(node.right)


def worked_out(node: ast.expr, done: Sequence[ast.BinOp]) -> ast.expr:
    """Returns the expression with those of its operations replaced by their results."""
    if not isinstance(node, ast.BinOp):
        return node
    if any(node is operation for operation in done):
        return ast.Constant(evaluate(written(node)))
    return ast.BinOp(worked_out(node.left, done), node.op, worked_out(node.right, done))


def written(node: ast.expr) -> str:
    """Returns an expression as it is written in calls."""
    return ast.unparse(node).replace(" ", "")


def _draw(rng: random.Random, operations: int) -> _Tree:
    if operations == 0:
        return rng.randint(1, 10 ** rng.choice(_DIGITS) - 1)
    on_the_left = rng.randrange(operations)
    return _Operation(
        rng.choice("+-*"),
        _draw(rng, on_the_left),
        _draw(rng, operations - 1 - on_the_left),
    )


def _render(tree: _Tree) -> str:
    """Write a tree with the fewest parentheses that keep its shape under usual precedence."""
    if isinstance(tree, int):
        return str(tree)
    own = _PRECEDENCE[tree.symbol]
    left, right = _render(tree.left), _render(tree.right)
    if isinstance(tree.left, _Operation) and _PRECEDENCE[tree.left.symbol] < own:
        left = f"({left})"
    if isinstance(tree.right, _Operation) and _PRECEDENCE[tree.right.symbol] <= own:
        right = f"({right})"
    return f"{left}{tree.symbol}{right}"


def _solve(tree: _Tree, steps: list[tuple[str, int]]) -> int:
    if isinstance(tree, int):
        return tree
    left, right = _solve(tree.left, steps), _solve(tree.right, steps)
    value = _APPLY[tree.symbol](left, right)
    steps.append((f"{left}{tree.symbol}{right}", value))
    return value


def _is_playable(steps: list[tuple[str, int]]) -> bool:
    """Tell whether results stay small and only the last one, if any, is negative."""
    values = [value for _, value in steps]
    return all(abs(value) <= LARGEST for value in values) and all(v >= 0 for v in values[:-1])
