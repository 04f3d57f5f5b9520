"""A run on an object store: the same rows, guarantees and commands, against a real server, as S3 and as Google's."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import boto3
import pytest
from rich.console import Console
from stores import BUCKET, settings, storage
from test_dataset import row
from test_run_folder import DIGESTS, job

from rollout.compaction import due, merge
from rollout.dataset import Committer, Fenced, RowFile, open_table, write_file
from rollout.errors import UserError
from rollout.reading import query, show, stats
from rollout.rows import to_table
from rollout.run_folder import Run, check_folder, create_or_resume, locked, read_run, take_back
from rollout.storage import folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a server on this machine."""
    with storage() as url:
        yield url


@pytest.fixture(params=["s3", "gs"])
def place(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty prefix of a bucket, with the settings in the environment."""
    for name, value in settings(server).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=server).create_bucket(Bucket=BUCKET)
    return f"{request.param}://{BUCKET}/{abs(hash(request.node.name))}"


def start(place: str) -> Run:
    return create_or_resume(job(Path("unused"), run={"dir": place}), DIGESTS, resume=False, force=False)


def file(committer: Committer, *samples: tuple[int, int]) -> RowFile:
    return write_file(committer.folder, to_table([row(*sample) for sample in samples]))


def tasks(place: str) -> list[int]:
    table = open_table(place).to_pyarrow_table(columns=["task_index"])
    return sorted(int(str(task)) for task in table["task_index"].to_pylist())


def test_a_run_is_begun_resumed_and_refused_as_on_a_disk(place: str) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        check_folder(place, resume=True)
    with locked(place):
        run = start(place)
    assert (run.place, run.episodes) == (place, f"{place}/episodes")
    assert read_run(place) == run
    with pytest.raises(UserError, match=f"holds run {run.run_id} already"):
        start(place)
    config = job(Path("unused"), run={"dir": place, "seed": 3})
    with pytest.raises(UserError, match=r"run\.seed was 0, is 3 now"):
        create_or_resume(config, DIGESTS, resume=True, force=False)
    forced = create_or_resume(config, DIGESTS, resume=True, force=True)
    assert read_run(place) == forced
    Committer(run.episodes, run.run_id)
    take_back(run)
    check_folder(place, resume=False)


def test_of_two_that_begin_a_run_in_one_place_the_second_is_refused(place: str) -> None:
    here = folder(place)
    here.put("run.yaml", b"first", new=True)
    with pytest.raises(FileExistsError):
        here.put("run.yaml", b"second", new=True)
    assert here.read("run.yaml") == b"first"


def test_invariant_1_rows_are_committed_merged_and_swept(place: str) -> None:
    committer = Committer(f"{place}/episodes", "run")
    committer.take_over()
    for task in range(5):
        committer.commit([file(committer, (task, 0), (task, 1))])
    old = due(committer.files(), 128 << 20, 2)
    merged = merge(committer.folder, old)
    assert merged is not None
    before = open_table(place).to_pyarrow_dataset()
    committer.replace(old, merged)
    assert before.count_rows() == 10
    assert tasks(place) == sorted([0, 1, 2, 3, 4] * 2)
    file(committer, (7, 0))
    again = Committer(committer.folder, "run")
    assert again.take_over() == 1
    assert len(again.done(2)) == 10
    again.sweep(0)
    assert [name for name in folder(again.folder).names() if name.startswith("part-")] == [merged.path]
    with pytest.raises(Fenced):
        committer.commit([file(committer, (7, 0))])
    with pytest.raises(Fenced):
        committer.replace([merged], RowFile("part-other", 1, merged.rows))
    assert tasks(place) == sorted([0, 1, 2, 3, 4] * 2)


def test_a_run_is_read_with_the_same_commands(place: str) -> None:
    committer = Committer(f"{place}/episodes", "run")
    out = StringIO()
    console = Console(file=out, width=160)
    show(place, console=console)
    committer.commit([file(committer, (0, 0), (1, 0))])
    show(place, console=console)
    show(place, "run-1-0", console)
    stats(place, console=console)
    query(place, "select count(*) as n, (select count(*) from turns) as t from episodes", "json", console)
    said = out.getvalue()
    assert "no episodes yet" in said
    assert "run-1-0" in said
    assert '{"n":2,"t":0}' in said


def test_a_place_that_cannot_be_reached_is_named_in_one_line(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"{place.partition(':')[0]}://nobody/run"
    with pytest.raises(UserError, match=f"{nobody}: cannot be read: ") as caught:
        open_table(nobody)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"run\.dir: {nobody}: "):
        start(nobody)
    with pytest.raises(UserError, match=r"what://x: cannot be used"):
        folder("what://x")
    with pytest.raises(UserError, match="no run here"):
        open_table(place)


def test_a_file_that_breaks_off_is_not_there(place: str) -> None:
    here = folder(place)
    with pytest.raises(ValueError, match="off"), here.write("part-1") as begun:
        begun.write(b"half")
        raise ValueError("off")
    assert here.names() == []
    with here.write("part-1") as whole:
        whole.write(b"whole")
    assert (here.names(), here.read("part-1"), here.read("part-2")) == (["part-1"], b"whole", None)
    here.delete(["part-1", "part-2"])
    assert here.names() == []
