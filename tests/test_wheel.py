"""The built wheel holds all it needs and runs away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what `pip install` of the wheel would put into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(folder), str(CHECKOUT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def files(folder: Path) -> set[str]:
    """All below a folder, what Python leaves there aside."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def _python(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110)


def test_wheel_holds_model_and_example_jobs(installed: Path) -> None:
    model = installed / "rollout" / "bundled_model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(os.listdir(model))
    assert files(installed / "rollout" / "conf") == files(CHECKOUT / "conf")
    assert (installed / "rollout" / "py.typed").is_file()


def test_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    done = _python(installed, tmp_path, "-c", "import rollout, actors, resources; print(rollout.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed), done.stderr


@pytest.mark.ray
def test_wheel_runs_an_example_job_elsewhere(installed: Path, tmp_path: Path) -> None:
    cut = ["resource.options.count=4", "model.latency_seconds=0", "run.dir=out"]
    done = _python(installed, tmp_path, "-m", "rollout", "run", "scripted", *cut)
    assert done.returncode == 0, done.stderr
    assert "completed 4" in done.stdout
