"""What a program is started with: its arguments, environment, files and standard input. Pure.

Base URL and key are in its environment, and in files of its home that no one else reads: whoever sees the arguments of
all processes of a machine sees neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from rollout.external.section import ExternalConfig
from rollout.trajectory import Json, Message, Task

_PLACE = re.compile(r"\{(data(?:\.[\w-]+)+|[a-z_]+)\}")
_OPEN = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LOGNAME", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
_TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_BUILT_IN = (*_OPEN, *_TRUST)
"""Variables that every program gets: what it needs to be found and to speak, nothing of whoever started the job."""
_OF_ENGINES = ("HOME", "DOCKER_HOST", "XDG_RUNTIME_DIR")
_INSIDE_WORKSPACE, _INSIDE_HOME = "/rollout/workspace", "/rollout/home"
"""The two folders as a container has them."""


@dataclass(frozen=True, slots=True)
class Around:
    """What one episode's program is told of it."""

    task: Task
    opening: tuple[Message, ...]
    """How the conversation opens that the resource has for it."""
    instructions: str
    """The system message of the agent or the resource."""
    model: str
    origin: str
    """Scheme, host and port of the gateway."""
    token: str
    workspace: str
    home: str

    @property
    def instruction(self) -> str:
        """What is to be done, in one text."""
        said = [message["content"] for message in self.opening if message["role"] != "system"]
        return "\n\n".join(text for text in said if text)

    @property
    def base(self) -> str:
        """Of all routes of the episode."""
        return f"{self.origin}/e/{self.token}"


@dataclass(frozen=True, slots=True)
class Launch:
    """A process that is to be started."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    stdin: str
    cleanup: tuple[str, ...] = ()
    """What is run when it had to be killed: a container does not end with whoever started it."""


def launch(config: ExternalConfig, around: Around, secrets: Mapping[str, str], environ: Mapping[str, str]) -> Launch:
    """The process of one episode; `environ` is that of this process."""
    stdin = around.instruction if config.stdin else ""
    passed = {name: secrets[name] for name in config.pass_env}
    if config.image is None:
        env = {name: environ[name] for name in _BUILT_IN if name in environ}
        env |= {"HOME": around.home, **told(config, around), **passed}
        return Launch(_filled(config.command, around), env, stdin)
    inside = _inside(around)
    given = {"HOME": inside.home, **told(config, inside), **passed}
    own = {name: environ[name] for name in (*_BUILT_IN, *_OF_ENGINES) if name in environ}
    # -e NAME passes a variable on with the value that it has for docker itself, so that none is in its arguments; but
    # those that docker needs for itself are no secrets.
    variables = [f"{key}={value}" if key in own or key == "HOME" else key for key, value in given.items()]
    name = Path(around.workspace).parent.name  # nobody else's
    argv = (
        *(config.engine, "run", "--rm", "--init", "--interactive", "--name", name, "--network", config.network),
        *("--volume", f"{around.workspace}:{inside.workspace}", "--volume", f"{around.home}:{inside.home}"),
        *("--workdir", inside.workspace, *(part for variable in variables for part in ("--env", variable))),
        *(*config.engine_args, config.image, *_filled(config.command, inside)),
    )
    return Launch(argv, {**given, **own}, stdin, (config.engine, "kill", name))


def told(config: ExternalConfig, around: Around) -> dict[str, str]:
    """Where the model is and how it is reached, and what the conf adds."""
    found: dict[str, str] = {}
    if "openai" in config.api:
        found |= {"OPENAI_BASE_URL": f"{around.base}/v1", "OPENAI_API_BASE": f"{around.base}/v1"}
        found["OPENAI_API_KEY"] = around.token
    if "anthropic" in config.api:
        found |= {"ANTHROPIC_BASE_URL": around.base, "ANTHROPIC_API_KEY": around.token}
    return found | {name: filled(text, around, secret=True) for name, text in config.env.items()}


def files(config: ExternalConfig, around: Around) -> dict[str, str]:
    """Texts of the files in the program's home, by their paths there."""
    seen = _inside(around) if config.image is not None else around
    return {path: filled(text, seen, secret=True) for path, text in config.files.items()}


def posted(config: ExternalConfig, around: Around, seconds: float) -> dict[str, Json]:
    """What a server is sent that runs programs."""
    task = around.task
    return {
        "base_url": f"{around.base}/v1",
        "anthropic_base_url": around.base,
        "mcp_url": f"{around.base}/mcp",
        "key": around.token,
        "model": around.model,
        "instruction": around.instruction,
        "instructions": around.instructions,
        "task": {"id": task.id, "messages": list(around.opening), "data": dict(task.data)},
        "seconds": seconds,
        "env": {name: filled(text, around, secret=True) for name, text in config.env.items()},
    }


def filled(text: str, around: Around, secret: bool = False) -> str:
    """A text with what its places stand for; what is no place stays as it is. Without `secret` neither key nor
    address is one."""
    values = {
        "instruction": around.instruction,
        "instructions": around.instructions,
        "model": around.model,
        "workspace": around.workspace,
        "home": around.home,
        "task_id": around.task.id,
    }
    if secret:
        base = around.base
        values |= {"base_url": f"{base}/v1", "anthropic_url": base, "mcp_url": f"{base}/mcp", "key": around.token}

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        return _data(around.task, name, found.group()) if name.startswith("data.") else values.get(name, found.group())

    return _PLACE.sub(value, text)


def _filled(command: tuple[str, ...], around: Around) -> tuple[str, ...]:
    return tuple(filled(part, around) for part in command)


def _data(task: Task, name: str, otherwise: str) -> str:
    value: Json = task.data
    for key in name.split(".")[1:]:
        if not isinstance(value, Mapping) or key not in value:
            return otherwise
        value = cast(Mapping[str, Json], value)[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _inside(around: Around) -> Around:
    return replace(around, workspace=_INSIDE_WORKSPACE, home=_INSIDE_HOME)
