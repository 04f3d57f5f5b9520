"""The forward pass against plain softmax, and a run's verification from rows to verdict."""

import json
from array import array
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from actors import forward
from actors.forward import ForwardPass, batches, cut_top_k, cut_top_p
from actors.verify import Asked, look, verify
from rollout.config import validate
from rollout.dataset import Committer, write_file
from rollout.errors import UserError
from rollout.rows import to_table
from rollout.run_folder import Run
from rollout.sequences import Scored
from rollout.template import BUNDLED
from rollout.trajectory import (
    Completion,
    FinishReason,
    Lease,
    Message,
    Sampling,
    Score,
    Segment,
    StopReason,
    Task,
    Trajectory,
    Turn,
    VersionSpan,
)

ASKED = Asked(None, None, (), "float32", "cpu", 0.02, 0.1)


@pytest.fixture(scope="module")
def model() -> ForwardPass:
    return ForwardPass(BUNDLED, "float32", "cpu")


def sequence(length: int, seed: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Scored:
    generator = np.random.default_rng(seed)
    places = np.sort(generator.permutation(np.arange(1, length))[: length // 2])
    count = len(places)
    ids = generator.integers(0, 377, length)
    drawn = np.full(count, temperature, np.float32), np.full(count, top_p, np.float32), np.full(count, top_k)
    return Scored(f"e{seed}", ids, places, np.zeros(count), *drawn)


def test_logprobs_are_those_of_softmax_however_batched_and_cut(
    model: ForwardPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [sequence(length, seed, 0.7) for seed, length in enumerate((9, 40, 3, 25))]
    plain: Any = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    expected: list[np.ndarray] = []
    with torch.inference_mode():
        for one in sequences:
            told = (plain(torch.from_numpy(one.token_ids)[None]).logits[0] / 0.7).log_softmax(-1).numpy()
            expected.append(told[one.places - 1, one.token_ids[one.places]])
    whole = model.logprobs(sequences)
    monkeypatch.setattr(forward, "PIECE_LOGITS", 377 * 4 * 7)
    monkeypatch.setattr(forward, "BATCH_TOKENS", 60)
    pieces = model.logprobs(sequences)
    for told, once, again in zip(expected, whole, pieces, strict=True):
        assert once == pytest.approx(told, abs=1e-4)
        assert again == pytest.approx(told, abs=1e-4)


def test_batches_hold_neighbours_in_length_and_each_sequence_once() -> None:
    lengths = [5, 20_000, 7_000, 8_000, 6, 16_000]
    assert list(batches(lengths)) == [[1], [5], [3, 2], [4, 0]]
    assert list(batches([])) == []


def test_top_k_and_top_p_cut_as_vllm_does() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.25, 0.25, 0.25, 0.25]]).log()
    cut = cut_top_k(logits, torch.tensor([[2], [4]]))
    assert cut.softmax(-1)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert cut[1].equal(logits[1])
    assert cut_top_k(logits, torch.tensor([[1], [2]])).isfinite().sum(1).tolist() == [1, 4]  # ties stay
    nucleus = cut_top_p(logits, torch.tensor([[0.74], [0.01]]))
    assert nucleus.isfinite().sum(1).tolist() == [2, 1]
    assert cut_top_p(logits, torch.tensor([[0.76], [1.0]])).isfinite().sum(1).tolist() == [3, 4]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn((50, 40), generator=generator)
    chances = cut_top_p(drawn, torch.full((50, 1), 0.6)).softmax(-1)
    kept = torch.where(chances > 0, drawn.softmax(-1), 0.0)
    assert (kept.sum(1) >= 0.6 - 1e-6).all()
    assert (kept.sum(1) - torch.where(kept > 0, kept, 9.0).min(1).values < 0.6 + 1e-6).all()  # none too many


def test_a_token_that_is_cut_off_is_told(model: ForwardPass) -> None:
    (told,) = model.logprobs([sequence(30, 1, top_k=1)])
    assert set(told.tolist()) <= {0.0, -np.inf}
    assert -np.inf in told


def test_what_cannot_be_scored_is_one_line(model: ForwardPass, tmp_path: Path) -> None:
    foreign = sequence(5, 0)
    with pytest.raises(UserError, match="token id 999, the model has 377"):
        model.logprobs([replace(foreign, token_ids=np.full(5, 999))])
    with pytest.raises(UserError, match="cannot be loaded"):
        ForwardPass(tmp_path, "float32", "cpu")
    with pytest.raises(UserError, match="did you mean 'float32'"):
        ForwardPass(BUNDLED, "float23", "cpu")


def episode(model: ForwardPass, index: int) -> Trajectory:
    """Two turns of tokens; their logprobs are the model's own, at temperature 0.8."""
    known = sequence(16, index)
    (told,) = model.logprobs([replace(known, places=np.arange(1, 16), **SAMPLED)])
    turns: list[Turn] = []
    for first in (0, 8):
        sampled = slice(first + 4, first + 8)
        completion = Completion(
            FinishReason.STOP,
            array("i", known.token_ids[sampled].tolist()),
            array("f", told[first + 3 : first + 7]),
            (VersionSpan("default", 0, 4),),
            prompt_tokens=first + 4,
        )
        prompt = array("i", known.token_ids[first : first + 4].tolist())
        turns.append(Turn("agent", 0, prompt, completion, WORDS, (), None, Sampling(0.8)))
    messages = tuple(Message(role=role, content="words") for role in ("user", "assistant", "user", "assistant"))
    lease = Lease("run", Task(f"t{index}", messages[:1], index=index), 0, 1, True, 0)
    return Trajectory(lease, "words", "agent", "bundled", messages, tuple(turns), StopReason.DONE, score=Score(1.0))


WORDS = (Segment("content", "words"),)
SAMPLED: dict[str, Any] = {
    "temperature": np.full(15, 0.8, np.float32),
    "top_p": np.ones(15, np.float32),
    "top_k": np.zeros(15, np.int64),
}


@pytest.fixture(scope="module")
def episodes(model: ForwardPass) -> list[Trajectory]:
    return [episode(model, index) for index in range(6)]


def commit(run: Path, episodes: list[Trajectory], **model: Any) -> Path:
    job = {"run": {"dir": str(run)}, "resource": {"name": "counter"}, "model": {"path": "bundled", **model}}
    told = Run("run", "2026-01-01", validate(job, "test").model_dump(mode="json"), {})
    run.mkdir()
    (run / "run.yaml").write_text(
        yaml.safe_dump({name: getattr(told, name) for name in ("run_id", "created", "config", "digests", "forced")})
    )
    committer = Committer(str(run / "episodes"), "run")
    committer.commit([write_file(committer.folder, to_table(episodes))])
    return run


def test_a_run_whose_logprobs_are_its_weights_own_is_well(episodes: list[Trajectory], tmp_path: Path) -> None:
    run = commit(tmp_path / "run", episodes)
    console = Console(file=StringIO(), width=200)
    assert verify(run, ASKED, console=console)
    assert "6   every rule holds" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    report = look(run, ASKED)
    assert report.recomputed is not None
    found = report.recomputed.versions["default"]
    assert (found.tokens, found.outside, report.recomputed.episodes) == (48, 0, 6)
    assert found.max_abs is not None and found.max_abs < 1e-4
    part = look(run, replace(ASKED, episodes=2)).recomputed
    assert part is not None
    assert (part.episodes, part.versions["default"].tokens, report.checked.episodes) == (2, 16, 6)
    assert report.as_json()["ok"] is True


def shifted(completion: Completion) -> Completion:
    assert completion.logprobs is not None
    return replace(completion, logprobs=[*completion.logprobs[1:], completion.logprobs[0]])


CHANGES: dict[str, Callable[[Turn], Turn]] = {
    "logprobs of the next token": lambda turn: replace(turn, completion=shifted(turn.completion)),
    "another temperature": lambda turn: replace(turn, sampling=Sampling(2.0)),
    "another top_k": lambda turn: replace(turn, sampling=Sampling(0.8, top_k=1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_logprobs_that_are_not_the_weights_own_are_found(episodes: list[Trajectory], tmp_path: Path, name: str) -> None:
    changed = [replace(one, turns=tuple(CHANGES[name](turn) for turn in one.turns)) for one in episodes]
    report = look(commit(tmp_path / "run", changed), ASKED)
    assert report.findings == []
    assert "default" in report.excesses
    assert not report.ok


def test_other_weights_are_found(episodes: list[Trajectory], tmp_path: Path) -> None:
    other: Any = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    with torch.no_grad():
        for weights in other.parameters():
            weights.add_(torch.full_like(weights, 0.02))
    other.save_pretrained(tmp_path / "other")
    run = commit(tmp_path / "run", episodes)
    assert not look(run, replace(ASKED, model=str(tmp_path / "other"))).ok
    assert not look(run, replace(ASKED, weights=(f"0={tmp_path / 'other'}",))).ok
    with pytest.raises(UserError, match="--weights: 3: expected VERSION=FOLDER"):
        look(run, replace(ASKED, weights=("3",)))


def test_weights_that_a_trainer_published_last_are_found_by_themselves(
    episodes: list[Trajectory], tmp_path: Path
) -> None:
    def under(turn: Turn, version: str) -> Turn:
        spans = tuple(replace(span, version=version) for span in turn.completion.versions)
        return replace(turn, completion=replace(turn.completion, versions=spans))

    played = [
        replace(one, turns=tuple(under(turn, "3" if index else "2") for turn in one.turns))
        for index, one in enumerate(episodes)
    ]
    run = commit(tmp_path / "run", played)
    edition = {"number": 4, "version": 3, "folder": str(BUNDLED), "highest": 3}
    (run / "weights.json").write_text(json.dumps(edition))
    recomputed = look(run, ASKED).recomputed
    assert recomputed is not None
    assert {name: found.tokens for name, found in recomputed.versions.items()} == {"3": 40}
    assert recomputed.skipped == {"weights of version 2 are not known": 8}


def test_without_weights_the_rows_are_checked_and_the_rest_is_said(episodes: list[Trajectory], tmp_path: Path) -> None:
    run = commit(tmp_path / "run", episodes, engine="scripted", turns=["words"])
    report = look(run, ASKED)
    assert (report.ok, report.recomputed, report.checked.episodes) == (True, None, 6)
    assert "nobody knows the weights of engine 'scripted'" in (report.note or "")


def test_a_broken_row_is_named_and_not_compared(episodes: list[Trajectory], tmp_path: Path) -> None:
    lost = replace(episodes[0].turns[0], completion=replace(episodes[0].turns[0].completion, logprobs=[-1.0]))
    broken = replace(episodes[0], turns=(lost, *episodes[0].turns[1:]))
    report = look(commit(tmp_path / "run", [broken, *episodes[1:], episodes[2]]), ASKED)
    assert {(finding.rule, finding.episode_id) for finding in report.findings} == {
        ("what an engine can have sampled", "run-0-0"),
        ("one row a sample", "run-2-0"),
    }
    assert report.recomputed is not None
    assert report.recomputed.episodes == 5
    assert not report.ok
