"""A job that is right in a place that is wrong: another run's folder, no cluster, no endpoint, a full disk, a reader
that leaves. One line and a status each, and nothing of what was there is lost."""

from __future__ import annotations

import resource as os_limits
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from refused import JOB, NOBODY, Refused

from actors.check import check, make_resources
from rollout.config import load
from rollout.dataset import Committer
from rollout.run_folder import create_or_resume, locked

BARE = {
    "PATH": "/usr/bin:/bin",
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "PYTHONDONTWRITEBYTECODE": "1",  # Python does not notice when a full disk cuts a .pyc short
}


def begun() -> str:
    """Makes `out` a run of job.yaml that has no row yet; its id."""
    config = load(Path("job.yaml"))
    run = create_or_resume(config, check(config, make_resources(config)), resume=False, force=False)
    Committer(run.episodes, run.run_id)
    return run.run_id


def shell(command: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """`rollout` typed into a shell, where $ROLLOUT stands. No file may get more than `limit` bytes: to this process
    the disk is full then."""

    def restrict() -> None:
        if limit is not None:
            os_limits.setrlimit(os_limits.RLIMIT_FSIZE, (limit, limit))

    env = {**BARE, "ROLLOUT": f"{sys.executable} -m rollout", "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, preexec_fn=restrict)


def test_folder_of_another_run(refused: Refused) -> None:
    run_id = begun()
    held = refused("run", "job.yaml", "--address", NOBODY)
    assert held == f"run.dir: out: holds run {run_id} already; add --resume, or give another run.dir"
    differs = refused("run", "job.yaml", "run.seed=4", "--resume", "--address", NOBODY)
    assert differs == "run.dir: out: cannot resume: run.seed was 0, is 4 now; --force goes on all the same"
    with locked(Path("out")):
        assert "is running it" in refused("run", "job.yaml", "--resume", "--address", NOBODY)
    Path("out/run.yaml").write_text("{bad")
    assert refused("run", "job.yaml", "--resume", "--address", NOBODY).startswith("out/run.yaml: ")


def test_folder_of_something_else(refused: Refused) -> None:
    (other := Path("other")).mkdir()
    (other / "thesis.txt").write_text("ten years of work")
    assert refused.job("run.dir=other") == "run.dir: other: is not empty and holds no run; give another folder"
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_nothing_to_resume(refused: Refused) -> None:
    line = refused("run", "job.yaml", "--resume", "--address", NOBODY)
    assert line == "run.dir: out: nothing to resume, there is no run.yaml"
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (NOBODY, "no Ray cluster there: nothing answers"),
        ("no.such.host.invalid:6379", "no Ray cluster there: nothing answers"),
        ("somewhere", "expected HOST:PORT, auto or local"),
        ("http://127.0.0.1:8265", "rollout submit"),
        ("ray://127.0.0.1:10001", "not through Ray Client"),
    ],
)
def test_no_cluster(refused: Refused, monkeypatch: pytest.MonkeyPatch, address: str, line: str) -> None:
    said = refused("run", "job.yaml", "--address", address)
    assert said.startswith(f"--address: {address}: ") and line in said
    monkeypatch.setenv("RAY_ADDRESS", address)
    again = refused("run", "job.yaml")  # and not that `out` holds a run already
    assert again.startswith(f"RAY_ADDRESS: {address}: ") and line in again


def test_no_cluster_to_submit_to(refused: Refused) -> None:
    head = refused("submit", "job.yaml", "--address", "x:6379")
    assert head == "--address: expected http://HOST:8265, found 'x:6379'"
    nobody = refused("submit", "job.yaml", "--address", f"http://{NOBODY}")
    assert nobody.startswith(f"--address: http://{NOBODY}: no Ray cluster answers there")


