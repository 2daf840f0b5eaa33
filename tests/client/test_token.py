"""Join tokens as people paste them, and certificates that are not the expected one."""

from pathlib import Path

import pytest

from farshore.client.agent import AgentOptions, run
from farshore.client.join import Token, membership
from farshore.core.errors import DataError, RefusedError, UnreachableError


def test_a_token_comes_apart_and_spaces_do_not_matter() -> None:
    token = Token.parse(f"  fs1.ab12.s-e_cret.{'A' * 64}\n")
    assert token == Token("ab12.s-e_cret", "a" * 64)


@pytest.mark.parametrize("text", ["", "hello", "fs2.a.b.", "fs1.a.b.c", "fs1..b.", "fs1.a..", f"fs1.a.b.{'a' * 63}"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="not a join token"):
        Token.parse(text)


def _options(tmp_path: Path, address: str = "127.0.0.1:9", **more: object) -> AgentOptions:
    return AgentOptions(address=address, name="a", home=tmp_path / "a", **more)  # type: ignore[arg-type]


def test_without_key_and_token_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="--token"):
        membership(_options(tmp_path))


def test_nobody_at_the_address_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="no server answers"):
        membership(_options(tmp_path, token=f"fs1.a.b.{'0' * 64}"))


def test_without_tls_only_loopback_is_dialled(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not this machine"):
        membership(_options(tmp_path, "192.0.2.1:9", token="fs1.a.b.", insecure=True))


def test_a_missing_data_set_is_said_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data NAME=PATH"):
        run(_options(tmp_path, data={"sst2": tmp_path / "nowhere"}))
