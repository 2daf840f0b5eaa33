"""farshore: train models across a cloud server and edge devices, with a ledger of every byte transferred.

Importing this package does no work.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .split_model import split as split


def __getattr__(name: str) -> Any:
    if name == "split":
        from .split_model import split

        return split
    if name == "__version__":
        try:
            return version("farshore")
        except PackageNotFoundError:
            return "0+uninstalled"
    raise AttributeError(f"module 'farshore' has no attribute '{name}'")
