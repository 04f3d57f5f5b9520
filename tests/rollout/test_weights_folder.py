"""Weights that do not fit the model are told in one line, before any replica hears of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from rollout.errors import UserError
from rollout.template import BUNDLED
from rollout.weights_folder import check_weights, read_shapes

LIKE = {"a": (2, 3), "b": (4,)}


def save(folder: Path, shapes: dict[str, tuple[int, ...]], name: str = "model", cut: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        head[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(end)
    (folder / f"{name}.safetensors").write_bytes(content[: len(content) - cut])
    return folder


def test_the_bundled_model_is_as_itself() -> None:
    shapes = read_shapes(BUNDLED)
    assert len(shapes) > 40
    check_weights(BUNDLED, shapes)


def test_weights_may_lie_in_several_files(tmp_path: Path) -> None:
    save(tmp_path, {"a": (2, 3)}, "model-00001-of-00002")
    check_weights(save(tmp_path, {"b": (4,)}, "model-00002-of-00002"), LIKE)


def test_tied_weights_may_be_saved_twice(tmp_path: Path) -> None:
    check_weights(save(tmp_path, {**LIKE, "lm_head.weight": (2, 3)}), LIKE)


@pytest.mark.parametrize(
    ("shapes", "line"),
    [
        ({"a": (2, 3)}, "b missing; the model has 2 tensors"),
        ({}, "a and 1 more missing; the model has 2 tensors"),
        ({**LIKE, "c": (1,)}, "the model has no c"),
        ({**LIKE, "b": (5,)}, "b has the shape 5, the model's 4"),
        ({"a": (3, 2), "b": (4,)}, "a has the shape 3x2, the model's 2x3"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, shapes: dict[str, tuple[int, ...]], line: str) -> None:
    with pytest.raises(UserError) as told:
        check_weights(save(tmp_path, shapes), LIKE)
    assert str(told.value) == f"{tmp_path}: {line}"


def test_no_folder_no_weights_cut_weights_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; expected one with safetensors"):
        read_shapes(tmp_path / "none")
    with pytest.raises(UserError, match=r"no \*.safetensors in it"):
        read_shapes(tmp_path)
    save(tmp_path, LIKE, cut=1)
    with pytest.raises(UserError, match=r"model.safetensors: cut off: has \d+ of \d+ bytes"):
        read_shapes(tmp_path)
    for content in (b"", b"\xff" * 20, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 8) + b'{"a": 1}'):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors: not safetensors"):
            read_shapes(tmp_path)
