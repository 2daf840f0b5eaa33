"""The short way to import what a training loop of one's own needs costs nothing until it is used."""

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


def test_names_are_the_modules_own() -> None:
    assert vhl.VHLLoss is VHLLoss
    assert vhl.VirtualData is VirtualData
    for name in vhl.__all__:
        assert getattr(vhl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vhl.Nothing  # noqa: B018


def test_a_type_checker_is_told_the_same_names_as_python() -> None:
    told = {
        alias.name: node.module
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert told == vhl._MODULES
    assert sorted(told) == sorted(vhl.__all__)
    for name, module in told.items():
        assert getattr(import_module(f"farshore.algorithms.vhl.{module}"), name) is getattr(vhl, name)


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, farshore.algorithms.vhl; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
