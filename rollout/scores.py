"""Other scores of a run's episodes, beside its rows: which versions there are, and how they are read.

RUN/scores/NAME.yaml   what a version is made with
RUN/scores/NAME/       its scores: a Delta table of SCORES, a row an episode

The rows themselves are never rewritten. A reader that asks for nothing gets the recorded scores; one that names a
version gets its `reward`, `reward_components` and `metrics` in their place (decisions/0022).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import pyarrow as arrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute as compute  # pyright: ignore[reportMissingTypeStubs]
import yaml

from rollout.dataset import open_table
from rollout.errors import UserError, describe, nearest
from rollout.rows import SCHEMA  # pyright: ignore[reportUnknownVariableType]
from rollout.storage import Place, folder, inside

pa, pc = cast(Any, arrow), cast(Any, compute)
"""They have no types."""
RECORDED, LATEST = "recorded", "latest"
"""The scores in the rows, and the version that was begun last."""
COLUMNS = ("reward", "reward_components", "metrics")
"""What a version has another value of."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS = ("episode_id", "task_index", "sample_index")
SCORES: Any = pa.schema(
    [
        *(cast(Any, SCHEMA).field(name) for name in (*_KEYS, *COLUMNS, "failure")),
        pa.field("seconds", pa.float64()),  # judging took so long, all attempts
        pa.field("scored_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""A version's row. `reward` is null where `failure` says what broke."""


@dataclass(frozen=True, slots=True)
class Version:
    """What one version of the scores is made with."""

    name: str
    created: str
    """ISO 8601, UTC."""
    resource: str | None = None
    """Whose verifier judged; None where scores were only weighed otherwise."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of that resource."""
    weights: dict[str, float] | None = None
    """The reward is the sum of these times the components; None leaves it to the verifier."""
    base: str = RECORDED
    """Without a resource: the version whose components are weighed."""
    environment: str = ""
    """Which of a run's environments is scored; the only one has the empty name."""
    first_task: int = 0
    end_task: int | None = None
    """Tasks from first_task on and before end_task are scored; the others keep their recorded scores."""
    code: str | None = None
    """sha256 of the resource's code."""
    engine: str = ""
    """Version of this package."""

    @property
    def table(self) -> str:
        """Its table, within the run."""
        return f"scores/{self.name}"

    def made_with(self) -> dict[str, Any]:
        """What has to be equal for two versions to be the same scores."""
        told = asdict(self)
        return {name: told[name] for name in ("resource", "options", "weights", "base", "environment", "code")}


def versions(run: Place) -> list[Version]:
    """The versions of a run's scores, the oldest first. Raises UserError for one whose file cannot be read."""
    names = [name.rpartition("/")[2] for name in _folder(run).names()]
    found = [_read(run, name.removesuffix(".yaml")) for name in names if name.endswith(".yaml") and name[0] != "."]
    return sorted(found, key=lambda version: (version.created, version.name))


def find(run: Place, name: str) -> Version | None:
    """The version a person names; None for `recorded`. Raises UserError with the nearest when there is none."""
    if name == RECORDED:
        return None
    known = {version.name: version for version in versions(run)}
    if name == LATEST and known:
        return list(known.values())[-1]
    if name not in known:
        raise UserError(f"{run}: no scores '{name}'{nearest(name, [RECORDED, *known])}")
    return known[name]


def check_name(name: str) -> str:
    """The name of a version to be. Raises UserError for one that no folder should have."""
    if not _NAME.fullmatch(name) or name in (RECORDED, LATEST):
        raise UserError(f"--name: {name}: expected letters, digits, '.', '_' or '-', and neither recorded nor latest")
    return name


def create(run: Place, version: Version) -> None:
    """Writes down what a version is made with. Raises UserError when somebody else has begun one of that name."""
    content = yaml.safe_dump(asdict(version), sort_keys=False, allow_unicode=True).encode()
    try:
        _folder(run).put(f"{version.name}.yaml", content, new=True)
    except FileExistsError:
        raise UserError(f"--name: {version.name}: somebody has begun scores of that name") from None


def overlaid(run: Place, table: Any, version: Version | str | None) -> Any:
    """A table of the run's rows with a version's scores in place of the recorded ones.

    `table` needs the columns `episode_id` and `task_index`; of `reward`, `reward_components` and `metrics` those it
    has are replaced, null where the version has no score. Rows of environments that the version does not cover, and
    all rows for None and `recorded`, stay as they are. Reads the scores of these episodes only, as far as the files'
    statistics allow. Raises UserError when there is no such version.
    """
    version = find(run, version) if isinstance(version, str) else version
    held = [name for name in COLUMNS if name in table.column_names]
    if version is None or not held or not table.num_rows:
        return table
    tasks = table["task_index"]
    ends = pc.min_max(tasks).as_py()
    within = (pc.field("task_index") >= ends["min"]) & (pc.field("task_index") <= ends["max"])
    scored = cast(Any, open_table(run, version.table)).to_pyarrow_dataset()
    scores = scored.to_table(
        columns=["episode_id", *held], filter=within & pc.field("episode_id").isin(table["episode_id"].combine_chunks())
    )
    places = pc.index_in(table["episode_id"], value_set=scores["episode_id"].combine_chunks())
    covered = _covers(version, tasks)
    for name in held:
        # Both in one column, and from where each row takes its value: no kernel chooses between maps.
        both = pa.chunked_array([*scores[name].chunks, *table[name].chunks], type=table[name].type)
        own = pa.array(range(scores.num_rows, scores.num_rows + table.num_rows))
        taken = both.combine_chunks().take(pc.if_else(covered, pc.cast(places, pa.int64()), own))
        table = table.set_column(table.column_names.index(name), table.schema.field(name), taken)
    return table


def covering(version: Version) -> str:
    """The rows that a version covers, as a condition in SQL."""
    last = "" if version.end_task is None else f" AND task_index < {version.end_task}"
    return f"(task_index >= {version.first_task}{last})"


def _covers(version: Version, tasks: Any) -> Any:
    after = pc.greater_equal(tasks, version.first_task)
    return after if version.end_task is None else pc.and_(after, pc.less(tasks, version.end_task))


def _folder(run: Place) -> Any:
    return folder(inside(run, "scores"))


def _read(run: Place, name: str) -> Version:
    file = inside(run, f"scores/{name}.yaml")
    try:
        told: Mapping[str, Any] = yaml.safe_load((_folder(run).read(f"{name}.yaml") or b"").decode())
        return Version(**told)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{file}: says not what scores are made with: {describe(error)}") from error
