"""docs/methods/dp_kfac.md lists every setting of the preconditioner with its default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from farshore.algorithms.dp_kfac.config import DPKFACConfig
from farshore.algorithms.dp_kfac.options import Options
from farshore.engines.data_parallel.image_config import DataParallelConfig

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "methods" / "dp_kfac.md").read_text()
SETTINGS = PAGE.partition("## 11. Settings")[2].partition("## 12.")[0]
#: Name, whether a run has the setting, default.
ROWS = re.findall(r"^\| `(\w+)`( \\\*)? \| `([^`]+)` \|", SETTINGS, re.M)


def test_the_page_lists_all_settings_with_their_defaults() -> None:
    defaults = {field.name: str(field.default).removeprefix("torch.") for field in fields(Options)}
    assert {name: default for name, _, default in ROWS} == defaults


def test_the_page_marks_the_settings_of_a_run() -> None:
    own = DPKFACConfig.model_fields.keys() - DataParallelConfig.model_fields.keys()
    assert {name for name, mark, _ in ROWS if mark} == own
    differing = {n for n in own if DPKFACConfig.model_fields[n].default != getattr(Options(), n)}
    assert differing == {"grad_exchange"}
    assert f"in a run the default is `{DPKFACConfig().grad_exchange}`" in SETTINGS


def test_the_sections_that_the_code_refers_to_exist() -> None:
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, re.M)}
    assert sections == set(range(1, len(sections) + 1))
    named: set[int] = set()
    for module in (ROOT / "algorithms" / "dp_kfac").glob("*.py"):
        for numbers in re.findall(r"dp_kfac\.md``,\s+sections? ([\d, and]+)", module.read_text()):
            named |= {int(number) for number in re.findall(r"\d+", numbers)}
    assert named
    assert named <= sections
