"""The public names of the package are imported lazily."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import farshore.algorithms.vhl as vhl
from farshore.algorithms.vhl.losses import VHLLoss
from farshore.algorithms.vhl.virtual import VirtualData

SOURCE = Path(__file__).resolve().parents[3] / "algorithms" / "vhl" / "__init__.py"


def test_public_names_are_those_of_the_submodules() -> None:
    assert vhl.VHLLoss is VHLLoss
    assert vhl.VirtualData is VirtualData
    for name in vhl.__all__:
        assert getattr(vhl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vhl.Nothing  # noqa: B018


def test_type_checkers_see_the_same_names_as_python() -> None:
    declared = {
        alias.name: node.module
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert declared == vhl._MODULES
    assert sorted(declared) == sorted(vhl.__all__)
    for name, module in declared.items():
        assert getattr(import_module(f"farshore.algorithms.vhl.{module}"), name) is getattr(vhl, name)


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, farshore.algorithms.vhl; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
