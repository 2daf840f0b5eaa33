"""Rules for packages: allowed imports, light imports for nodes, no unsafe calls, documented packages and exit codes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]

PACKAGES: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "packages.toml").read_text())["packages"]

#: Engines that may import other engines; ``assets`` is shared by all.
BUILT_ON = {"data_parallel": {"collective"}, "federated": {"assets"}, "work_queue": {"assets"}}
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
#: The one module that may import pickle; what it refuses is in tests/data/test_restricted_pickle.py.
RESTRICTED = Path("data/restricted_pickle.py")


def sources(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield ``(package, file, dotted module name)`` of every module in the packages under ``root``."""
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = list(file.relative_to(root).with_suffix("").parts)
            if package != "farshore":
                parts.insert(0, "farshore")
            if parts[-1] == "__init__":
                parts.pop()
            yield package, file, ".".join(parts)


def imported(file: Path, module: str) -> Iterator[tuple[int, str]]:
    """Yield ``(line, absolute module name)`` for each import, including relative imports and literal lazy imports.

    ``from a import b`` yields ``a.b``, whether or not ``b`` is a module: the package is the same.
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


def package_of(name: str) -> str | None:
    """The farshore package of a dotted name; None outside farshore."""
    parts = name.split(".")
    if parts[0] != "farshore":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in PACKAGES else "farshore"


def forbidden_imports(root: Path) -> list[str]:
    """Every import of a package on the same or a higher layer, or of a package excluded by ``without``."""
    found = []
    for package, file, module in sources(root):
        rule = PACKAGES[package]
        for line, name in imported(file, module):
            target = package_of(name)
            if target is None or target == package:
                continue
            if PACKAGES[target]["layer"] > rule["imports"] or target in rule.get("without", ()):
                found.append(f"{file.relative_to(root)}:{line}: {package} must not import {target} ({name})")
    return found


def subpackage_imports(root: Path, package: str, built_on: Mapping[str, set[str]] | None = None) -> list[str]:
    """Every import between two subpackages of ``package`` that ``built_on`` does not allow."""
    found = []
    for folder, file, module in sources(root):
        own = file.relative_to(root).parts[1:-1]
        if folder != package or not own:
            continue
        for line, name in imported(file, module):
            parts = name.split(".")
            if parts[:2] != ["farshore", package] or len(parts) < 4:
                continue
            if not (root / package / parts[2]).is_dir():  # a shared module
                continue
            if parts[2] != own[0] and parts[2] not in (built_on or {}).get(own[0], ()):
                found.append(f"{file.relative_to(root)}:{line}: {own[0]} must not import {parts[2]} ({name})")
    return found


def unsafe_uses(root: Path) -> list[str]:
    """Every import or call that could execute code from data or through a shell."""
    found = []
    for _, file, module in sources(root):
        where = file.relative_to(root)
        for line, name in imported(file, module):
            if name.split(".")[0] in UNSAFE_MODULES and (where, name) != (RESTRICTED, "pickle"):
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


def undocumented_directories(root: Path) -> list[str]:
    """Package directories without an ``__init__.py`` with a docstring."""
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


# ---- the repository itself


def test_every_package_is_listed_in_packages_toml() -> None:
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert folders == set(PACKAGES)


def test_the_makefile_and_the_contributing_page_list_every_package() -> None:
    made = subprocess.run(
        ["make", "-n", ".pkg"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    (line,) = re.findall(r"for r in ([a-z ]+);", made)
    assert set(line.split()) == set(PACKAGES) - {"farshore"}
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for name, rule in PACKAGES.items():
        assert re.search(rf"^\| {rule['layer']} \|.*`{name}/`", page, flags=re.MULTILINE), name


def test_imports_point_to_lower_layers_only() -> None:
    assert forbidden_imports(ROOT) == []


def test_no_method_imports_another() -> None:
    assert subpackage_imports(ROOT, "algorithms") == []


def test_no_engine_imports_another_apart_from_the_allowed_ones() -> None:
    assert subpackage_imports(ROOT, "engines", BUILT_ON) == []


def test_one_file_alone_uses_the_private_modules_of_torch() -> None:
    private = re.compile(r"\btorch(\.\w+)*\._(?!_)\w+|from torch[\w.]* import _\w+")
    using = [
        f"{file.relative_to(ROOT)}:{number}"
        for _, file, _ in sources(ROOT)
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if private.search(line.partition("#")[0]) and file.name != "torch_internals.py"
    ]
    assert using == []


def test_no_module_unpickles_evaluates_or_calls_a_shell() -> None:
    assert unsafe_uses(ROOT) == []


def test_every_package_directory_has_a_docstring() -> None:
    assert undocumented_directories(ROOT) == []


def test_the_exit_code_page_lists_exactly_the_exit_codes() -> None:
    page = documented_codes((ROOT / "docs" / "exit-codes.md").read_text())
    assert page == {code.value: code.name for code in ExitCode}


def test_importing_farshore_loads_no_heavy_dependency() -> None:
    foreign = _loaded_by("import farshore", interesting=("numpy", "grpc", "pydantic", "typer", "torch", "yaml"))
    assert foreign == set()


@pytest.mark.parametrize("package", ["core", "wire", "runs", "data", "edge", "client"])
def test_packages_that_run_on_small_devices_load_no_heavy_dependency(package: str) -> None:
    files = (ROOT / package).rglob("*.py")
    names = [".".join(("farshore", *f.relative_to(ROOT).with_suffix("").parts)) for f in files]
    # The node process imports the method, and image transforms use torch.
    heavy = (".node_process", ".image_transforms")
    names = sorted(n.removesuffix(".__init__") for n in names if not n.endswith(heavy))
    script = "\n".join(f"import {name}" for name in names)
    assert _loaded_by(script, interesting=("torch", "transformers", "pyarrow", "sqlalchemy")) == set()


def _loaded_by(script: str, interesting: tuple[str, ...]) -> set[str]:
    ask = f"\nimport sys\nprint(*[m for m in {interesting!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script + ask], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# ---- the checkers themselves, on trees that violate the rules


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""A package."""\n')
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
        ("models/a.py", "from ..data.images import load_images", "data"),
        ("edge/a.py", "from ..models.onnx_export import write_onnx", "models"),
        ("engines/a.py", "from ..server.session import RunProcessSession", "server"),
        ("engines/a.py", "from ..algorithms.vhl.task import VHLTask", "algorithms"),
        ("algorithms/a.py", "from ..client.agent import run", "client"),
    ],
)
def test_a_forbidden_import_is_found(fake: Path, file: str, text: str, target: str) -> None:
    (fake / file).write_text(text)
    (wrong,) = forbidden_imports(fake)
    assert f"must not import {target}" in wrong


