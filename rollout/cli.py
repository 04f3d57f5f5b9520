"""The command line: the one place where the layers meet.

Exit status: 0 done; 2 the input is wrong, one line says how; 75 stopped with work left, --resume goes on; 1 anything
else. What a person can cause never shows a traceback. Ray is imported inside the commands that need it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

from rollout.config import find_conf, load
from rollout.config import options as parse_options
from rollout.errors import RolloutError, Stalled, UserError

STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: try again."""


class _Fail(click.ClickException):
    """One line on stderr and an exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # pyright: ignore[reportAttributeAccessIssue] - click declares it a constant

    def show(self, file: Any = None) -> None:
        click.echo(f"rollout: {' '.join(self.message.splitlines())}", err=True)


def _plainly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns what a command raises on purpose into its line and status."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        sys.path.insert(0, os.getcwd())  # a conf may name a module:Class beside it
        try:
            return command(*arguments, **options)
        except UserError as error:
            raise _Fail(str(error), 2) from error
        except RolloutError as error:
            raise _Fail(str(error), 1) from error
        except BrokenPipeError:
            raise  # whoever reads our output has seen enough: click ends without a word
        except OSError as error:
            if error.filename is None:
                _drop_output()
            raise _Fail(f"{error.filename or 'output'}: {error.strerror or error}", 1) from error

    return run


def _drop_output() -> None:
    """What could not be written is not to be tried again when Python ends: that would be a status of its own."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rollout-engine", prog_name="rollout")
def main() -> None:
    """Runs agent episodes at scale and leaves a dataset trainers can read."""


_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_run = click.argument("run")
_BREAKS = ["fork", "realign", "truncate", "per_turn"]
_GROUPS = ["keep", "drop", "error"]
_score = click.option("--score", metavar="NAME", help="Scores of `rollout rescore`; latest, or the recorded ones.")


@main.command()
@click.argument("conf")
@_overrides
@click.option("--address", help="Ray cluster to join; RAY_ADDRESS or a local one otherwise.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--force", is_flag=True, help="Resume although tasks, configuration or code differ; the run records it.")
@_plainly
def run(conf: str, overrides: tuple[str, ...], address: str | None, resume: bool, force: bool) -> None:
    """Runs the job CONF to its end."""
    config = load(find_conf(conf), overrides)
    from actors.job import run_job

    from rollout.summary import summary

    try:
        complete = run_job(config, address, resume or force, force)
    except Stalled as error:  # the work is kept, so the rest is said as after Ctrl-C
        click.echo(f"rollout: {' '.join(str(error).splitlines())}", err=True)
        complete = False
    click.echo(summary(config.run.dir))
    me, where = _typed_as(), shlex.quote(config.run.dir)
    if not complete:
        there = ["--address", address] if address else []
        again = shlex.join(["run", conf, *overrides, *there, "--resume"])
        click.echo(f"rollout: stopped with work left; go on with: {me} {again}", err=True)
        sys.exit(STOPPED)
    click.echo(f"Next:\n  {me} show {where}\n  {me} stats {where}")
    click.echo(f'  {me} query {where} "select status, count(*), avg(reward) from episodes group by 1"')


def _typed_as() -> str:
    """How this command is typed where it was started: by name if it is on the PATH, else by its path."""
    name, path = Path(sys.argv[0]).name, sys.argv[0]
    if name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m rollout"
    found = shutil.which(name)
    return name if found is not None and Path(found).samefile(path) else shlex.quote(path)


@main.command()
@click.argument("conf")
@_overrides
@click.option("--address", help="Ray cluster to join; RAY_ADDRESS or a local one otherwise.")
@click.option("--session", metavar="ID", help="Go on in this session of agent.sessions, or begin it.")
@click.option("--force", is_flag=True, help="Go on in run.dir although configuration or code differ; it records it.")
@_plainly
def chat(conf: str, overrides: tuple[str, ...], address: str | None, session: str | None, force: bool) -> None:
    """Talks with the agent of the job CONF, in the terminal; conversations are rows like any others."""
    config = load(find_conf(conf), overrides)
    from actors.chat import chat as chat_with

    chat_with(config, address, session, force)


@main.command()
@click.argument("conf")
@_overrides
@click.option("--address", help="Ray cluster to join; RAY_ADDRESS or a local one otherwise.")
@click.option("--codex-catalog", type=Path, metavar="FILE", help="Only writes Codex's model_catalog_json to FILE.")
@_plainly
def serve(conf: str, overrides: tuple[str, ...], address: str | None, codex_catalog: Path | None) -> None:
    """Serves the model of the job CONF to programs, over the APIs of OpenAI and Anthropic (docs/serving.md)."""
    config = load(find_conf(conf), overrides)
    from actors.serving import serve_model, write_catalog

    if codex_catalog is not None:
        write_catalog(config, codex_catalog)
    else:
        serve_model(config, address)


