"""What `rollout verify` says of a run: which rules its rows keep, and whether its logprobs are its weights' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rollout.database import opened
from rollout.dataset import open_table
from rollout.episode_view import visible
from rollout.findings import Checked, Finding, Known
from rollout.invariants import ORPHANS, check_rows, orphan
from rollout.mismatch import Mismatch, excesses
from rollout.storage import Place

BATCH_ROWS = 256
"""Rows that are held at once."""
SHOWN = 20
"""Findings on a terminal; --json gives all."""
_TWICE = "SELECT episode_id, count(*) AS n FROM all_rows GROUP BY 1 HAVING n > 1 ORDER BY 1"
_ORPHANS = """
SELECT episode_id, parent_episode_id AS parent FROM children c
WHERE NOT EXISTS (SELECT 1 FROM all_rows r WHERE r.episode_id = c.parent_episode_id) ORDER BY 1"""
_LOST = """
SELECT episode_id, child FROM (
    SELECT episode_id, json_extract_string(e.detail, '$.episode_id') AS child
    FROM all_rows, unnest(events) AS t(e) WHERE e.kind = 'child') n
WHERE NOT EXISTS (SELECT 1 FROM children c WHERE c.episode_id = n.child) ORDER BY 1, 2"""
_OPEN = "SELECT count(*) AS n FROM (SELECT group_id FROM episodes GROUP BY 1 HAVING count(*) < ?)"
_CHOSEN = "SELECT episode_id FROM all_rows WHERE completion_tokens > 0 ORDER BY md5(episode_id)"


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Logprobs of a part of a run, held against a forward pass."""

    episodes: int
    dtype: str
    device: str
    versions: Mapping[str, Mismatch]
    """By version of the weights."""
    skipped: Mapping[str, int] = field(default_factory=dict[str, int])
    """Sampled tokens that were not compared, by cause."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found. `note` says why no logprob was recomputed, when none was."""

    checked: Checked
    findings: Sequence[Finding]
    open_groups: int
    """Groups with fewer rows than samples: work left, or the run still goes on."""
    recomputed: Recomputed | None
    note: str | None
    mean_bound: float
    share_bound: float

    @property
    def excesses(self) -> Mapping[str, Sequence[str]]:
        """What is beyond the bounds, by version."""
        if self.recomputed is None:
            return {}
        versions = self.recomputed.versions
        told = {name: excesses(found, self.mean_bound, self.share_bound) for name, found in versions.items()}
        return {name: lines for name, lines in told.items() if lines}

    @property
    def ok(self) -> bool:
        """Every rule holds and no logprob is beyond the bounds."""
        return not self.findings and not self.excesses

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        if self.recomputed is not None:
            for name, mismatch in self.recomputed.versions.items():
                values["recomputed"]["versions"][name]["share"] = mismatch.share
        return values | {"ok": self.ok, "excesses": dict(self.excesses)}


def choose(run: Place, episodes: int | None) -> frozenset[str]:
    """So many episodes with sampled tokens, always the same of the same rows; all for None.

    Raises UserError when there is no run at `run`.
    """
    with opened(run) as database:
        rows = database.rows(_CHOSEN) if episodes is None else database.rows(f"{_CHOSEN} LIMIT {episodes:d}")
    return frozenset(row["episode_id"] for row in rows)


def check_run(
    run: Place, known: Known, samples_per_task: int, each: Callable[[Any, frozenset[str]], None]
) -> tuple[list[Finding], Checked, int]:
    """What is wrong with a run's rows, what was looked at, and how many groups are not complete.

    `each` is given every batch of rows and the episodes of it that something is wrong with.
    Raises UserError when there is no run at `run`.
    """
    with opened(run) as database:
        twice = database.rows(_TWICE)
        still_open: int = database.rows(_OPEN, samples_per_task)[0]["n"]
        orphans, lost = database.rows(_ORPHANS), database.rows(_LOST)
    findings = [Finding("one row a sample", row["episode_id"], f"has {row['n']} rows") for row in twice]
    findings += [orphan(row["episode_id"], row["parent"]) for row in orphans]
    findings += [Finding(ORPHANS, row["episode_id"], f"its child {row['child']} has no row") for row in lost]
    checked = Checked()
    rows = cast(Any, open_table(run)).to_pyarrow_dataset()
    for batch in rows.to_batches(batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1):
        if batch.num_rows:
            found, seen = check_rows(batch, known)
            findings += [finding for finding in found if finding.rule != ORPHANS or finding not in findings]
            checked += seen
            each(batch, frozenset(finding.episode_id for finding in found))
    return findings, checked, still_open


def render(report: Report) -> RenderableType:
    """The report for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for name, text in _lines(report):
        table.add_row(name, text)
    shown = [Text(f"FAIL {one.rule}: {visible(one.episode_id)}: {visible(one.detail)}") for one in report.findings]
    shown = [*shown[:SHOWN], *_more(len(shown) - SHOWN)]
    beyond = [Text(f"FAIL logprobs, version {name}: {line}") for name, told in report.excesses.items() for line in told]
    return Group(table, *shown, *beyond)


def _more(count: int) -> list[Text]:
    return [Text(f"... and {count:,} more; --json gives all")] if count > 0 else []


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    checked, rules = report.checked, Counter(finding.rule for finding in report.findings)
    told = ", ".join(f"{name} {count:,}" for name, count in rules.most_common()) or "every rule holds"
    yield "episodes", f"{checked.episodes:,}   {told}"
    if checked.segments:
        counted = checked.segments - checked.uncounted
        part = f"{checked.continued:,} of {counted:,} continue what was sampled" if counted else "no counts of prompts"
        yield "segments", part + (f"; {checked.uncounted:,} uncounted by the engine" if checked.uncounted else "")
        yield "loss mask", f"{checked.ones:,} ones for {checked.sampled:,} tokens that the engine sampled"
    if report.open_groups:
        yield "groups", f"{report.open_groups:,} not complete"
    if report.recomputed is None:
        yield "logprobs", f"not recomputed: {report.note}"
        return
    again = report.recomputed
    yield "logprobs", f"of {again.episodes:,} episodes, by a forward pass in {again.dtype} on {again.device}"
    for name, mismatch in again.versions.items():
        yield from _mismatch(f"version {name}", mismatch)
    for cause, count in again.skipped.items():
        yield "skipped", f"{count:,} tokens: {cause}"


def _mismatch(name: str, found: Mismatch) -> Iterator[tuple[str, str]]:
    outside = f", {found.outside:,} cut off by top_k or top_p" if found.outside else ""
    yield f"  {name}", f"{found.tokens:,} tokens{outside}"
    if found.mean_abs is None:
        return
    share = f"{found.share:.1%} of the mean |logprob| of {found.mean_logprob:.3g}"
    yield "  |difference|", f"mean {found.mean_abs:.3g} ({share}), p99 {found.p99_abs:.3g}, max {found.max_abs:.3g}"
    spread = f"± {found.ratio_std:.3g}, {found.ratio_min:.3g} to {found.ratio_max:.3g}"
    yield "  ratio", f"mean {found.ratio_mean:.6f} {spread}"
    yield "  k3 KL", f"{found.k3:.3g}"
