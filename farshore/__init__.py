"""farshore: train models across a cloud server and the devices at its far shore, with an account of every byte.

Importing this package does no work.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def __getattr__(name: str) -> str:
    if name == "__version__":
        try:
            return version("farshore")
        except PackageNotFoundError:
            return "0+uninstalled"
    raise AttributeError(f"module 'farshore' has no attribute '{name}'")