@main.command()
@click.argument("conf")
@_overrides
@click.option("--address", required=True, help="Jobs address of the cluster's head, like http://HOST:8265.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--no-wait", is_flag=True, help="Do not follow the log.")
@_plainly
def submit(conf: str, overrides: tuple[str, ...], address: str, resume: bool, no_wait: bool) -> None:
    """Runs the job CONF on a cluster, where it survives this command."""
    path = find_conf(conf)
    config = load(path, overrides)
    from actors.submit import submit_job

    sys.exit(submit_job(config, address, resume, follow=not no_wait))


@main.command()
@_run
@click.argument("episode", required=False)
@click.option("--trace", is_flag=True, help="What EPISODE took: calls, tokens, cost, agents, children.")
@_score
@_plainly
def show(run: str, episode: str | None, trace: bool, score: str | None) -> None:
    """Shows the episodes of RUN, or one of them in full."""
    from rollout.reading import show as show_run

    show_run(run, episode, score=score, trace=trace)


@main.command()
@_run
@click.argument("request", required=False)
@click.argument("answer", required=False)
@click.option("--by", help="Who answers, for the record.")
@click.option("--serve", "port", type=click.IntRange(0, 65535), help="Lists and takes answers over HTTP on this port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; elsewhere needs --key-env.")
@click.option("--key-env", help="Variable with the key that requests have to bring (Authorization: Bearer).")
@_plainly
def approve(
    run: str, request: str | None, answer: str | None, by: str | None, port: int | None, host: str, key_env: str | None
) -> None:
    """Shows the tool calls of RUN that wait for a person, or answers one.

    ANSWER is `approve`, a JSON object ({"decision": "deny", "reason": "..."}, or modify, redirect, terminate), or
    any text: the call is not made then, and the policy reads the text. With --serve: GET /requests lists, and
    POST /requests/REQUEST with {"answer": ANSWER} answers.
    """
    from rollout.approve_command import approve as approve_calls
    from rollout.approve_server import Doors

    approve_calls(run, request, answer, by, None if port is None else Doors(port, host, key_env))


@main.command()
@_run
@click.option("--json", "as_json", is_flag=True, help="Numbers for programs.")
@_score
@_plainly
def stats(run: str, as_json: bool, score: str | None) -> None:
    """Shows the numbers of RUN."""
    from rollout.reading import stats as stats_run

    stats_run(run, as_json, score=score)


@main.command()
@_run
@click.argument("sql")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table")
@_score
@_plainly
def query(run: str, sql: str, form: str, score: str | None) -> None:
    """Runs SQL over RUN: tables episodes, turns and tool_calls."""
    from rollout.reading import query as query_run

    query_run(run, sql, form, score=score)


@main.command()
@_run
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option("--resource", metavar="R", help="Whose verifier judges: a shipped name, module:Class or file.py:Class.")
@click.option("--weights", metavar="NAME=NUMBER,...", help="Reward is the sum of these times the score's components.")
@click.option("--name", help="Of the new version; given again, it goes on with it.  [default: score-1, score-2, ...]")
@click.option("--base", default="recorded", show_default=True, help="Without --resource: whose components are weighed.")
@click.option("--env", "environment", help="Which environment, where the run has several.")
@click.option("--concurrency", type=click.IntRange(min=1), default=64, show_default=True, help="Episodes at once.")
@click.option("--diff", nargs=2, metavar="A B", help="Only shows what differs between two versions of the scores.")
@_plainly
def rescore(run: str, diff: tuple[str, str] | None, **asked: Any) -> None:
    """Judges the episodes of RUN again, without generating; lists the versions there are when not told how."""
    from resources.catalog import code_digest, load_resource

    from rollout.rescore_command import Asked, list_versions, print_difference, rescore_run

    if diff is not None:
        print_difference(run, *diff)
    elif asked["resource"] is None and asked["weights"] is None:
        list_versions(run)
    else:
        asked["options"] = parse_options(asked["options"])
        _stoppable(lambda: rescore_run(run, Asked(**asked), load_resource, code_digest), "give the same command again")


@main.command()
@_run
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option("--resource", metavar="R", help="Another environment than the run's own.")
@click.option("--episodes", type=click.IntRange(min=1), help="Only so many, the first in the files.")
@click.option("--env", "environment", help="Which environment, where the run has several.")
@click.option("--concurrency", type=click.IntRange(min=1), default=64, show_default=True, help="Episodes at once.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each difference.")
@_plainly
def replay(run: str, options: tuple[str, ...], **asked: Any) -> None:
    """Makes the recorded tool calls of RUN again and judges again; exit status 1 when anything differs."""
    from resources.catalog import code_digest, load_resource

    from rollout.replay_command import Asked, replay_run

    mine = Asked(options=parse_options(options), **asked)
    same = _stoppable(lambda: replay_run(run, mine, load_resource, code_digest), "nothing was written")
    sys.exit(0 if same else 1)


def _stoppable(work: Callable[[], Any], left: str) -> Any:
    """What `work` gives; Ctrl-C is status 75 with a word on what is left."""
    try:
        return work()
    except KeyboardInterrupt:
        click.echo(f"rollout: stopped with work left; {left}", err=True)
        sys.exit(STOPPED)


