"""Packages of others that are used where they are installed, and not required."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rollout.errors import UserError, describe


def imported(module: str, requirement: str) -> Any:
    """The module. Raises UserError with what to install, and what kept it from being imported."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{module}: cannot be imported: {describe(error)}; pip install {requirement}") from error
