"""Lazy imports of packages in the optional extra ``vision``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import MissingExtraError

#: Import name -> distribution name, where they differ.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}


def vision_module(name: str) -> Any:
    """Import the module ``name``.

    Raises
    ------
    MissingExtraError
        The module, or a package that it imports, is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise missing_vision(error) from error


def missing_vision(error: ModuleNotFoundError) -> MissingExtraError:
    """Return the error that names the missing package and the extra ``vision``."""
    package = (error.name or "").split(".")[0]
    return MissingExtraError(_DISTRIBUTIONS.get(package, package), "vision")
