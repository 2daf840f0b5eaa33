"""Addresses: what is accepted, and what is suggested for what is not."""

from __future__ import annotations

import pytest

from farshore.core.address import join_address, parse_address
from farshore.core.errors import ConfigError
from farshore.core.nodes import check_node_name, nearest_name


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:1", "localhost", 1),
        ("192.0.2.7:50051", "192.0.2.7", 50051),
        ("[::1]:50051", "::1", 50051),
        ("[fe80::1%eth0]:50051", "fe80::1%eth0", 50051),
        ("a-b.example.org:65535", "a-b.example.org", 65535),
        ("my_host:7", "my_host", 7),
    ],
)
def test_addresses_are_parsed_and_formatted(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("::1:52310", "[::1]:52310"),
        ("fe80::1:52310", "[fe80::1]:52310"),
        ("http://example.org:50051", "example.org:50051"),
        ("https://example.org:50051/path", "example.org:50051"),
        (" 192.0.2.7:50051", "192.0.2.7:50051"),
        ("192.0.2.7:50051\n", "192.0.2.7:50051"),
        ("example.org", "example.org:50051"),
        ("::1", "[::1]:50051"),
    ],
)
def test_a_wrong_address_is_answered_with_the_one_that_was_meant(text: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="is not an address") as caught:
        parse_address(text)
    assert caught.value.hint == f"write {meant}"


_NONSENSE = ["", ":", ":1", "host:", "host:0", "host:65536", "host:x", "host:٣", "a b:1", "a/b:1", "user@host:1"]
_NONSENSE += ["[]:1", "[::1:1", "[host]:1", "[127.0.0.1]:1", "999.1.1.1:1", "1.2.3:1", "-host:1", "host-:1", "hö:1"]
_NONSENSE += ["h\x1b[0m:1", "a" * 300 + ":1"]


@pytest.mark.parametrize("text", _NONSENSE)
def test_other_texts_are_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a", "edge-1", "A.b_c-9", "x" * 64])
def test_valid_node_names_are_returned(name: str) -> None:
    assert check_node_name(name) == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("my node", "'my-node'"),
        ("küche", "'kuche'"),
        (" n1", "'n1'"),
        ("n1\n", "'n1'"),
        ("../../etc", "'etc'"),
        ("x" * 200, f"'{'x' * 64}'"),
        ("厨房", ""),
        ("", ""),
    ],
)
def test_an_invalid_node_name_is_answered_with_a_valid_one(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid node name") as caught:
        check_node_name(name)
    assert caught.value.hint.endswith(f"e.g. {meant}" if meant else "a letter or digit")
    assert "\n" not in str(caught.value)


def test_the_nearest_name_is_suggested_only_if_it_is_near() -> None:
    assert nearest_name("kitchn", ["kitchen", "garage"]) == "did you mean 'kitchen'?"
    assert nearest_name("nobody", ["kitchen", "garage"]) == ""
    assert nearest_name("nobody", []) == ""
