"""The layers: scripts -> actors -> resources -> rollout, never upward, and nothing heavy below actors."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("rollout", "resources", "actors", "scripts")
"""From the lowest up."""
HEAVY = ("ray", "vllm", "torch", "transformers")
COMPOSITION_ROOT = ROOT / "rollout" / "cli.py"


def sources(layer: str) -> list[Path]:
    return sorted(path for path in (ROOT / layer).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and first part of the name of everything that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield node.lineno, (node.module or "").split(".")[0]


def forbidden(layer: str) -> set[str]:
    """What a layer may not import: the layers above it, and below actors what only actors know."""
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    return above | {"tests"} | (set(HEAVY) if layer in ("rollout", "resources") else set())


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_only_go_downward(layer: str) -> None:
    assert sources(layer)
    for path in sources(layer):
        if path == COMPOSITION_ROOT:
            continue
        wrong = [
            f"{path.name}:{line}: {name}"
            for line, name in imports(ast.parse(path.read_text()))
            if name in forbidden(layer)
        ]
        assert wrong == []


def test_the_composition_root_imports_the_layers_inside_its_functions() -> None:
    tree = ast.parse(COMPOSITION_ROOT.read_text())
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    names = {name for node in outside for _, name in imports(node)}
    assert not names & forbidden("rollout")
    assert {name for _, name in imports(tree)} & {"actors", "resources"}


def test_everything_below_actors_is_imported_without_ray_vllm_or_torch() -> None:
    """In a process of its own: this one has imported whatever other tests need."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for layer in ("rollout", "resources")
        for path in sources(layer)
        if path.name not in ("__main__.py", "__init__.py")
    ]
    assert len(modules) > 30
    program = "import importlib, sys\n"
    program += f"for name in {modules!r}:\n    importlib.import_module(name)\n"
    program += f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
