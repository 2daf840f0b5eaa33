"""The house rules: who may import whom, what a node never loads, what nothing calls, what each room says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farshore.core.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]

#: Room -> its floor and the highest floor that it may import. Rooms on one floor never import each other.
FLOORS: dict[str, tuple[int, int]] = {
    "core": (0, -1),
    "proto": (0, -1),
    "wire": (1, 0),
    "runs": (1, 0),
    "data": (2, 1),
    "reports": (2, 1),
    "server": (3, 2),
    "client": (3, 2),
    "edge": (3, 2),
    "algorithms": (4, 2),
    "simulations": (5, 4),
    "farshore": (6, 5),
}
LAZY_IMPORTS = {"import_module", "__import__", "importlib.import_module"}
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def sources(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield ``(room, file, dotted module name)`` of every module in the rooms under ``root``."""
    for room in FLOORS:
        for file in sorted((root / room).rglob("*.py")):
            parts = list(file.relative_to(root).with_suffix("").parts)
            if room != "farshore":
                parts.insert(0, "farshore")
            if parts[-1] == "__init__":
                parts.pop()
            yield room, file, ".".join(parts)


def imported(file: Path, module: str) -> Iterator[tuple[int, str]]:
    """Yield ``(line, absolute module name)`` for each import: relative ones resolved, literal lazy ones too.

    ``from a import b`` yields ``a.b``: whether ``b`` is a module does not matter to the room it names.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {
            "import_module",
            "__import__",
            "importlib.import_module",
        }:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def room_of(name: str) -> str | None:
    """The room that a dotted name is in; None outside farshore."""
    parts = name.split(".")
    if parts[0] != "farshore":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "farshore"


def wrong_arrows(root: Path) -> list[str]:
    """Every import that goes up, sideways, or further than its room may."""
    found = []
    for room, file, module in sources(root):
        highest = FLOORS[room][1]
        for line, name in imported(file, module):
            target = room_of(name)
            if target is None or target == room:
                continue
            if FLOORS[target][0] > highest:
                found.append(f"{file.relative_to(root)}:{line}: {room} must not import {target} ({name})")
    return found


def unsafe_uses(root: Path) -> list[str]:
    """Every import or call that could run code from bytes or through a shell."""
    found = []
    for _, file, module in sources(root):
        where = file.relative_to(root)
        for line, name in imported(file, module):
            if name.split(".")[0] in UNSAFE_MODULES:
                found.append(f"{where}:{line}: imports {name}")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and (reason := _unsafe_call(node)):
                found.append(f"{where}:{node.lineno}: {reason}")
    return found


def _called(node: ast.Call) -> str:
    """The dotted name that is called, or an empty string."""
    parts = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([function.id, *reversed(parts)]) if isinstance(function, ast.Name) else ""


def _unsafe_call(node: ast.Call) -> str:
    name = _called(node)
    literal = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
    given = {k.arg for k in node.keywords}
    if name in {"eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen"}:
        return f"calls {name}"
    if literal.get("shell") or ("shell" in given and "shell" not in literal):
        return "passes shell= to a process"
    if name.endswith("torch.load") and literal.get("weights_only") is not True:
        return "calls torch.load without weights_only=True"
    if name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}:
        return f"calls {name}; use yaml.safe_load"
    if literal.get("allow_pickle"):
        return "allows pickles in a NumPy file"
    return ""


def silent_rooms(root: Path) -> list[str]:
    """Package folders without an ``__init__.py`` that says what the folder holds."""
    folders = {file.parent for _, file, _ in sources(root)}
    found = []
    for folder in sorted(folders):
        init = folder / "__init__.py"
        if not init.exists() or not ast.get_docstring(ast.parse(init.read_text())):
            found.append(str(folder.relative_to(root)))
    return found


def documented_codes(text: str) -> dict[int, str]:
    """``code -> name`` from the rows ``| 10 | `CONFIG` | … |`` of a Markdown table."""
    rows = re.findall(r"^\|\s*(\d+)\s*\|\s*`([A-Z_]+)`\s*\|\s*(\S.*)\|\s*$", text, flags=re.MULTILINE)
    return {int(code): name for code, name, _ in rows}


# ---- the house itself


def test_every_folder_with_an_init_is_a_known_room() -> None:
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert rooms <= set(FLOORS), f"no floor is given for {sorted(rooms - set(FLOORS))}"
    assert {"core", "wire", "farshore"} <= rooms


def test_imports_go_down_the_floors_only() -> None:
    assert wrong_arrows(ROOT) == []


def test_no_module_unpickles_evaluates_or_calls_a_shell() -> None:
    assert unsafe_uses(ROOT) == []


def test_every_room_says_what_it_holds() -> None:
    assert silent_rooms(ROOT) == []


def test_exit_codes_and_their_page_agree() -> None:
    page = documented_codes((ROOT / "docs" / "exit-codes.md").read_text())
    assert page == {code.value: code.name for code in ExitCode}


def test_importing_farshore_loads_nothing_heavy() -> None:
    foreign = _loaded_by("import farshore", interesting=("numpy", "grpc", "pydantic", "typer", "torch", "yaml"))
    assert foreign == set()


@pytest.mark.parametrize("room", ["core", "wire", "runs", "data", "client"])
def test_light_rooms_never_load_what_a_small_device_lacks(room: str) -> None:
    files = (ROOT / room).rglob("*.py")
    names = [".".join(("farshore", *f.relative_to(ROOT).with_suffix("").parts)) for f in files]
    # The runner of node programs imports the method, and a method may need torch.
    names = sorted(n.removesuffix(".__init__") for n in names if not n.endswith(".node_process"))
    script = "\n".join(f"import {name}" for name in names)
    assert _loaded_by(script, interesting=("torch", "transformers", "pyarrow", "sqlalchemy")) == set()


def _loaded_by(script: str, interesting: tuple[str, ...]) -> set[str]:
    ask = f"\nimport sys\nprint(*[m for m in {interesting!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script + ask], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# ---- the checkers, on a house that breaks the rules


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    for room in ("core", "wire", "server", "client", "algorithms", "farshore"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text('"""A room."""\n')
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "target"),
    [
        ("core/a.py", "from ..wire import channel", "wire"),
        ("core/__init__.py", "from ..wire.channel import Channel", "wire"),
        ("wire/a.py", "def f():\n    import farshore.server.main", "server"),
        ("server/a.py", "from ..client.admin import AdminClient", "client"),
        ("server/a.py", "from .. import client", "client"),
        (
            "client/a.py",
            "import importlib\nimportlib.import_module('farshore.algorithms.x')",
            "algorithms",
        ),
        ("algorithms/a.py", "from farshore.server import x", "server"),
        ("client/a.py", "from farshore import split", "farshore"),
    ],
)
def test_a_wrong_arrow_is_found(fake: Path, file: str, text: str, target: str) -> None:
    (fake / file).write_text(text)
    (wrong,) = wrong_arrows(fake)
    assert f"must not import {target}" in wrong


def test_right_arrows_are_left_alone(fake: Path) -> None:
    (fake / "server" / "a.py").write_text(
        "from ..wire.channel import Channel\nfrom . import b\nfrom ..core import errors"
    )
    (fake / "farshore" / "a.py").write_text("from .server import x\nfrom .algorithms.y import z\nimport json")
    assert wrong_arrows(fake) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nflag = 1\nsubprocess.run('ls', shell=flag)",
        "import yaml\nyaml.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import os\nos.system('ls')",
    ],
)
def test_an_unsafe_use_is_found(fake: Path, text: str) -> None:
    (fake / "wire" / "a.py").write_text(text)
    assert len(unsafe_uses(fake)) == 1


def test_safe_uses_are_left_alone(fake: Path) -> None:
    text = "import torch, subprocess\ntorch.load('x', weights_only=True)\nmodel.eval()\n"
    text += "subprocess.run(['ls'], shell=False)"
    (fake / "wire" / "a.py").write_text(text)
    assert unsafe_uses(fake) == []


def test_a_silent_room_is_found(fake: Path) -> None:
    (fake / "wire" / "__init__.py").write_text("")
    (fake / "core" / "deep").mkdir()
    (fake / "core" / "deep" / "a.py").write_text("x = 1")
    assert silent_rooms(fake) == ["core/deep", "wire"]


def test_an_exit_code_without_words_does_not_count_as_documented() -> None:
    assert documented_codes("| 10 | `CONFIG` | a key is wrong |\n| 11 | `DATA` | |\n") == {10: "CONFIG"}
