"""`rollout chat` with sessions, without a cluster: what a person types, what they read, and the rows that are left."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from actors.chat import Chat
from resources.counter import Count, Counter
from rollout.agents.stored_sessions import open_sessions
from rollout.cli import main
from rollout.conduct import plain
from rollout.config import JobConfig, validate
from rollout.dataset import open_table
from rollout.episode import Setting
from rollout.errors import ResourceDown, RolloutError
from rollout.protocols import Policy
from rollout.run_folder import create_or_resume
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.template import BUNDLED, load_template
from rollout.tokens import TokenLedger
from rollout.trajectory import Agent, Completion, Limits, Prompt, Task

TEMPLATE = load_template(BUNDLED)


def job(folder: Path, **agent: Any) -> dict[str, Any]:
    return {
        "run": {"dir": str(folder / "run")},
        "resource": {"name": "counter"},
        "agent": {"name": "clerk", **agent},
        "model": {"engine": "scripted", "turns": ["Hello."]},
    }


def kept(folder: Path) -> JobConfig:
    return validate(job(folder, sessions={"store": "sqlite", "path": str(folder / "kept.db")}), "job")


class Talks:
    """Chats of one job, each typed beforehand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self._monkeypatch = kept(folder), monkeypatch

    async def __call__(
        self,
        session: str | None,
        typed: str,
        policy: Policy | Sequence[str],
        resume: bool,
        resource: Counter | None = None,
    ) -> str:
        """What the person reads."""
        self._monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        out = io.StringIO()
        section = self.config.agent.sessions
        assert section is not None
        run = create_or_resume(self.config, {"chat": "1"}, resume, False)
        sessions = await open_sessions(section, "clerk")
        resource = resource or Counter(count=1, target=2)
        setting = Setting(
            agent=Agent("clerk"),
            policy=ScriptedPolicy(TEMPLATE, policy) if isinstance(policy, Sequence) else policy,
            sessions=LocalSessions(SessionTable(resource)),
            limits=Limits(),
            new_ledger=partial(TokenLedger, TEMPLATE, hermes),
            resource="counter",
            model="scripted",
            conduct=plain,
            priced=lambda turns: 0.25 * len(turns),
        )
        console = Console(file=out, width=200)
        await Chat(self.config, run, console, sessions, session).talk(next(iter(resource.tasks(0))), setting)
        return out.getvalue()

    def rows(self) -> list[dict[str, Any]]:
        table: Any = open_table(self.config.run.dir)
        return sorted(table.to_pyarrow_table().to_pylist(), key=lambda row: row["sample_index"])


@pytest.fixture
def talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talks:
    return Talks(tmp_path, monkeypatch)


async def test_a_later_chat_goes_on_in_its_session_and_in_its_run(talks: Talks) -> None:
    first = await talks("ann", "I am Ann.\n/trace\n/reset\nSomebody else.\n/exit\n", ["Hello."], False)
    assert "session ann begins" in first and "$0.2500" in first
    again = await talks("ann", "Who am I?\n/sessions\n", ["Ann."], True)
    assert "session ann goes on behind 2 messages" in again
    assert "user: I am Ann." in again and "assistant: Hello." in again
    lines = again.replace("you ", "").splitlines()  # nobody ends the line that is typed
    listed = [line.split()[0] for line in lines if line.endswith(" UTC")]
    assert listed[0] == "ann" and len(listed) == 2, "the last that was spoken in comes first"
    rows = talks.rows()
    assert [row["sample_index"] for row in rows] == [0, 1, 2]
    assert [message["content"] for message in rows[2]["messages"]] == ["I am Ann.", "Hello.", "Who am I?", "Ann."]
    assert "I am Ann." not in str(rows[1]["messages"]), "/reset begins a session of its own"
    assert len({row["episode_id"] for row in rows}) == 3


async def test_a_chat_that_was_given_no_id_says_which_it_has(talks: Talks) -> None:
    said = await talks(None, "One.\n", ["Hello."], False)
    (id,) = [line.split()[1] for line in said.splitlines() if line.startswith("session ")]
    assert len(id) == 12
    again = await talks(id, "", ["Never asked."], True)
    assert f"session {id} goes on behind 2 messages" in again and len(talks.rows()) == 1


