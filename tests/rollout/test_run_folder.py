"""A run's folder: who may write to it, and when a run may go on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rollout.config import JobConfig, validate
from rollout.errors import UserError
from rollout.run_folder import Run, code_version, create_or_resume, locked, read_run

DIGESTS = {"tasks": "a" * 64, "resource": "b" * 64}


def job(folder: Path, **changes: Any) -> JobConfig:
    """A job; changes are sections to merge."""
    raw: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder)},
        "resource": {"name": "counter", "options": {"count": 3}},
        "model": {"engine": "scripted", "turns": ["a"]},
    }
    for section, values in changes.items():
        raw.setdefault(section, {}).update(values)
    return validate(raw, "test")


def start(folder: Path, **changes: Any) -> Run:
    return create_or_resume(job(folder, **changes), DIGESTS, resume=False, force=False)


def resume(folder: Path, digests: dict[str, str] = DIGESTS, force: bool = False, **changes: Any) -> Run:
    return create_or_resume(job(folder, **changes), digests, resume=True, force=force)


def test_a_new_run_is_written_down_and_read_again(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    assert read_run(tmp_path / "run") == run
    assert run.episodes == str(tmp_path / "run" / "episodes")
    assert (run.digests, run.forced) == (DIGESTS, [])
    assert resume(tmp_path / "run") == run
    assert start(tmp_path / "other").run_id != run.run_id


def test_a_run_that_was_moved_knows_where_it_is(tmp_path: Path) -> None:
    start(tmp_path / "run")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert read_run(moved).path == moved
    assert resume(moved).path == moved


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        start(tmp_path)
    with pytest.raises(UserError, match="nothing to resume"):
        resume(tmp_path / "none")


def test_a_run_that_is_there_is_not_begun_again(tmp_path: Path) -> None:
    run = start(tmp_path)
    with pytest.raises(UserError, match=f"holds run {run.run_id} already; add --resume"):
        start(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": {"seed": 1}}, "run.seed was 0, is 1 now"),
        ({"run": {"samples_per_task": 2}}, "run.samples_per_task was 1, is 2 now"),
        ({"run": {"limits": {"max_turns": 3}}}, "run.limits.max_turns was 16, is 3 now"),
        ({"tasks": {"count": 2}}, "tasks.count was None, is 2 now"),
        ({"agent": {"tools": ["add"]}}, "agent.tools was None, is ['add'] now"),
        ({"model": {"turns": ["b"]}}, "model.turns was ['a'], is ['b'] now"),
        ({"model": {"turns": ["b" * 900]}}, "model.turns was ['a'], is ['bbb"),
        ({"resource": {"options": {"count": 4}}}, "resource.options.count was 3, is 4 now"),
        ({"resource": {"options": {}}}, "resource.options.count was 3, is None now"),
        ({"run": {"seed": 1}, "tasks": {"count": 2}}, "(and 1 more)"),
    ],
)
def test_invariant_8_a_run_whose_configuration_differs_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    start(tmp_path)
    with pytest.raises(UserError) as caught:
        resume(tmp_path, **changes)
    assert said in str(caught.value)
    assert "--force" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["tasks", "resource", "template"])
def test_invariant_8_a_run_whose_tasks_or_code_differ_is_refused_by_name(tmp_path: Path, name: str) -> None:
    start(tmp_path)
    with pytest.raises(UserError, match=f"the digest of {name} was .*, is cccccccccccc now"):
        resume(tmp_path, {**DIGESTS, name: "c" * 64})


def test_how_fast_a_run_is_may_change(tmp_path: Path) -> None:
    run = start(tmp_path)
    faster: dict[str, Any] = {"scheduler": {"in_flight": 7}, "dataset": {"commit_rows": 1}, "model": {"replicas": 3}}
    faster["run"] = {"dir": str(tmp_path), "keep_turns": False}
    again = resume(tmp_path, resource={"hosts": 2}, **faster)
    assert (again.run_id, again.config["model"]["replicas"], again.forced) == (run.run_id, 3, [])


def test_invariant_8_what_was_forced_is_recorded_and_is_what_counts_from_then_on(tmp_path: Path) -> None:
    run = start(tmp_path)
    forced = resume(tmp_path, {**DIGESTS, "tasks": "c" * 64}, force=True, run={"seed": 1})
    assert forced.run_id == run.run_id
    assert [line.split(" was")[0] for line in forced.forced] == ["run.seed", "the digest of tasks"]
    assert read_run(tmp_path) == forced
    with pytest.raises(UserError, match=r"run\.seed was 1, is 0 now"):
        resume(tmp_path)
    assert len(resume(tmp_path, force=True).forced) == 4


def mixture(folder: Path, **resources: dict[str, Any]) -> JobConfig:
    """A job with several environments."""
    model = {"engine": "scripted", "turns": ["a"]}
    return validate({"run": {"dir": str(folder)}, "resources": resources, "model": model}, "test")


def test_invariant_8_each_of_several_environments_must_be_the_same_and_may_be_faster(tmp_path: Path) -> None:
    slow, fast = {"name": "counter"}, {"name": "counter", "hosts": 3, "max_sessions": 9, "weight": 2}
    other = {"name": "counter", "tasks": {"count": 2}}
    run = create_or_resume(mixture(tmp_path, a=slow, b=slow), DIGESTS, resume=False, force=False)
    again = create_or_resume(mixture(tmp_path, b=fast, a=slow), DIGESTS, resume=True, force=False)
    assert (again.run_id, again.config["resources"]["b"]["hosts"]) == (run.run_id, 3)
    with pytest.raises(UserError, match=r"resources\.b\.tasks\.count was None, is 2 now"):
        create_or_resume(mixture(tmp_path, a=slow, b=other), DIGESTS, resume=True, force=False)


@pytest.mark.parametrize("force", [False, True])
def test_invariant_1_the_names_that_number_the_tasks_cannot_change(tmp_path: Path, force: bool) -> None:
    one = {"name": "counter"}
    create_or_resume(mixture(tmp_path / "m", b=one, c=one), DIGESTS, resume=False, force=False)
    with pytest.raises(UserError, match="the run's are b, c, the job's a, b, c: not even --force"):
        create_or_resume(mixture(tmp_path / "m", a=one, b=one, c=one), DIGESTS, resume=True, force=force)
    start(tmp_path / "s")
    with pytest.raises(UserError, match="the run's are one without a name, the job's a: not even --force"):
        create_or_resume(mixture(tmp_path / "s", a=one), DIGESTS, resume=True, force=force)


def test_only_one_driver_is_in_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(UserError, match=r"process \d+ is running it"), locked(tmp_path / "run"):
            pass
        start(tmp_path / "run")
    with locked(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"run\.dir: .*file"), locked(folder):
            pass


def test_a_run_that_was_interrupted_while_it_was_written_down_can_be_begun(tmp_path: Path) -> None:
    (tmp_path / ".run.yaml.new").write_text("run_id: hal")
    (tmp_path / ".lock").write_text("1")
    run = start(tmp_path)
    assert read_run(tmp_path) == run
    assert not (tmp_path / ".run.yaml.new").exists()


@pytest.mark.parametrize("text", ["", "a: [", "5", "run_id: x", "{run_id: a, created: b, config: {}, digests: {}}"])
def test_a_run_yaml_that_is_none_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml: says not what a run is") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no run here"):
        read_run(tmp_path / "none")


def test_invariant_12_what_is_kept_with_a_run_names_secrets_and_holds_none(tmp_path: Path) -> None:
    model = {"engine": "openai", "base_url": "http://h/v1", "name": "m", "api_key_env": "HOME"}
    raw = {"run": {"dir": str(tmp_path)}, "resource": {"name": "counter"}, "model": model}
    create_or_resume(validate(raw, "test"), DIGESTS, resume=False, force=False)
    text = (tmp_path / "run.yaml").read_text()
    assert yaml.safe_load(text)["config"]["model"]["api_key_env"] == "HOME"
    assert str(Path.home()) not in text


def test_the_version_of_the_code_is_known() -> None:
    assert code_version()