def test_allowed_imports_pass(fake: Path) -> None:
    (fake / "server" / "a.py").write_text(
        "from ..wire.channel import Channel\nfrom . import b\nfrom ..core import errors"
    )
    (fake / "farshore" / "a.py").write_text("from .server import x\nfrom .algorithms.y import z\nimport json")
    assert forbidden_imports(fake) == []


def _in(root: Path, file: str, text: str) -> None:
    for folder in ("algorithms/dp_kfac", "algorithms/vhl", "engines/collective", "engines/data_parallel"):
        (root / folder).mkdir()
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


@pytest.mark.parametrize(
    ("package", "file", "text"),
    [
        ("algorithms", "algorithms/vhl/a.py", "from ..dp_kfac.preconditioner import DPKFAC"),
        (
            "algorithms",
            "algorithms/vhl/a.py",
            "def f():\n    from farshore.algorithms.dp_kfac.preconditioner import DPKFAC",
        ),
        ("algorithms", "algorithms/vhl/deep/a.py", "from ...dp_kfac.preconditioner import DPKFAC"),
        ("engines", "engines/federated/a.py", "from ..collective.elastic_groups import elastic_groups"),
        ("engines", "engines/collective/a.py", "from ..data_parallel.loop import train"),
    ],
)
def test_an_import_between_subpackages_is_found(fake: Path, package: str, file: str, text: str) -> None:
    _in(fake, file, text)
    assert len(subpackage_imports(fake, package, BUILT_ON)) == 1


@pytest.mark.parametrize(
    ("package", "file", "text"),
    [
        (
            "algorithms",
            "algorithms/vhl/a.py",
            "from .losses import VHLLoss\nfrom ...engines.federated.task import Task",
        ),
        ("engines", "engines/data_parallel/a.py", "from ..collective.elastic_groups import elastic_groups"),
        ("engines", "engines/federated/a.py", "from ..requests import Requests"),
    ],
)
def test_imports_within_a_subpackage_and_of_shared_modules_pass(fake: Path, package: str, file: str, text: str) -> None:
    _in(fake, file, text)
    assert subpackage_imports(fake, package, BUILT_ON) == []


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


def test_safe_uses_pass(fake: Path) -> None:
    text = "import torch, subprocess\ntorch.load('x', weights_only=True)\nmodel.eval()\n"
    text += "subprocess.run(['ls'], shell=False)"
    (fake / "wire" / "a.py").write_text(text)
    assert unsafe_uses(fake) == []


def test_a_package_directory_without_a_docstring_is_found(fake: Path) -> None:
    (fake / "wire" / "__init__.py").write_text("")
    (fake / "core" / "deep").mkdir()
    (fake / "core" / "deep" / "a.py").write_text("x = 1")
    assert undocumented_directories(fake) == ["core/deep", "wire"]


def test_an_exit_code_without_a_description_does_not_count_as_documented() -> None:
    assert documented_codes("| 10 | `CONFIG` | a key is wrong |\n| 11 | `DATA` | |\n") == {10: "CONFIG"}
