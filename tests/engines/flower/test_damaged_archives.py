"""A damaged app archive is refused, whatever the damage."""

from __future__ import annotations

import base64
import io
import random
import zipfile

import pytest

from farshore.core.errors import RefusedError
from farshore.engines.flower.archive import read_archive


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(4):
            packed.writestr(f"a/f{number}.py", b"print(1)\n" * 50)
    return buffer.getvalue()


def test_changed_and_cut_archives_are_refused_or_read_but_raise_nothing_else() -> None:
    archive, chance, refused = _archive(), random.Random(0), 0
    for _ in range(3000):
        changed = bytearray(archive)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice([0, 255, chance.randrange(256)])
        try:
            read_archive(base64.b64encode(bytes(changed[: chance.choice([len(changed), 900])])).decode())
        except RefusedError:
            refused += 1
    assert refused > 2000


def test_text_that_is_no_base64_is_refused() -> None:
    for text in ("é", "====", "not an archive"):
        with pytest.raises(RefusedError, match="damaged"):
            read_archive(text)
