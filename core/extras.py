"""Packages of the extra ``vision``, imported when they are needed and named when they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import MissingExtraError

#: Import name -> name to install, where they differ.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}


def vision_module(name: str) -> Any:
    """Import the module ``name``.

    Raises
    ------
    MissingExtraError
        It, or a package that it needs, is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise missing_vision(error) from error


def missing_vision(error: ModuleNotFoundError) -> MissingExtraError:
    """The error that names the package which ``error`` missed."""
    package = (error.name or "").split(".")[0]
    return MissingExtraError(_DISTRIBUTIONS.get(package, package), "vision")
