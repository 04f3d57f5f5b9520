"""What a folder of weights holds, read from the heads of its safetensors files: no tensor is loaded.

The format: eight bytes of length, little-endian, then JSON of names, dtypes, shapes and offsets, then the tensors
(https://github.com/huggingface/safetensors, Format).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rollout.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
_HEAD = struct.Struct("<Q")
_MOST = 100 << 20
"""Bytes a head may have; safetensors itself reads no more."""
_TIED = "lm_head.weight"


def check_weights(folder: Path, like: Shapes) -> None:
    """Raises UserError, in one line, unless the folder holds whole safetensors with these names and shapes."""
    shapes = read_shapes(folder)
    missing, unknown = sorted(like.keys() - shapes.keys()), sorted(shapes.keys() - like.keys())
    if unknown == [_TIED] or missing == [_TIED]:  # some savers write tied weights twice
        missing, unknown = [], []
    if missing:
        raise UserError(f"{folder}: {_these(missing)} missing; the model has {len(like)} tensors")
    if unknown:
        raise UserError(f"{folder}: the model has no {_these(unknown)}")
    for name in sorted(shapes.keys() & like.keys()):
        if shapes[name] != like[name]:
            raise UserError(f"{folder}: {name} has the shape {_shape(shapes[name])}, the model's {_shape(like[name])}")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a folder's safetensors, by name.

    Raises UserError for a folder without any, and for a file that is cut off or none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with safetensors, as save_pretrained writes it")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors in it; expected what save_pretrained writes")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _shapes_of(file)
    return shapes


def _shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with file.open("rb") as source:
            (length,) = _HEAD.unpack(source.read(_HEAD.size))
            if length > _MOST:
                raise ValueError(f"a head of {length} bytes")
            head = cast(dict[str, Any], json.loads(source.read(length)))
        head.pop("__metadata__", None)
        needed = _HEAD.size + length + max((entry["data_offsets"][1] for entry in head.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in head.items()}
    except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not safetensors: {error}") from error
    if (size := file.stat().st_size) < needed:
        raise UserError(f"{file}: cut off: has {size} of {needed} bytes")
    return shapes


def _these(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "()"
