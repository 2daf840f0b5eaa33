"""The documentation matches the code: links resolve, sizes, names and measurements agree, commands exist."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from farshore.cli.init import kinds, render_project
from farshore.cli.settings import resolve
from farshore.core.errors import ConfigError
from farshore.core.workloads import load
from farshore.engines.federated.config import Uplink
from farshore.reports.links import LINKS
from farshore.simulations.scenario import parse_scenario
from farshore.wire.encodings import parse
from farshore.wire.frame import PREFIX_BYTES, FrameType
from farshore.wire.limits import DEFAULT

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_wire_page_has_the_sizes_of_the_code() -> None:
    page = (ROOT / "docs" / "wire.md").read_text()
    assert f"{PREFIX_BYTES} bytes of prefix" in page
    rows = re.findall(
        r"^\| (?:magic|type|reserved|epoch|header length|payload length|sequence|ack\w+|checksum) \| (\d+) \|",
        page,
        re.M,
    )
    assert sum(map(int, rows)) == PREFIX_BYTES
    assert all(f"{kind.value} {word}" in page for kind, word in {FrameType.DATA: "data", FrameType.BYE: "bye"}.items())
    assert DEFAULT.header_bytes == 1 << 20
    assert "| header | 1 MiB |" in page
    assert DEFAULT.payload_bytes == 1 << 30
    assert "| payload | 1 GiB |" in page
    assert DEFAULT.dense_bytes == 2 << 30
    assert "decoded | 2 GiB |" in page
    assert f"{DEFAULT.tensors:,} and {DEFAULT.fields:,}" in page


def test_the_encodings_of_the_wire_page_exist() -> None:
    table = (ROOT / "docs" / "wire.md").read_text().partition("## Encodings")[2].partition("## Channel")[0]
    names = [name for row in re.findall(r"^\| (`[^|]*`) \|", table, re.M) for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) >= 9
    for name in names:
        parse(name.replace(":W", ":4").replace(":R", ":4").replace(":F", ":0.1"), lengths=[1])


def test_every_environment_variable_of_users_is_documented() -> None:
    internal = {"FARSHORE_PARENT", "FARSHORE_PROJECT"}  # set by farshore for the processes that it starts
    folders = [line.partition(" =")[0] for line in (ROOT / "packages.toml").read_text().splitlines() if " = " in line]
    sources = [path for folder in {*folders, "farshore"} for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in sources for name in re.findall(r"\"(FARSHORE_[A-Z_]+)\"", path.read_text())} - internal
    assert "FARSHORE_HOME" in used
    page = (ROOT / "docs" / "getting-started.md").read_text()
    assert {name for name in used if f"`{name}`" not in page} == set()


def test_documented_commands_exist() -> None:
    documented = set()
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in re.findall(r"^farshore ([^#\n]*)", block, re.M):
                documented.add(tuple(re.match(r"((?:[a-z]+ ?)+)", line)[1].split()[:2]))  # type: ignore[index]
    known = _commands()
    assert len(documented) > 8
    for words in documented:
        assert words[:1] in known, words
        assert words[:1] not in known or words[:2] in known or _takes_arguments(words[0]), words


def _commands() -> set[tuple[str, ...]]:
    script = (
        "import typer.main; from farshore.cli.main import app\n"
        "for name, c in typer.main.get_command(app).commands.items():\n"
        "    print(name, *getattr(c, 'commands', {}))"
    )
    listing = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True).stdout
    found: set[tuple[str, ...]] = set()
    for line in listing.splitlines():
        name, *inner = line.split()
        found |= {(name,), *((name, word) for word in inner)}
    return found


def _takes_arguments(command: str) -> bool:
    return command in {"run", "methods", "demo", "doctor", "simulate", "init", "export", "estimate", "sweep"}


def test_the_tutorial_shows_the_templates() -> None:
    """Every code block of the page occurs in a module written by 'farshore init', and its table has every kind."""
    page = (ROOT / "docs" / "own-method.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    modules = [render_project("server_momentum", kind)["server_momentum.py"] for kind in kinds()]
    assert len(blocks) >= 4
    assert [block for block in blocks if not any(block in module for module in modules)] == []
    assert all(f"| `{kind}`" in page for kind in kinds())
    (entry,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    assert entry in render_project("server_momentum", "federated")["pyproject.toml"]


def test_the_scenarios_of_the_simulation_page_are_valid() -> None:
    texts = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "simulating.md").read_text(), re.S)
    assert texts
    for text in texts:
        scenario = parse_scenario(text, "docs/simulating.md")
        for arm in scenario.arms:
            resolve(load(scenario.method).config, scenario.values(arm), ())


def test_the_sweeps_of_the_sweep_page_are_valid(tmp_path: Path) -> None:
    from farshore.cli.sweep_settings import read_sweep

    page = (ROOT / "docs" / "sweeps.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    (tmp_path / "sweep.yaml").write_text(text)
    assert read_sweep(str(tmp_path / "sweep.yaml"), (), (), {}).count == 3 * 2 * 5
    commands = re.findall(r"^farshore sweep (\S+) (.*)$", page, re.M)
    assert len(commands) >= 3
    for method, words in commands:
        grid, set_ = re.findall(r"--grid (\S+)", words), re.findall(r"--set (\S+)", words)
        assert read_sweep(method, grid, set_, {}).grid


def test_the_link_table_of_the_reports_page_matches_the_code() -> None:
    page = (ROOT / "docs" / "reports.md").read_text()
    for link in LINKS:
        profile = link.profile
        row = f"| {link.name} | {profile.down_mbps:g} / {profile.up_mbps:g} | {2 * profile.latency_ms:g} ms |"
        assert row in page, row
        for joule in (profile.up_joule_per_mb, profile.down_joule_per_mb):
            assert not joule or f"{joule / 8 * 1000:g}" in page


ENCODINGS = (ROOT / "docs" / "update-encodings.md").read_text()


def test_documented_encoding_commands_are_valid() -> None:
    commands = re.findall(r"^farshore (?:run|simulate) vhl (.*)$", ENCODINGS, re.M)
    assert len(commands) >= 5
    for words in commands:
        pairs = re.findall(r"--set (\S+)", words)
        assert any(pair.startswith("uplink") for pair in pairs)
        config = resolve(load("vhl").config, {}, pairs)
        nodes = re.search(r"--nodes (\d+)", words)
        assert nodes is None or config.per_round <= int(nodes[1])  # type: ignore[attr-defined]
    (text,) = re.findall(r"```yaml\n(.*?)```", ENCODINGS, re.S)
    resolve(load("vhl").config, yaml.safe_load(text), ())
    with pytest.raises(ConfigError, match="both given"):
        resolve(load("vhl").config, {}, ["uplink=topk", "uplink.fraction=0.05"])


def test_every_update_encoding_is_documented() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| [^|]* \| [^|]* \|$", ENCODINGS.partition("## What each")[2], re.M)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == set(get_args(Uplink.model_fields["encoding"].annotation))


def test_the_encoding_table_matches_the_measurements() -> None:
    measured = json.loads((ROOT / "benchmarks" / "measured" / "update_encodings.json").read_text())["figures"]
    arms = {arm["name"]: arm for arm in measured["arms"]}
    cost = {c["name"]: c for c in measured["cost"] if c["state"].startswith("1.66 M")}
    cells = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", ENCODINGS, re.M)
    rows = {name.replace("`", ""): tuple(values) for name, *values in cells}
    assert rows.keys() == {name.partition(", ")[2] for name in arms}
    for name, row in rows.items():
        ends, times = cost.get(name), measured["volumes"][f"FedAvg, {name}"]["compression"]["up"]
        scores = []
        for method in ("FedAvg", "FedAvg + VHL", "SCAFFOLD"):
            differences = measured["differences"][f"{method}, {name}"]["last10"]
            error = statistics.stdev(differences) / len(differences) ** 0.5
            raw = f"{100 * arms[f'{method}, raw']['last10']['mean']:.1f} %"
            scores.append(raw if name == "raw" else f"{statistics.fmean(differences):+.1f} ± {error:.1f}")
        assert row == (f"{times:.1f}", *scores, f"{1e3 * (ends['write'] + ends['read']):.1f}" if ends else "–")
