"""The method page lists every setting of a run with its default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from farshore.algorithms.vhl.config import VHL

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "methods" / "vhl.md").read_text()


def defaults(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from defaults(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def test_the_settings_table_has_all_settings_and_their_defaults() -> None:
    table = PAGE.partition("## 13. Settings")[2].partition("## 14.")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", table, re.M)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == dict(defaults(VHL()))
