"""What a person can get wrong and what can be seen before anything is started: one line, exit status 2, a run folder
that is as it was. All of it through the command line, as a person would."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from refused import Refused

from rollout.template import BUNDLED


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.sed=1", "job.yaml: run.sed: unknown key; did you mean 'seed'?"),
        ("rnu.dir=x", "job.yaml: rnu: unknown key; did you mean 'run'?"),
        ("model.sampling.temprature=1", "unknown key; did you mean 'temperature'?"),
        ("run.seed=abc", "job.yaml: run.seed: input should be a valid integer"),
        ("run.samples_per_task=0", "run.samples_per_task: input should be greater than 0, found 0"),
        ("run.over_sample=-1", "run.over_sample: input should be greater than or equal to 0, found -1"),
        ("scheduler.history=gone", "scheduler.history: gone: no run here: expected gone/episodes"),
        ("run.limits.turn_seconds=.nan", "run.limits.turn_seconds: input should be a finite number"),
        ("run=3", "job.yaml: run: expected keys and values, found 3"),
        ("run=[1]", "run=[1]: cannot be set"),
        ("run.dir=", "run.dir: input should be a valid string"),
        ("run.seed=[1,", "run.seed=[1,: cannot be set"),
        ("run.seed", "run.seed: expected key=value, like model.replicas=2"),
        ("model.engine=vlm", "model.engine: there is no engine 'vlm'; did you mean 'vllm'?"),
        ("model.turns=[]", "model.turns: expected a list that is not empty"),
        ("agent.tools=add", "agent.tools: expected a list, found 'add'"),
        ("agent.tools=[ad]", "agent.tools: counter has no tool 'ad'; did you mean 'add'?"),
        ("agent.tools=[add,add]", "agent.tools: 'add' stands there 2 times"),
        ("run.limits.episode_seconds=5", "run.limits.episode_seconds: 5 leaves nothing beside the 60 s"),
        ("resource.name=conter", "resource.name: no resource 'conter'"),
        ("resource.options.cuont=3", "resource counter has no option 'cuont'; did you mean 'count'?"),
        ("resource.options.count=abc", "resource counter: option count='abc': Input should be a valid integer"),
        ("resource.options.count=0", "resource counter: it gives no task"),
        ("model.parser=hermees", "found 'hermees'; did you mean 'hermes'?"),
        ("model.path=budnled", "model.path: budnled: no such folder; did you mean 'bundled'?"),
        ("model.chat_template=no.jinja", "model.chat_template: no.jinja: no such file"),
        ("run.dir=/dev/null", "run.dir: /dev/null: is a file, expected a folder"),
        ("run.dir=/dev/null/x", "run.dir: /dev/null/x: cannot be written to: Not a directory"),
    ],
)
def test_overrides(refused: Refused, override: str, line: str) -> None:
    assert line in refused.job(override)
    assert not Path("out/run.yaml").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", "bad.yaml: run: missing; a value is needed"),
        (b"- a\n- b\n", "bad.yaml: expected sections (run, model, resource, ...), found a list"),
        (b"42\n", "bad.yaml: expected sections (run, model, resource, ...), found a single value"),
        (b"hello\n", "bad.yaml: hello: unknown key"),
        (b"run:\n  dir: x\n bad: [1,\n", "bad.yaml:3: not YAML"),
        (b"run: {dir: x}\nrun: {dir: y}\n", "bad.yaml:2: not YAML: found duplicate key run"),
        (b"\xd3\x00\xff", "bad.yaml: not YAML: 'utf-8' codec can't decode"),
        (b'run: {dir: "${run.no}"}\n', "bad.yaml: run.dir: Interpolation key 'run.no' not found"),
        (b'run: {dir: "${"}\n', "bad.yaml: run.dir: "),
        (b'run: {dir: "???"}\n', "bad.yaml: run.dir: Missing mandatory value"),
        (b"defaults: [gone.yaml]\n", "gone.yaml: no such file, named by bad.yaml"),
        (b"defaults: job.yaml\n", "bad.yaml: defaults: expected a list of files"),
        (b"defaults: [bad.yaml]\n", "bad.yaml: defaults: it includes itself"),
        (b"defaults: [job.yaml]\nrun: [1]\n", "bad.yaml: does not go together with its defaults"),
    ],
)
def test_conf_files(refused: Refused, text: bytes, line: str) -> None:
    Path("bad.yaml").write_bytes(text)
    assert line in refused.job(conf="bad.yaml")


def test_a_conf_that_is_not_there_names_the_nearest(refused: Refused) -> None:
    assert refused.job(conf="jbo.yaml") == "jbo.yaml: no such file; did you mean 'job.yaml'?"
    assert refused.job(conf="demmo").endswith("did you mean 'demo.yaml'?")
    assert refused.job(conf="elsewhere/demo.yaml").startswith("elsewhere/demo.yaml: no such file")
    Path("folder").mkdir()
    assert refused.job(conf="folder").startswith("folder: is a folder, expected a YAML file")
    assert refused.job(conf="two\nlines").startswith("two lines: no such file")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("resources.b.name=conter", "resources.b.name: no resource 'conter', and no module:Class or .py file"),
        ("resources.b.options.cuont=1", "resources.b: resource counter has no option 'cuont'; did you mean 'count'?"),
        ("resources.b.options.count=0", "resources.b: resource counter: it gives no task"),
        ("resources.b.tasks.path=tasks.jsnl", "resources.b.tasks.path: tasks.jsnl: no such file"),
        ("resources.b.tasks.path=tasks.jsonl", "resources.b: tasks.jsonl:2: not JSON"),
        ("agent.tools=[ad]", "agent.tools: calculator and counter have no tool 'ad'; did you mean 'add'?"),
    ],
)
def test_one_of_several_environments(refused: Refused, override: str, line: str) -> None:
    Path("tasks.jsonl").write_text(GOOD + "{\n")
    first, second = "a: {name: calculator}", "b: {name: counter, options: {count: 2}}"
    model = "model: {engine: scripted, turns: [a]}"
    Path("mixed.yaml").write_text(f"run: {{dir: out}}\nresources: {{{first}, {second}}}\n{model}\n")
    assert refused.job(override, conf="mixed.yaml").startswith(line)


def test_the_first_task_of_each_environment_must_fit_the_model(refused: Refused) -> None:
    Path("long.jsonl").write_text('{"id": "a", "prompt": "' + "word " * 10**5 + '"}\n')
    resources = "resources: {a: {name: counter}, b: {name: counter, tasks: {path: long.jsonl}}}"
    Path("mixed.yaml").write_text(f"run: {{dir: out}}\n{resources}\nmodel: {{engine: scripted, turns: [a]}}\n")
    line = refused.job(conf="mixed.yaml")
    assert line.startswith("resources.b.tasks.path: long.jsonl: task 'a' opens with 400,098 tokens")


GOOD = '{"id": "a", "prompt": "hi"}\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"\n", "tasks.jsonl: holds no task"),
        (GOOD.encode() + b'{"id": "b", "prompt": \n', "tasks.jsonl:2: not JSON: Expecting value"),
        (GOOD.encode() + b'{"id": "b", "prompt": "\xff"}\n', "tasks.jsonl:2: not JSON: 'utf-8' codec"),
        (GOOD.encode() + b'{"id": "b", "promt": "x"}\n', "tasks.jsonl:2: promt: unknown key; did you mean 'prompt'?"),
        (GOOD.encode() + b'{"prompt": "x"}\n', "tasks.jsonl:2: id: expected a text that is not empty, found None"),
        (GOOD.encode() * 2, "tasks.jsonl:2: id 'a' is already the id of tasks.jsonl:1"),
        (b'{"id": "a"}\n', "tasks.jsonl:1: expected either prompt or messages"),
        (b'[{"id": "a"}]\n', "tasks.jsonl:1: expected an object"),
        (b'{"id": "a", "prompt": "x", "data": [1]}\n', "tasks.jsonl:1: data: expected an object, found list"),
        (b'{"id": "a", "messages": [{"role": "robot", "content": "x"}]}\n', "messages[0].role: expected one of"),
        (b'{"id": "a", "prompt": "x", "data": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", "tasks.jsonl:1: not JSON"),
        (
            b'{"id": "a", "prompt": "' + b"word " * 10**5 + b'"}\n',
            "tasks.path: tasks.jsonl: task 'a' opens with 400,098 tokens; the model's context has 8,192",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "text",
)
def test_task_files(refused: Refused, text: bytes, line: str) -> None:
    Path("tasks.jsonl").write_bytes(text)
    assert line in refused.job("tasks.path=tasks.jsonl")


def test_task_files_of_other_kinds(refused: Refused) -> None:
    Path("tasks.jsonl").write_text(GOOD)
    Path("tasks.parquet").write_bytes(b"PAR1 and nothing else")
    Path("folder").mkdir()
    gone = refused.job("tasks.path=taks.jsonl")
    assert gone == "tasks.path: taks.jsonl: no such file; did you mean 'tasks.jsonl'?"
    assert refused.job("tasks.path=folder") == "tasks.path: folder: is a folder, expected a JSONL or Parquet file"
    assert refused.job("tasks.path=tasks.parquet").startswith("tasks.parquet: not Parquet: ")


MINE = """from resources.counter import Counter
from rollout.resource import tool
class Mine(Counter):
    name = "mine"
