"""Accelerators are read from the drivers' own lists, and a machine without any has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.core.nodes import Accelerator
from farshore.edge.accelerators import accelerators


@pytest.fixture
def no_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def _tool(folder: Path, text: str, code: int = 0) -> None:
    tool = folder / "bin" / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\nexit {code}\n")
    tool.chmod(0o755)


def test_a_machine_without_drivers_has_none(no_drivers: Path) -> None:
    assert accelerators(no_drivers / "none") == []


def test_nvidia_devices_have_name_and_memory(no_drivers: Path) -> None:
    _tool(no_drivers, "NVIDIA H200, 143771\nQuadro, with comma, 8192\nNVIDIA GH, [N/A]\n")
    assert accelerators(no_drivers) == [
        Accelerator("cuda", "NVIDIA H200", 143771 << 20),
        Accelerator("cuda", "Quadro, with comma", 8192 << 20),
        Accelerator("cuda", "NVIDIA GH", 0),
    ]


@pytest.mark.parametrize("text", ["", "No devices were found\n"])
def test_a_driver_that_fails_or_finds_nothing_gives_none(no_drivers: Path, text: str) -> None:
    _tool(no_drivers, text, code=6)
    assert accelerators(no_drivers) == []


def test_amd_devices_are_those_with_simd_units(no_drivers: Path) -> None:
    for place, simd in enumerate((0, 304)):
        folder = no_drivers / "kfd" / str(place)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 8\nsimd_count {simd}\n")
        (folder / "name").write_text("gfx942\n")
    assert accelerators(no_drivers / "kfd") == [Accelerator("rocm", "gfx942")]
