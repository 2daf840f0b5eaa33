"""A failure names the line of the user's own code, not those of the libraries below it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from farshore.core.processes import place_of

USERS = """\
import json

def local_update(text):
    return json.loads(text)

local_update("{")
"""


def test_the_innermost_line_of_the_users_code_is_told(tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(USERS)
    with pytest.raises(json.JSONDecodeError) as caught:
        runpy.run_path(str(path))
    assert place_of(caught.value) == " (my_method.py, line 4, in local_update)"


def test_where_no_user_took_part_nothing_is_told() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    inside = caught.value.__traceback__
    assert inside is not None
    assert place_of(caught.value.with_traceback(inside.tb_next)) == ""