"""


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\ndef y(:\n", "mine.py:2: SyntaxError: invalid syntax"),
        ("import no_such_module\n", "mine.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\ny = x / 0\n", "mine.py:2: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", "mine.py:1: SystemExit: 3"),
        ("x = 1\n", "resource.name: mine.py holds no subclass of Resource"),
        (MINE + "    def tasks(self, seed):\n        raise KeyError('x')\n", "mine.py:6: KeyError: 'x'"),
        (MINE + "    def tasks(self, seed):\n        yield 3\n", "mine.py: TypeError: tasks() gave int, expected Task"),
        (MINE + "    def tasks(self, seed):\n        return iter(())\n", "resource mine.py: it gives no task"),
        (MINE + "    def __init__(self):\n        open('/no/file')\n", "mine.py:6: FileNotFoundError"),
        (MINE + "    def __init__(self, path):\n        pass\n", "resource mine.py needs the option 'path'"),
        (
            MINE + "    @tool\n    async def go(self, session, x: 'No'):\n        pass\n",
            "mine.py: NameError: name 'No'",
        ),
    ],
)
def test_resource_files(refused: Refused, source: str, line: str) -> None:
    Path("mine.py").write_text(source)
    Path("own.yaml").write_text("run: {dir: out}\nresource: {name: mine.py}\nmodel: {engine: scripted, turns: [a]}\n")
    assert line in refused.job(conf="own.yaml")


def test_resources_that_are_not_there(refused: Refused) -> None:
    Path("mine.py").write_text(MINE)
    assert refused.job("resource.name=mien.py") == "resource.name: there is no file mien.py; did you mean 'mine.py'?"
    assert refused.job("resource.name=mine.py:Mien") == "resource.name: mine.py has no 'Mien'; did you mean 'Mine'?"
    assert refused.job("resource.name=no_module:X") == "resource.name: there is no module 'no_module'"
    assert refused.job("resource.name=.:X") == "resource.name: '.' is no module's name"


@pytest.fixture
def model(refused: Refused, tmp_path: Path) -> Path:
    """A copy of the bundled model's small files, and vllm.yaml, which can name it."""
    (folder := tmp_path / "model").mkdir()
    Path("vllm.yaml").write_text("run: {dir: out}\nresource: {name: counter, options: {count: 2}}\nmodel: {}\n")
    for file in (*BUNDLED.glob("*.json"), *BUNDLED.glob("*.jinja")):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("tokenizer.json", None, "model.path: model: no tokenizer.json in it"),
        ("tokenizer.json", "{}", "model.path: model: tokenizer.json: "),
        ("chat_template.jinja", None, "model.path: model: no chat template; give one with model.chat_template"),
        ("chat_template.jinja", "{% if %}", "model: chat template: line 1: "),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "refuses the conversation: TemplateError: no"),
        ("chat_template.jinja", "hello", "model.path: model: the model's chat template drops the policy's own turn"),
        ("config.json", None, "model.path: model: no config.json in it"),
        ("config.json", "{bad", "model.path: model/config.json: not JSON"),
    ],
)
def test_model_folders(refused: Refused, model: Path, file: str, text: str | None, line: str) -> None:
    (model / file).unlink() if text is None else (model / file).write_text(text)
    assert line in refused.job(f"model.path={model.name}", conf="vllm.yaml")


def test_a_model_folder_that_is_not_there_names_the_nearest(refused: Refused, model: Path) -> None:
    assert refused.job("model.path=modle").endswith("no such folder; did you mean 'model'?")
    model.rename("models")
    assert refused.job("model.path=./modles").startswith("model.path: ./modles: no such folder")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.max_model_len=9000", "model.max_model_len: 9000 is more than the 8192 positions of the model"),
        ("model.max_model_len=50", "task 'counter-0' opens with 120 tokens; the model's context has 50"),
        ("model.engine_args.max_num_sqs=3", "model.engine_args.max_num_sqs: vLLM has no such argument"),
    ],
)
def test_vllm(refused: Refused, model: Path, override: str, line: str) -> None:
    assert line in refused.job("model.path=model", override, conf="vllm.yaml")
