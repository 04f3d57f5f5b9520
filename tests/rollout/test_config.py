"""Configuration: what a conf says, and one line for everything a person can get wrong in it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rollout.config import (
    CHECKOUT,
    JobConfig,
    OpenAIConfig,
    ScriptedConfig,
    VllmConfig,
    dump,
    find_conf,
    load,
    secret,
    validate,
)
from rollout.errors import UserError
from rollout.trajectory import Agent, Limits, Sampling

JOB = """
run: {dir: runs/x}
resource: {name: counter}
model: {engine: scripted, turns: [a]}
"""
OPENAI = "run: {dir: r}\nresource: {name: c}\nmodel: {engine: openai, base_url: http://h/v1, name: m, "


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (path := tmp_path / "job.yaml").write_text(JOB)
    return path


def wrong(path: Path, *overrides: str) -> str:
    """The one line that loading gives."""
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path}: ", "")


@pytest.mark.parametrize("path", sorted(CHECKOUT.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_conf_is_valid(path: Path) -> None:
    assert isinstance(load(path), JobConfig)


def test_defaults_fill_in_what_a_conf_leaves_out(conf: Path) -> None:
    config = load(conf)
    assert isinstance(config.model, ScriptedConfig)
    assert (config.run.samples_per_task, config.scheduler.max_attempts, config.model.replicas) == (1, 3, 1)
    assert config.run.limits.value() == Limits()
    assert config.agent.value(config.model.sampling.value()) == Agent(sampling=Sampling())
    assert isinstance(validate({"run": {"dir": "r"}, "resource": {"name": "c"}, "model": {}}, "x").model, VllmConfig)


def test_overrides_are_yaml_and_are_converted(conf: Path) -> None:
    overrides = ("run.seed=7", "run.limits.turn_seconds=3", "model.turns=[x, y]", "resource.options.count=3")
    config = load(conf, (*overrides, "run.dir=2024", "agent.instructions=a=b", "agent.tools=null", "run.seed=1e1"))
    assert (config.run.seed, config.run.limits.turn_seconds, config.run.dir) == (10, 3.0, "2024")
    assert (config.model.model_dump()["turns"], config.environments[""].options) == (("x", "y"), {"count": 3})
    assert (config.agent.instructions, config.agent.tools) == ("a=b", None)


def test_a_conf_stands_on_the_files_its_defaults_name(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "all.yaml").write_text(JOB + "scheduler: {in_flight: 7, runners: 2}\n")
    (tmp_path / "fast.yaml").write_text("scheduler: {in_flight: 99}\n")
    (job := tmp_path / "job.yaml").write_text("defaults: [base/all.yaml, fast.yaml]\nscheduler: {runners: 3}\n")
    scheduler = load(job, ["scheduler.cpus_per_runner=1"]).scheduler
    assert (scheduler.in_flight, scheduler.runners, scheduler.cpus_per_runner) == (99, 3, 1.0)


MIXED = """
run: {dir: runs/x}
resources:
  sums: {name: calculator, tasks: {count: 3}, weight: 2}
  counts: {name: counter, hosts: 2, max_sessions: 5}
