"""Invariant 5 read from the source: an await that leaves the process stands inside something with a deadline."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = {"boundary", "deadline", "timeout"}
"""Names of context managers that bound what stands in them,"""
CALLS = {"wait_for", "threaded", "_all_started", "_answers"}
"""and of functions that bound what they are given."""
SOURCES = sorted([*(ROOT / "actors").rglob("*.py"), *(ROOT / "rollout").rglob("*.py")])


def name_of(call: ast.expr) -> str:
    function = call.func if isinstance(call, ast.Call) else call
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def called(node: ast.AST) -> set[str]:
    return {name_of(part) for part in ast.walk(node) if isinstance(part, ast.Call)}


def unbounded(node: ast.AST, bounded: bool = False) -> Iterator[int]:
    """Lines that await a remote call where nothing ends the wait."""
    if isinstance(node, ast.AsyncWith):
        bounded = bounded or any(name_of(item.context_expr) in BLOCKS for item in node.items)
    elif isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef | ast.Lambda):
        bounded = False  # it may be called from anywhere
    elif isinstance(node, ast.Await) and "remote" in called(node) and not (bounded or called(node) & CALLS):
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from unbounded(child, bounded)


def undated(tree: ast.AST) -> Iterator[int]:
    """Coroutines that make remote calls to await them later and never name a deadline."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and "remote" in called(node) and not called(node) & (BLOCKS | CALLS):
            yield node.lineno


def endless(tree: ast.AST) -> Iterator[int]:
    """Threads and blocking reads that nothing ends."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whole = ast.unparse(node.func)
            dated = any(keyword.arg == "timeout" for keyword in node.keywords)
            if whole in ("asyncio.to_thread", "ray.get", "ray.wait") and not dated:
                yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_invariant_5_every_remote_call_and_every_thread_has_a_deadline(path: Path) -> None:
    tree = ast.parse(path.read_text())
    wrong = [*unbounded(tree), *undated(tree), *endless(tree)]
    assert [f"{path.name}:{line}" for line in wrong] == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("async def f(a):\n    await a.go.remote()", [2]),
        ("async def f(a):\n    async with boundary(1):\n        await a.go.remote()", []),
        ("async def f(a):\n    async with boundary(1):\n        async def g():\n            await a.go.remote()", [4]),
        ("async def f(a):\n    await asyncio.wait_for(a.go.remote(), 1)", []),
    ],
)
def test_the_rule_finds_what_it_is_for(source: str, lines: list[int]) -> None:
    assert list(unbounded(ast.parse(source))) == lines
