"""A job's configuration: one YAML, composed by OmegaConf, validated once by pydantic, frozen ever after.

Unknown keys are refused with the nearest known one. Functions elsewhere take values, not this tree. `${here}` is the
folder of the file that it stands in, so that a conf can name what lies beside it wherever the job is started.
Secrets are named, never held: a key field ends in `_env` and holds the name of an environment variable, and a conf
takes no value from the environment, because the resolved configuration is kept with the run.
"""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from rollout.agents.section import AgentConfig
from rollout.errors import UserError, nearest
from rollout.job_section import JobConfig
from rollout.sections import (
    WHOLE,
    AnyModelConfig,
    DatasetConfig,
    LimitsConfig,
    MixedResourceConfig,
    ModelConfig,
    OpenAIConfig,
    ReplicatedConfig,
    ResourceConfig,
    RoutingConfig,
    RunConfig,
    SamplingConfig,
    SchedulerConfig,
    ScriptedConfig,
    Section,
    TasksConfig,
    VllmConfig,
)

__all__ = [
    "AgentConfig",
    "AnyModelConfig",
    "DatasetConfig",
    "JobConfig",
    "LimitsConfig",
    "MixedResourceConfig",
    "ModelConfig",
    "OpenAIConfig",
    "ReplicatedConfig",
    "ResourceConfig",
    "RoutingConfig",
    "RunConfig",
    "SamplingConfig",
    "SchedulerConfig",
    "ScriptedConfig",
    "Section",
    "TasksConfig",
    "VllmConfig",
    "dump",
    "find_conf",
    "load",
    "options",
    "secret",
    "validate",
]

PACKAGED = Path(__file__).parent / "conf"
"""Example jobs inside an installed wheel."""
CHECKOUT = Path(__file__).parent.parent / "conf"
"""The same jobs in a checkout."""
_ENGINES = ("vllm", "scripted", "openai")
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")
_HERE = "${here}"
_SHOWN = 80
"""Characters of a wrong value that an error shows at most."""