@main.command()
@_run
@click.option("--episodes", type=click.IntRange(min=0), default=256, show_default=True, help="To recompute; 0: all.")
@click.option("--model", metavar="FOLDER", help="The weights the run began with; else those its job names.")
@click.option("--weights", multiple=True, metavar="VERSION=FOLDER", help="Weights of a later version; repeatable.")
@click.option("--dtype", help="bfloat16, float16 or float32; else the engine's.")
@click.option("--device", help="cpu, cuda, cuda:1, ...; else a GPU if there is one.")
@click.option("--mean-bound", default=0.02, show_default=True, help="Mean |difference| of logprobs, nats.")
@click.option("--share-bound", default=0.1, show_default=True, help="The same as a part of the mean |logprob|.")
@click.option("--json", "as_json", is_flag=True, help="Numbers for programs.")
@_plainly
def verify(run: str, episodes: int, as_json: bool, **asked: Any) -> None:
    """Checks every row of RUN, and its logprobs against a plain forward pass of its weights."""
    from actors.verify import Asked
    from actors.verify import verify as verify_run

    if not verify_run(run, Asked(episodes=episodes or None, **asked), as_json):
        sys.exit(1)


@main.command("eval")
@_run
@click.argument("run2", required=False)
@click.option("--threshold", default=1.0, show_default=True, help="A reward of at least so much is a pass.")
@click.option("--answer", metavar="REGEX", help="Its last match in the last message is what a sample votes for.")
@click.option("--json", "as_json", is_flag=True, help="Numbers for programs.")
@_score
@_plainly
def evaluate(
    run: str, run2: str | None, threshold: float, answer: str | None, as_json: bool, score: str | None
) -> None:
    """Evaluates RUN: pass@k, mean and majority@k; with RUN2 both side by side and a paired test."""
    from rollout.eval_view import evaluate as evaluate_runs

    evaluate_runs([run] if run2 is None else [run, run2], threshold, answer, as_json, score=score)


@main.command()
@_run
@click.option("--to", "to", required=True, metavar="FORMAT", help="trl, trl-async, verl, skyrl, prime-rl, slime, ...")
@click.option("--out", help="A .parquet or .jsonl file; RUN/export/FORMAT otherwise.")
@click.option("--breaks", type=click.Choice(_BREAKS), default="fork", show_default=True, help="Segment breaks.")
@click.option("--truncated", type=click.Choice(["keep", "mask", "drop"]), default="keep", show_default=True)
@click.option("--forks", type=click.Choice(["keep", "longest", "last", "error"]), help="Episodes of several samples.")
@click.option("--advantages", default="grpo", show_default=True, help="grpo, grpo_no_std, rloo, reinforce++, ...")
@click.option("--zero-variance", type=click.Choice(_GROUPS), default="keep", show_default=True)
@click.option("--incomplete", type=click.Choice(_GROUPS), help="Groups with too few scored episodes.")
@click.option("--min-reward", type=float, help="Formats of chats: only episodes with at least this reward.")
@_score
@_plainly
def export(run: str, **asked: Any) -> None:
    """Writes RUN for a named trainer (docs/export.md)."""
    from rollout.export.exporting import Asked
    from rollout.export.exporting import export as export_run

    click.echo(export_run(run, Asked(**asked)))


@main.group()
def env() -> None:
    """Resources: environments with tools and verifiers."""


@env.command("list")
@_plainly
def env_list() -> None:
    """Lists the shipped resources."""
    from resources.catalog import describe, names

    for name in names():
        entry = describe(name)
        click.echo(f"{name:12} {entry.summary}")


@env.command("test")
@click.argument("resource")
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option("--samples", type=click.IntRange(min=1), default=3, help="Tasks to try.")
@click.option("--seed", default=0)
@_plainly
def env_test(resource: str, options: tuple[str, ...], samples: int, seed: int) -> None:
    """Puts RESOURCE through the conformance test: a shipped name, module:Class or file.py:Class."""
    from resources.catalog import load_resource

    from rollout.conformance import check

    findings = asyncio.run(check(load_resource(resource, parse_options(options)), samples, seed))
    for finding in findings:
        click.echo(
            f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}{': ' + finding.detail if finding.detail else ''}"
        )
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@click.option("--path", type=click.Choice(["endpoint", "serve"]), default=None, help="Only one of the two.")
@click.option("--episodes", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--in-flight", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--latency", type=click.FloatRange(min=0), default=0.0, help="Seconds a completion takes.")
@click.option("--runners", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--hosts", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), help="Instead compares two jobs, in turn; see --compare.")
@click.option("--compare", type=click.Choice(["turns", "agent"]), default="turns", show_default=True)
@_plainly
def bench(path: str | None, rounds: int | None, compare: str, **asked: Any) -> None:
    """Measures what the engine itself costs a turn and holds in memory, with a scripted model.

    With --rounds it measures one thing against its absence: finished turns that are kept (--compare turns), or an
    agent with hooks, guardrails, rate limits, retries and prices (--compare agent).
    """
    from actors.bench import Asked
    from actors.bench import bench as run_bench

    run_bench((path,) if path else ("endpoint", "serve"), Asked(**asked), rounds, compare)
