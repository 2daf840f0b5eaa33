"""Installs the workloads of ``contract_workloads.py`` for every process that a test starts; data sets of small runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from farshore.simulations.flower_app import restore_imports
from tests.algorithms.split_fine_tuning.conftest import _save_tiny_bert, _save_tiny_sst2

WORKLOADS = ("counting", "publishing", "roles")


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of the data sets that ``small_runs.py`` names."""
    folder = tmp_path_factory.mktemp("data sets")
    _save_tiny_bert(folder / "model")
    _save_tiny_sst2(folder / "glue" / "SST-2")
    return {"tiny": folder / "model", "glue": folder / "glue"}


@pytest.fixture(autouse=True)
def apps_are_unloaded(tmp_path: Path) -> Iterator[None]:
    """Unload the modules of Flower apps that a test ran: other tests use the same names."""
    with restore_imports(tmp_path):
        yield


@pytest.fixture(scope="module")
def contract_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the import path in which the workloads are installed as a package with entry points."""
    site = tmp_path_factory.mktemp("site")
    info = site / "contract-1.dist-info"
    info.mkdir()
    source = Path(__file__).with_name("contract_workloads.py")
    (site / source.name).write_text(source.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: contract\nVersion: 1\n")
    entries = "".join(f"{name} = contract_workloads:{name.upper()}\n" for name in WORKLOADS)
    (info / "entry_points.txt").write_text(f"[farshore.workloads]\n{entries}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")])))
        patch.syspath_prepend(str(site))
        yield site
