"""What a simulation's result was made from besides its settings: code, data and versions of the software.

It is stored in ``run.json``, so that a directory never shows the result of other code or data as that of today's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from ..core.errors import DataError
from ..core.session import Workload
from ..core.version import Versions

#: Largest data set whose contents are hashed, in bytes; for larger ones, file sizes and modification times are.
_MOST_READ = 1 << 30
_MOST_SOURCES = 5_000
#: The parts of farshore that results depend on.
_OWN = ("core", "data", "models", "engines", "algorithms", "simulations")


def origin_of(workload: Workload, data: Mapping[str, Path]) -> dict[str, Any]:
    """Return digests of farshore's code, of the method's code and of each data set, and the versions of the software.

    Raises
    ------
    DataError
        A data set does not exist or cannot be read.
    """
    return {
        "code": _code(workload),
        "data": {name: _content(path.resolve()) for name, path in data.items()},
        "versions": asdict(Versions.local()),
    }


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return in words how two origins differ; nothing for one of before there were any."""
    if not found:
        return []
    names = {"farshore": "farshore's code", "method": "the method's code"}
    changed = [text for key, text in names.items() if _entry(found, "code", key) != _entry(expected, "code", key)]
    data = {*found.get("data", {}), *expected["data"]}
    changed += [f"the data set '{n}'" for n in sorted(data) if _entry(found, "data", n) != _entry(expected, "data", n)]
    versions = {*found.get("versions", {}), *expected["versions"]}
    old, new = found.get("versions", {}), expected["versions"]
    return changed + [f"{n} ({old.get(n)}, now {new.get(n)})" for n in sorted(versions) if old.get(n) != new.get(n)]


def _entry(origin: Mapping[str, Any], part: str, name: str) -> Any:
    return origin.get(part, {}).get(name)


def _code(workload: Workload) -> dict[str, str]:
    module = type(workload).__module__
    own = module.partition(".")[0] == __package__.partition(".")[0]
    return {"farshore": _own_sources()} | ({} if own else {"method": _sources(module)})


@cache
def _own_sources() -> str:
    root = Path(__file__).resolve().parents[1]
    return _digest(root, [file for name in _OWN for file in _below(root / name) if file.suffix == ".py"], content=True)


@cache
def _sources(module: str) -> str:
    """Return the digest of the sources of the package that ``module`` is in, or of the Python files beside it."""
    top = sys.modules.get(module.partition(".")[0])
    folders = [Path(path) for path in getattr(top, "__path__", ())]
    if folders:
        files = [file for folder in folders for file in _below(folder) if file.suffix == ".py"]
    else:
        file = Path(getattr(sys.modules[module], "__file__", None) or __file__)
        beside = file.parent.glob("*.py") if "site-packages" not in file.parts else [file]
        folders, files = [file.parent], list(beside)
    return _digest(folders[0], files[:_MOST_SOURCES], content=True)


def _below(folder: Path) -> list[Path]:
    """Return the files below a folder, through links to folders, without hidden and cache folders; sorted."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        found += _below(path) if path.is_dir() else [path]
    return found


@cache
def _content(path: Path) -> str:
    """Return the digest of a file, or of the files in a folder."""
    try:
        files = _below(path) if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        return _digest(path if path.is_dir() else path.parent, files, content=size <= _MOST_READ)
    except OSError as error:
        raise DataError(f"cannot read the data set {path}: {error.strerror}", hint="check its path") from error


def _digest(root: Path, files: Iterable[Path], *, content: bool) -> str:
    digest = xxhash.xxh3_128()
    for file in files:
        about, name = file.stat(), file.relative_to(root) if file.is_relative_to(root) else file.name
        digest.update(f"{name}\0{about.st_size}\0".encode())
        digest.update(file.read_bytes() if content else str(about.st_mtime_ns).encode())
    return digest.hexdigest()