class Breaks:
    """Answers once, and not again."""

    def __init__(self) -> None:
        self.asked = 0

    async def complete(self, prompt: Prompt) -> Completion:
        self.asked += 1
        if self.asked > 1:
            raise OSError("no endpoint")
        return await ScriptedPolicy(TEMPLATE, ["Hello."]).complete(prompt)


async def test_a_model_that_breaks_is_told_in_a_line_and_the_person_goes_on(talks: Talks) -> None:
    broken = Breaks()
    said = await talks("ann", "One.\nTwo.\nThree.\n/exit\n", broken, False)
    assert broken.asked == 3, "nobody asks the same again at once"
    assert said.count("OSError: no endpoint; ") == 2
    again = await talks("ann", "/exit\n", ["To two and three."], True)
    assert "To two and three." in again, "what waits for an answer has it when the person comes back"
    assert [row["status"] for row in talks.rows()] == ["failed", "completed"]


async def test_two_chats_in_one_session_are_told_in_a_line(talks: Talks, tmp_path: Path) -> None:
    class Meanwhile:
        """Somebody else speaks in the session while this one thinks."""

        async def complete(self, prompt: Prompt) -> Completion:
            if prompt.turn == 0 and not (tmp_path / "spoken").exists():
                (tmp_path / "spoken").touch()
                section = talks.config.agent.sessions
                assert section is not None
                other = await (await open_sessions(section, "clerk")).named("ann")
                await other.hear(({"role": "user", "content": "Me first."},))
            return await ScriptedPolicy(TEMPLATE, ["Hello."]).complete(prompt)

    said = await talks("ann", "One.\nTwo.\n/exit\n", Meanwhile(), False)
    (line,) = [line for line in said.splitlines() if "Conflict" in line]
    assert line.startswith("Conflict: conversation ann has 3 events: number 2 is not the next, it has gone on ")
    last = talks.rows()[-1]
    assert [message["content"] for message in last["messages"]][-4:] == ["One.", "Me first.", "Two.", "Hello."]


async def test_an_environment_that_cannot_be_had_ends_the_chat_in_a_line(talks: Talks) -> None:
    class Down(Counter):
        """Has no session for anybody."""

        async def seed_session(self, task: Task, seed: int) -> Count:
            raise ResourceDown("no room")

    with pytest.raises(RolloutError, match="seed at counter: ResourceDown: no room"):
        await talks("ann", "One.\n", ["Hello."], False, Down(count=1, target=2))


def invoked(folder: Path, config: dict[str, Any], *arguments: str) -> Result:
    (file := folder / "job.yaml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(main, ["chat", str(file), *arguments])


def test_a_session_that_cannot_be_is_told_before_anything_starts(tmp_path: Path) -> None:
    told = "rollout: --session: the job keeps no sessions; expected agent.sessions on a disk: store json, sqlite\n"
    for sessions in (None, {}):
        done = invoked(tmp_path, job(tmp_path, sessions=sessions), "--session", "ann")
        assert (done.exit_code, done.output) == (2, told)
    place = {"store": "json", "path": str(tmp_path / "kept")}
    done = invoked(tmp_path, job(tmp_path, sessions=place), "--session", "../ann")
    assert done.exit_code == 2 and "expected an id of letters" in done.output
    assert not (tmp_path / "run").exists()


def test_the_run_of_a_job_is_none_to_chat_in(tmp_path: Path) -> None:
    create_or_resume(kept(tmp_path), {}, False, False)
    done = invoked(tmp_path, job(tmp_path))
    assert done.exit_code == 2 and "holds run " in done.output and done.output.count("\n") == 1


def test_nobody_talks_with_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = job(tmp_path, sub_agents={"one": {"use": "tool"}}, pipeline={"agents": ["one"]})
    Path("job.yaml").write_text(yaml.safe_dump(pipeline))
    said = CliRunner().invoke(main, ["chat", "job.yaml"])
    line = "rollout: agent.pipeline: nobody can talk with a pipeline; expected a job without one\n"
    assert (said.exit_code, said.output) == (2, line)
