"""Task files: what is read from them, and where they are wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.counter import Counter
from rollout.config import TasksConfig
from rollout.errors import UserError
from rollout.resource import Resource
from rollout.tasks import check_tasks, count_tasks, read_tasks
from rollout.trajectory import Task


class Taskless(Resource):
    """Has no tasks of its own."""

    name = "taskless"


def jsonl(folder: Path, *lines: Any) -> TasksConfig:
    """A task file of these lines; text is written as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (path := folder / "tasks.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return TasksConfig(path=str(path))


def parquet(folder: Path, rows: list[dict[str, Any]]) -> TasksConfig:
    pq.write_table(pa.Table.from_pylist(rows), path := folder / "tasks.parquet")
    return TasksConfig(path=str(path))


def read(config: TasksConfig) -> list[Task]:
    return list(read_tasks(config, Taskless(), 0))


FEW_SHOT = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1+1"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "2", "tool_call_id": "a"},
]


def test_tasks_come_in_order_with_what_is_in_their_lines(tmp_path: Path) -> None:
    config = jsonl(
        tmp_path, {"id": "a", "prompt": "1+1 für €"}, "", {"id": "b", "messages": FEW_SHOT, "data": {"x": [1]}}
    )
    first, second = read(config)
    assert first == Task("a", ({"role": "user", "content": "1+1 für €"},), {}, 0)
    assert (second.index, second.data, list(second.messages)) == (1, {"x": [1]}, FEW_SHOT)
    assert count_tasks(config, Taskless()) == 2
    assert [task.id for task in read(config.model_copy(update={"count": 1}))] == ["a"]
    assert check_tasks(config) == check_tasks(config)


def test_parquet_holds_the_same_without_nulls_for_keys_of_other_rows(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "Go.", "messages": None, "data": '{"x": 1}'},
        {"id": "b", "prompt": None, "messages": [*FEW_SHOT[:2], {"role": "user", "content": "?"}], "data": None},
    ]
    config = parquet(tmp_path, rows)
    first, second = read(config)
    assert (first.data, first.messages) == ({"x": 1}, ({"role": "user", "content": "Go."},))
    assert second.messages == (*FEW_SHOT[:2], {"role": "user", "content": "?"})
    assert (count_tasks(config, Taskless()), check_tasks(config) is None) == (2, False)


OK = {"id": "a", "prompt": "Go."}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected an object"),
        ({"prompt": "x"}, "id: expected"),
        ({"id": "", "prompt": "x"}, "id: expected"),
        ({"id": 5, "prompt": "x"}, "id: expected a text that is not empty, found 5"),
        ({"id": "\ud800", "prompt": "x"}, "id: expected"),
        ({"id": "b"}, "either prompt or messages"),
        ({"id": "b", "prompt": "x", "messages": []}, "either prompt or messages"),
        ({"id": "b", "prompt": 5}, "prompt: expected a text, found int"),
        ({"id": "b", "prompt": "x\ud800"}, "prompt: expected a text"),
        ({"id": "b", "promt": "x"}, "promt: unknown key; did you mean 'prompt'"),
        ({"id": "b", "prompt": "x", "data": []}, "data: expected an object, found list"),
        ({"id": "b", "messages": []}, "messages: expected a list"),
        ({"id": "b", "messages": ["x"]}, r"messages\[0\]: expected an object"),
        ({"id": "b", "messages": [FEW_SHOT[0], {"role": "user"}]}, r"messages\[1\].content: expected a text"),
        ({"id": "b", "messages": [{"role": "me", "content": ""}]}, r"messages\[0\].role: .*found 'me'"),
        ({"id": "b", "messages": [{"role": "user", "content": "", "tool_calls": [{}]}]}, "tool_calls: expected"),
        ({"id": "b", "messages": [{"role": "user", "content": "", "tool_calls": "x"}]}, "tool_calls: expected"),
        (OK, r"tasks.jsonl:3: id 'a' is already the id of .*tasks.jsonl:1"),
    ],
)
def test_a_wrong_line_is_named_with_what_was_expected(tmp_path: Path, line: Any, said: str) -> None:
    config = jsonl(tmp_path, OK, "", line)
    with pytest.raises(UserError, match=said) as caught:
        check_tasks(config)
    assert str(caught.value).startswith(f"{tmp_path / 'tasks.jsonl'}:3: ")
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_names_its_line(tmp_path: Path) -> None:
    (path := tmp_path / "tasks.jsonl").write_bytes(b'{"id": "a", "prompt": "x"}\n{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"tasks.jsonl:2: not JSON"):
        check_tasks(TasksConfig(path=str(path)))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "a", "prompt": "x"}, {"id": "b", "prompt": None}], "row 2: expected either"),
        ([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}], "row 2: id 'a' is already the id of .*row 1"),
        ([{"id": "a", "prompt": "x", "data": "{"}], "row 1: data: not JSON"),
        ([{"id": "a", "prompt": "x", "answer": 5}], "answer: unknown key"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_tasks(parquet(tmp_path, rows))


def test_files_that_are_not_there_not_parquet_or_empty_are_named(tmp_path: Path) -> None:
    jsonl(tmp_path, OK)
    with pytest.raises(UserError, match=r"no such file; did you mean .*tasks\.jsonl"):
        check_tasks(TasksConfig(path=str(tmp_path / "task.jsonl")))
    (tmp_path / "odd.parquet").write_text("no")
    with pytest.raises(UserError, match="not Parquet"):
        check_tasks(TasksConfig(path=str(tmp_path / "odd.parquet")))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no task"):
        check_tasks(TasksConfig(path=str(tmp_path / "empty.jsonl")))


def test_invariant_8_the_digest_follows_the_files_content(tmp_path: Path) -> None:
    before = check_tasks(jsonl(tmp_path, OK))
    assert check_tasks(jsonl(tmp_path, {**OK, "prompt": "Stop."})) != before
    assert check_tasks(jsonl(tmp_path, OK)) == before
    assert check_tasks(TasksConfig()) is None


def test_a_resources_own_tasks_are_taken_one_by_one() -> None:
    endless = read_tasks(TasksConfig(), Counter(), 0)
    assert [next(endless).index for _ in range(3)] == [0, 1, 2]
    assert len(list(read_tasks(TasksConfig(count=2), Counter(), 0))) == 2
    assert count_tasks(TasksConfig(count=2), Counter()) == 2
    with pytest.raises(UserError, match="taskless has no tasks"):
        read(TasksConfig())


def test_a_tasks_number_is_its_place_whatever_the_resource_says() -> None:
    class Odd(Taskless):
        def tasks(self, seed: int) -> Iterator[Task]:
            return iter([Task("a", (), {}, 7), Task("b", (), {}, 7)])

    assert [task.index for task in read_tasks(TasksConfig(), Odd(), 0)] == [0, 1]