model: {engine: scripted, turns: [a]}
"""


def test_a_job_has_one_environment_without_a_name_or_several_with_one(conf: Path) -> None:
    config = load(conf, ["tasks.count=7", "resource.max_sessions=4"])
    [(name, only)] = config.environments.items()
    assert (name, only.name, only.tasks.count, only.max_sessions, only.weight) == ("", "counter", 7, 4, 1.0)
    conf.write_text(MIXED)
    config = load(conf, ["resources.sums.options.count=9"])
    assert [(name, one.name, one.hosts, one.weight) for name, one in config.environments.items()] == [
        ("counts", "counter", 2, 1.0),
        ("sums", "calculator", 1, 2.0),
    ]
    assert (config.environments["sums"].tasks.count, config.environments["sums"].options) == (3, {"count": 9})
    again: Any = OmegaConf.to_container(OmegaConf.create(dump(config)))
    assert validate(again, "again") == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("resources.sums.nam=x", "resources.sums.nam: unknown key; did you mean 'name'?"),
        ("resources.sums.tasks.pth=x", "resources.sums.tasks.pth: unknown key; did you mean 'path'?"),
        ("resources.sums.xyz=1", "resources.sums.xyz: unknown key; known: cpus_per_host, hosts, max_sessions, name, "),
        ("resources.more.hosts=2", "resources.more.name: missing; a value is needed"),
        ("resources.sums.weight=0", "resources.sums.weight: input should be greater than 0, found 0"),
        ("resources.sums.max_sessions=0", "resources.sums.max_sessions: input should be greater than 0, found 0"),
        ("resources.2nd.name=counter", "resources.2nd: expected a name of letters, digits, - and _ that begins"),
        ("resources.sums=5", "resources.sums: expected keys and values, found 5"),
        ("resources=null", "resource: missing; a job needs resource, or resources with several"),
        ("resource.name=counter", "resources: expected either resource or resources, found both"),
        ("tasks.count=3", "tasks: each of resources has its own; give resources.counts.tasks"),
    ],
)
def test_what_is_wrong_with_several_environments_is_named(conf: Path, override: str, said: str) -> None:
    conf.write_text(MIXED)
    assert wrong(conf, override).startswith(said)


def test_several_environments_are_at_least_one(conf: Path) -> None:
    conf.write_text("run: {dir: r}\nmodel: {engine: scripted, turns: [a]}\nresources: {}\n")
    assert wrong(conf) == "resources: expected names and sections"


def test_values_may_refer_to_others(conf: Path) -> None:
    assert load(conf, ["run.dir=runs/${resource.name}"]).run.dir == "runs/counter"
    assert "foo" in wrong(conf, "run.dir=${foo}")
    assert "run.dir" in wrong(conf, "run.dir=${run.dir}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.limits.max_turn=3", "run.limits.max_turn: unknown key; did you mean 'max_turns'?"),
        ("model.replica=2", "model.replica: unknown key; did you mean 'replicas'?"),
        ("model.sampling.temprature=1", "model.sampling.temprature: unknown key; did you mean 'temperature'?"),
        ("modl.x=1", "modl: unknown key; did you mean 'model'?"),
        ("xyz=1", "xyz: unknown key; known: agent, cost, dataset, gateway, logs, model, pricing, profile"),
        ("model.engine=vlm", "model.engine: there is no engine 'vlm'; did you mean 'vllm'?"),
        ("model.replicas=abc", "model.replicas: input should be a valid integer"),
        ("scheduler.in_flight=0", "scheduler.in_flight: input should be greater than 0, found 0"),
        ("run.limits.turn_seconds=.inf", "run.limits.turn_seconds: input should be a finite number"),
        ("run=5", "run: expected keys and values, found 5"),
        ("model=null", "model: expected keys and values"),
        ("run.dir=", "run.dir: input should be a valid string, found None"),
        ("model.turns=a", "model.turns: expected a list, found 'a'"),
        ("model.turns.0=x", "model.turns.0=x: cannot be set"),
        ("resource.options=[1", "resource.options=[1: cannot be set"),
        ("run.dir", "run.dir: expected key=value, like model.replicas=2"),
        ("=x", "=x: expected key=value"),
        ("a..b=1", "a..b=1: expected key=value"),
    ],
)
def test_a_wrong_override_is_named_with_what_was_expected(conf: Path, override: str, said: str) -> None:
    assert wrong(conf, override).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run: missing; a value is needed"),
        ("5", "expected sections (run, model, resource, ...), found a single value"),
        ("[a]", "expected sections (run, model, resource, ...), found a list"),
        ("a: [1", ":2: not YAML"),
        ("{a: 1, a: 2}", ":1: not YAML: found duplicate key a"),
        (JOB + "1: x\n", "1: keys should be strings"),
        (JOB + "defaults: base.yaml\n", "defaults: expected a list of files"),
        (JOB + "defaults: [{a: b}]\n", "defaults: expected a list of files"),
        (JOB + "defaults: [job.yaml]\n", "defaults: it includes itself"),
        (JOB.replace("[a]", "[a]") + "defaults: [none.yaml]\n", "none.yaml: no such file, named by job.yaml"),
        (JOB.replace(", turns: [a]", ""), "model.turns: missing; a value is needed"),
        (OPENAI + "replicas: 3}", "model.replicas: unknown key"),
    ],
)
def test_a_wrong_conf_is_named_with_what_was_expected(conf: Path, text: str, said: str) -> None:
    conf.write_text(text)
    assert said in wrong(conf)


def test_a_conf_in_another_encoding_is_named(conf: Path) -> None:
    conf.write_bytes(b"\xff\xfe")
    assert wrong(conf).startswith("not YAML")


def test_a_conf_is_found_by_path_or_by_the_name_of_an_example(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(conf.parent)
    assert find_conf(str(conf)) == conf
    assert find_conf("demo") == find_conf("demo.yaml") == CHECKOUT / "demo.yaml"
    assert find_conf("agents/tools") == find_conf("conf/agents/tools.yaml") == CHECKOUT / "agents" / "tools.yaml"
    with pytest.raises(UserError, match=r"agents/tolls: no such file; did you mean 'agents/tools.yaml'"):
        find_conf("agents/tolls")
    with pytest.raises(UserError, match=r"elsewhere/agents/tools: no such file"):
        find_conf("elsewhere/agents/tools")
    with pytest.raises(UserError, match=r"dmo: no such file; did you mean 'demo.yaml'"):
        find_conf("dmo")
    with pytest.raises(UserError, match=r"did you mean '.*job\.yaml'"):
        find_conf(str(conf.with_name("jobb.yaml")))


def test_a_conf_names_what_lies_beside_it(conf: Path) -> None:
    below = conf.parent / "below"
    below.mkdir()
    (below / "base.yaml").write_text(conf.read_text() + "\nagent: {skill_dirs: ['${here}/skills']}")
    (top := conf.with_name("top.yaml")).write_text("defaults: [below/base.yaml]\ntasks: {path: '${here}/t.jsonl'}")
    config = load(top)
    assert config.agent.skill_dirs == (f"{below}/skills",), "each file means its own folder"
    assert config.tasks.path == f"{conf.parent}/t.jsonl"


def test_what_is_kept_of_a_conf_gives_the_same_conf(conf: Path) -> None:
    config = load(conf, ["model.turns=[x]", "run.limits.max_turns=3"])
    again: Any = OmegaConf.to_container(OmegaConf.create(dump(config)))
    assert validate(again, "again") == config


@pytest.mark.parametrize("key", ["model.api_key_env", "model.extra_body.key", "run.dir"])
def test_invariant_12_a_conf_takes_no_value_from_the_environment(conf: Path, key: str) -> None:
    conf.write_text(OPENAI + "}")
    for value in ("${oc.env:HOME}", "'${ oc.env : HOME}'", "x${oc.decode:${oc.env:HOME,y}}", '["${oc.env:A}"]'):
        assert f"{key}: takes no value from the environment" in wrong(conf, f"{key}={value}")


def test_invariant_12_a_key_in_the_place_of_its_name_is_refused_and_not_repeated(conf: Path) -> None:
    conf.write_text(OPENAI + "api_key_env: sk-verysecret}")
    assert wrong(conf) == "model.api_key_env: expected the name of an environment variable"


def test_invariant_12_the_value_of_a_secret_is_not_in_what_is_kept(conf: Path) -> None:
    conf.write_text(OPENAI + "api_key_env: HOME}")
    config = load(conf)
    assert isinstance(config.model, OpenAIConfig)
    value = secret(config.model.api_key_env)
    assert value is not None
    assert value == str(Path.home())
    assert value not in dump(config)
    assert secret(None) is None
    with pytest.raises(UserError, match="ROLLOUT_TEST_NOT_SET is not set"):
        secret("ROLLOUT_TEST_NOT_SET")


KEYS = st.sampled_from(
    ["run", "model", "run.dir", "model.turns", "tasks.count", "a.b", "model.engine", "[0]", "run.limits"]
)
VALUES = st.one_of(
    st.text(max_size=8), st.sampled_from(["{", "[1", "*a", "${", "!!x y", "null", "[1,2]", "{a: b}", "???"])
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(KEYS, VALUES), max_size=3))
def test_nothing_a_person_can_override_shows_a_traceback(conf: Path, overrides: list[tuple[str, str]]) -> None:
    try:
        load(conf, [f"{key}={value}" for key, value in overrides])
    except UserError as error:
        assert len(str(error).splitlines()) == 1
