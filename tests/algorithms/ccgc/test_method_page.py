"""docs/methods/ccgc.md lists every setting with its default, and has the sections that the code refers to."""

from __future__ import annotations

import re
from pathlib import Path

from farshore.algorithms.ccgc.config import CCGCConfig
from farshore.algorithms.ccgc.selection import SCORES
from farshore.engines.collective.config import CollectiveConfig

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "methods" / "ccgc.md").read_text()
SETTINGS = PAGE.partition("## 9. Settings")[2].partition("## 10.")[0]
ROWS = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", SETTINGS, re.M)


def test_the_page_lists_all_settings_with_their_defaults() -> None:
    own = CCGCConfig.model_fields.keys() - CollectiveConfig.model_fields.keys()
    assert dict(ROWS) == {name: str(CCGCConfig.model_fields[name].default) for name in own}


def test_the_page_has_all_rules_and_marks_the_default() -> None:
    table = PAGE.partition("## 5. Selection")[2].partition("## 6.")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) - {"rule"} == {*SCORES, "consensus"}
    assert f"`{CCGCConfig().rule}` is the default" in " ".join(table.split())


def test_the_sections_that_the_code_refers_to_exist() -> None:
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, re.M)}
    assert sections == set(range(1, len(sections) + 1))
    named = {
        int(number)
        for module in (ROOT / "algorithms" / "ccgc").glob("*.py")
        for number in re.findall(r"\(section (\d+) of the page\)", module.read_text())
    }
    assert named
    assert named <= sections
