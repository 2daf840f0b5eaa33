"""Error messages name the line of user code that failed, not lines of libraries that it calls."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from farshore.core.processes import user_code_location

USER_CODE = """\
import json

def local_update(text):
    return json.loads(text)

local_update("{")
"""


def test_the_innermost_line_of_user_code_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(USER_CODE)
    with pytest.raises(json.JSONDecodeError) as caught:
        runpy.run_path(str(path))
    assert user_code_location(caught.value) == " (my_method.py, line 4, in local_update)"


def test_without_user_code_in_the_traceback_the_location_is_empty() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    inside = caught.value.__traceback__
    assert inside is not None
    assert user_code_location(caught.value.with_traceback(inside.tb_next)) == ""