@contextmanager
def answering(status: int) -> Iterator[str]:
    """An endpoint that answers everything so; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


@pytest.fixture
def endpoint(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Refused jobs of an endpoint."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    text = JOB.replace("model: {engine: scripted, turns: [a]}", "model: {engine: openai, base_url: x, name: m}")
    Path("endpoint.yaml").write_text(text)
    return lambda *overrides: refused.job(*overrides, conf="endpoint.yaml")


def test_no_endpoint(endpoint: Callable[..., str]) -> None:
    assert endpoint("model.base_url=h/v1") == "model.base_url: expected http(s)://HOST/v1, found 'h/v1'"
    nobody = endpoint(f"model.base_url=http://{NOBODY}/v1")
    assert nobody.startswith(f"model.base_url: http://{NOBODY}/v1: nothing answers there: ConnectError")


def test_endpoint_that_refuses_us(endpoint: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", "sk-of-nobody")
    with answering(401) as url:
        where = f"model.base_url={url}"
        assert endpoint(where) == f"model.api_key_env: {url} wants a key: name its variable (401)"
        refusal = endpoint(where, "model.api_key_env=ENDPOINT_KEY")
        assert refusal == f"model.api_key_env: {url} refuses the key in ENDPOINT_KEY (401)"
        unset = endpoint(where, "model.api_key_env=NO_SUCH_KEY")
        assert unset == "model.api_key_env: the environment variable NO_SUCH_KEY is not set"
    with answering(404) as url:  # some have no list of models: the job goes on
        assert endpoint(f"model.base_url={url}").startswith("--address: ")
        tokenizer = endpoint(f"model.base_url={url}", "model.tokenizer=bundeld")
        assert tokenizer == "model.tokenizer: bundeld: no such folder; did you mean 'bundled'?"


def test_reading_what_is_no_run(refused: Refused) -> None:
    Path("folder").mkdir()
    for place in ("gone", "folder", "job.yaml"):
        for command in (("show", place), ("stats", place), ("query", place, "select 1")):
            assert refused(*command) == f"{place}: no run here: expected {place}/episodes"


def test_reading_what_is_not_in_it(refused: Refused) -> None:
    begun()
    assert refused("show", "out", "nobody-3") == "nobody-3: no such episode: the run has none yet"
    assert "Parser Error" in refused("query", "out", "selec 1")
    assert 'Did you mean "episodes"?' in refused("query", "out", "select * from episode")


def test_env_test(refused: Refused) -> None:
    assert refused("env", "test", "conter").startswith("no resource 'conter'")
    assert refused("env", "test", "counter", "cuont=3").endswith("did you mean 'count'?")
    assert refused("env", "test", "counter", "count=[").startswith("count=[: cannot be set")
    source = "from resources.counter import Counter\nclass Bad(Counter):\n    name = 'bad'\n    verify = 3\n"
    Path("bad.py").write_text(source)
    done = shell("$ROLLOUT env test bad.py count=3")
    assert done.returncode == 1 and "FAIL gold scores 1.0: " in done.stdout and not done.stderr


@pytest.mark.parametrize("command", ["nothing", "run", "run x --no-such", "env tset", "query x y --format xml"])
def test_unknown_words(command: str) -> None:
    done = shell(f"$ROLLOUT {command}")
    assert done.returncode == 2 and done.stderr.startswith("Usage: ") and "Traceback" not in done.stderr


def test_port_taken() -> None:
    with answering(200) as url:
        port = url.split(":")[2].removesuffix("/v1")
        done = shell(f"$PYTHON -m rollout.scripted_endpoint --lines a --port {port}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"--port: {port}: " in done.stderr and "address already in use" in done.stderr


@pytest.mark.parametrize("command", ["env list", "stats out", 'query out "from range(100000)"', "--help"])
def test_a_reader_that_leaves(refused: Refused, command: str) -> None:
    begun()
    assert shell(f"$ROLLOUT {command} | true").stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_behind_a_report(refused: Refused) -> None:
    begun()
    done = shell("$ROLLOUT stats out > /dev/full")
    assert (done.returncode, done.stderr) == (1, "rollout: output: No space left on device\n")


def test_full_disk_before_the_first_row(refused: Refused) -> None:
    done = shell(f"$ROLLOUT run job.yaml --address {NOBODY}", limit=100)
    assert (done.returncode, done.stderr) == (1, "rollout: out/run.yaml: cannot write: File too large\n")
    assert refused("run", "job.yaml", "--address", NOBODY).startswith("--address: ")  # no run in the way


WRITER = """
import random, sys
import pyarrow
from rollout.dataset import Committer, write_file
from rollout.rows import SCHEMA

def rows(first, size):
    known = {"task_index": [first, first + 1], "sample_index": [0, 0], "task_id": [random.randbytes(size).hex()] * 2}
    return pyarrow.table({f.name: pyarrow.array(known.get(f.name, [None] * 2), f.type) for f in SCHEMA})

first = int(sys.argv[1])
committer = Committer("out", "run")
committer.commit([write_file("out", rows(first, 1))])
try:
    write_file("out", rows(first + 2, 200_000))
except OSError as error:
    print(error.strerror)
"""


def test_full_disk_for_the_rows(refused: Refused) -> None:
    """Anywhere; what a whole job makes of a full disk is tested on a real one."""
    Path("writer.py").write_text(WRITER)
    full = shell("$PYTHON writer.py 0", limit=100_000)
    assert (full.stdout, full.stderr) == ("File too large\n", "")
    assert len(list(Path("out").glob("*.parquet"))) == 1  # nothing half-written stays
    assert len(Committer("out", "run").done(1)) == 2
    freed = shell("$PYTHON writer.py 2")
    assert (freed.stdout, freed.stderr) == ("", "")
    assert len(Committer("out", "run").done(1)) == 4
