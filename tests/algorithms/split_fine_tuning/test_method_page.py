"""The method page lists every setting with its default, and its measurements are those of the results page."""

from __future__ import annotations

import re
from pathlib import Path

from farshore.algorithms.split_fine_tuning.config import SplitFineTuning

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGE = (DOCS / "methods" / "split_fine_tuning.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f" {title}\n")[2].partition("\n## ")[0]


def test_every_setting_is_listed_with_its_default() -> None:
    listed: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`[^|]*) \| ([^|]+) \| [^|]* \|$", section("Settings"), re.M):
        values = [value.strip(" `").replace("−", "-") for value in defaults.split(",")]
        listed.update(zip(re.findall(r"`(\w+)`", names), values, strict=True))
    fields = SplitFineTuning.model_fields
    assert listed == {name: str(field.default).replace("True", "true") for name, field in fields.items()}


def test_measurements_are_those_of_the_results_page() -> None:
    results = (DOCS / "results.md").read_text()
    numbers = re.findall(r"[+-]\d+\.\d+ ± \d+\.\d+|\b\d+\.\d+\b", section("Measured results"))
    assert len(numbers) > 60
    assert [number for number in numbers if number not in results] == []


def test_sections_that_the_code_refers_to_exist() -> None:
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, re.M)}
    files = [*(ROOT / "algorithms" / "split_fine_tuning").glob("*.py"), *(ROOT / "engines" / "split").glob("*.py")]
    text = " ".join(" ".join(file.read_text() for file in files).split())
    places = re.findall(r"split_fine_tuning\.md``, sections? ([^.]*)", text)
    referred = {int(number) for place in places for number in re.findall(r"\d+", place)}
    assert len(places) >= 8
    assert referred <= sections
