"""The command line as a person uses it, for input that must be refused."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from rollout.cli import main

JOB = """
run: {dir: out}
resource: {name: counter, options: {count: 2}}
model: {engine: scripted, turns: [a]}
"""
NOBODY = "127.0.0.1:1"
"""No cluster: a job that is found good by mistake gets no further."""


class Refused:
    """Runs commands that must fail and gives the one line that they write."""

    def __call__(self, *arguments: str, status: int = 2) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == status, (result.output, result.exception)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.stdout == ""
        assert result.stderr.startswith("rollout: ") and result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip().removeprefix("rollout: ")

    def job(self, *overrides: str, conf: str = "job.yaml") -> str:
        """The same for a job, which is never started."""
        line = self("run", conf, *overrides, "--address", NOBODY)
        assert not Path("out/run.yaml").exists()
        return line