def find_conf(name: str) -> Path:
    """The file `name` stands for: a path, or the name of an example job. Raises UserError with the nearest one."""
    path = Path(name)
    if path.is_file():
        return path
    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    place = Path(*path.parts[1:]) if path.parts[:1] == ("conf",) else path
    if str(place.parent) in (".", "agents", "external"):  # not for any path that ends so: another job would be run
        for example in (folder / place, folder / f"{place}.yaml"):
            if example.is_file():
                return example
    beside = [str(file) for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    examples = [str(file.relative_to(folder)) for file in folder.rglob("*.yaml")]
    what = "is a folder, expected a YAML file" if name and path.is_dir() else "no such file"
    raise UserError(f"{name or repr(name)}: {what}{nearest(name, [*beside, *examples])}")


def load(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Composes `path` with its defaults and `key=value` overrides and validates the whole.

    Raises UserError with one line naming file, key, what was expected and the nearest known name.
    """
    merged = _compose(path, ())
    for override in overrides:
        merged = _overridden(merged, override)
    try:
        for key in _from_environment(OmegaConf.to_container(merged), ""):
            hint = "keys that end in _env name a variable"
            raise UserError(f"{path}: {key}: takes no value from the environment; {hint}")
        raw = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key or 'interpolation'}: {_first_line(error)}") from error
    return validate(raw, str(path))


def validate(raw: Any, origin: str) -> JobConfig:
    """A plain tree as a JobConfig; `origin` is named in the UserError."""
    if isinstance(raw, dict) and isinstance(model := cast(dict[str, Any], raw).get("model"), dict):
        cast(dict[str, Any], model).setdefault("engine", "vllm")
    try:
        return JobConfig.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [one for one in errors if one["type"] == "extra_forbidden"]  # a misspelt key is missing as well
        line = _explain([*unknown, *errors][0])
        raise UserError(f"{origin}: {' '.join(line.split())}") from None


def options(given: Sequence[str]) -> dict[str, Any]:
    """What `key=value` arguments say, as a section would. Raises UserError for one that says nothing."""
    merged = OmegaConf.create({})
    for one in given:
        merged = _overridden(merged, one)
    return cast(dict[str, Any], OmegaConf.to_container(merged))


def dump(config: JobConfig) -> str:
    """The resolved configuration as YAML, as it is kept with the run."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _compose(path: Path, above: tuple[Path, ...]) -> DictConfig:
    """`path` on top of the files its `defaults` list names, relative to it."""
    if path.resolve() in above:
        raise UserError(f"{path}: defaults: it includes itself")
    if not path.is_file():
        by = f", named by {above[-1].name}" if above else ""
        raise UserError(f"{path}: no such file{by}")
    try:
        own = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key or 'interpolation'}: {_first_line(error)}") from error
    except OSError as error:
        own = error.strerror or "a single value"  # OmegaConf's way to say that the file holds one
    if not isinstance(own, DictConfig):
        found = "a list" if isinstance(own, ListConfig) else own
        raise UserError(f"{path}: expected sections (run, model, resource, ...), found {found}")
    own = cast(DictConfig, OmegaConf.create(_placed(OmegaConf.to_container(own), str(path.parent.resolve()))))
    if "defaults" not in own:
        return own
    names = own.pop("defaults")
    if not isinstance(names, ListConfig) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: defaults: expected a list of files, relative to this one")
    parts = [_compose(path.parent / cast(str, name), (*above, path.resolve())) for name in names]
    try:
        return cast(DictConfig, OmegaConf.merge(*parts, own))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not go together with its defaults: {_first_line(error)}") from error


def _placed(value: Any, folder: str) -> Any:
    """A file's tree with its folder in place of `${here}`: what is merged of several files knows of none."""
    if isinstance(value, dict):
        return {key: _placed(inner, folder) for key, inner in cast(dict[Any, Any], value).items()}
    if isinstance(value, list):
        return [_placed(inner, folder) for inner in cast(list[Any], value)]
    return value.replace(_HERE, folder) if isinstance(value, str) else value


def _overridden(below: DictConfig, override: str) -> DictConfig:
    """`below` with one `key=value` on top; the value is YAML."""
    key, equals, _ = override.partition("=")
    shown = " ".join(override.split())[:_SHOWN]
    if not equals or not all(key.split(".")):
        raise UserError(f"{shown}: expected key=value, like model.replicas=2")
    try:
        return cast(DictConfig, OmegaConf.merge(below, OmegaConf.from_dotlist([override])))
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{shown}: cannot be set: {getattr(error, 'problem', None) or _first_line(error)}") from error


def _from_environment(value: Any, key: str) -> Iterator[str]:
    """Keys whose value is taken from the environment: it may be secret, and the resolved conf is kept with the run."""
    if isinstance(value, dict):
        for name, inner in cast(dict[str, Any], value).items():
            yield from _from_environment(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in cast(list[Any], value):
            yield from _from_environment(inner, key)
    elif isinstance(value, str) and _ENVIRONMENT.search(value):
        yield key


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _explain(error: ErrorDetails) -> str:
    """One validation error as `key: what was expected`."""
    if error["type"] == WHOLE:
        return error["msg"]
    place = _without_tag(error["loc"])
    key = ".".join(str(part) for part in place)
    if error["type"] == "extra_forbidden":
        siblings = _keys_at(place[:-1], cast(dict[str, Any], error).get("loc", ()))
        close = difflib.get_close_matches(str(place[-1]), siblings, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(siblings)}"
        return f"{key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{key}: missing; a value is needed"
    if error["type"] == "union_tag_invalid":
        engine = str(error.get("ctx", {}).get("tag"))
        return f"{key}.engine: there is no engine '{engine}'{nearest(engine, _ENGINES)}"
    if place[-1:] == ("[key]",):
        name = ".".join(str(part) for part in place[:-1])
        return f"{name}: expected a name of letters, digits, - and _ that begins with a letter"
    if key.endswith("_env"):
        return f"{key}: expected the name of an environment variable"  # and not its value, which may stand there
    given = error.get("input")
    shown = "" if isinstance(given, dict | list) else f", found {repr(given)[:_SHOWN]}"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key or 'the whole'}: expected keys and values{shown}"
    if error["type"] == "tuple_type":
        return f"{key}: expected a list{shown}"
    if error["type"] == "too_short":
        return f"{key}: expected {'names and sections' if key == 'resources' else 'a list that is not empty'}"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"


def _without_tag(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """pydantic puts the discriminator's value into the place: model.vllm.replicas."""
    if len(place) > 1 and place[0] == "model" and place[1] in _ENGINES:
        return ("model", *place[2:])
    return place


def _keys_at(place: Sequence[int | str], full: Sequence[int | str]) -> list[str]:
    """Known keys of the section at `place`."""
    models: list[type[BaseModel]] = [JobConfig]
    if place[:1] == ("resources",):  # what follows is a name, no key
        models, place = [MixedResourceConfig], place[2:]
    for part in place:
        models = [
            inner
            for model in models
            for name, info in model.model_fields.items()
            if name == part
            for inner in _models_in(info.annotation)
        ]
    tag = full[1] if len(full) > 1 and full[0] == "model" else None
    tagged = [model for model in models if "engine" in model.model_fields and tag in _literals(model)]
    return sorted({name for model in (tagged or models) for name in model.model_fields})


def _literals(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["engine"].annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for inner in get_args(annotation):
            yield from _models_in(inner)


def secret(name_of_variable: str | None) -> str | None:
    """The value of the environment variable a `*_env` key names. Raises UserError when it is not set."""
    if name_of_variable is None:
        return None
    value = os.environ.get(name_of_variable)
    if not value:
        raise UserError(f"model.api_key_env: the environment variable {name_of_variable} is not set")
    return value
