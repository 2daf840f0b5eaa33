"""Parsing of join tokens, and errors of an agent that cannot join."""

from pathlib import Path

import pytest

from farshore.client.agent import AgentOptions, run
from farshore.client.join import Token, membership
from farshore.core.errors import DataError, RefusedError, UnreachableError


def test_a_token_is_parsed_and_surrounding_whitespace_ignored() -> None:
    token = Token.parse(f"  fs1.ab12.s-e_cret.{'A' * 64}\n")
    assert token == Token("ab12.s-e_cret", "a" * 64)


@pytest.mark.parametrize("text", ["", "hello", "fs2.a.b.", "fs1.a.b.c", "fs1..b.", "fs1.a..", f"fs1.a.b.{'a' * 63}"])
def test_a_malformed_token_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="not a join token"):
        Token.parse(text)


def _options(tmp_path: Path, address: str = "127.0.0.1:9", **more: object) -> AgentOptions:
    return AgentOptions(address=address, name="a", home=tmp_path / "a", **more)  # type: ignore[arg-type]


def test_without_key_and_token_the_error_hints_at_the_option(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="--token"):
        membership(_options(tmp_path))


def test_an_unreachable_address_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="no server answers"):
        membership(_options(tmp_path, token=f"fs1.a.b.{'0' * 64}"))


def test_without_tls_only_loopback_addresses_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not this machine"):
        membership(_options(tmp_path, "192.0.2.1:9", token="fs1.a.b.", insecure=True))


def test_a_missing_data_set_is_reported_before_joining(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data NAME=PATH"):
        run(_options(tmp_path, data={"sst2": tmp_path / "nowhere"}))
