"""Join commands name addresses that other machines can use."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from farshore.server import addresses
from farshore.server.addresses import reachable_addresses


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(family: int, address: str) -> Any:
        return SimpleNamespace(family=family, address=address)

    listed = {
        "lo": [entry(socket.AF_INET, "127.0.0.1"), entry(socket.AF_INET6, "::1")],
        "docker0": [entry(socket.AF_INET, "172.17.0.1")],
        "eth0": [
            entry(socket.AF_INET, "203.0.113.7"),
            entry(socket.AF_INET6, "2001:db8::7"),
            entry(socket.AF_INET6, "fe80::1%eth0"),
        ],
        "eth1": [entry(socket.AF_INET, "198.51.100.9")],
    }
    up = {name: SimpleNamespace(isup=name != "eth1") for name in listed}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: listed)
    monkeypatch.setattr("psutil.net_if_stats", lambda: up)
    monkeypatch.setattr(addresses, "_default_route", lambda: "203.0.113.7")


@pytest.mark.usefixtures("interfaces")
@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", (), ["127.0.0.1:5"]),
        ("127.0.0.1", ("cloud.example",), ["127.0.0.1:5"]),
        ("0.0.0.0", (), ["203.0.113.7:5", "172.17.0.1:5", "127.0.0.1:5"]),
        ("0.0.0.0", ("cloud.example",), ["cloud.example:5", "203.0.113.7:5", "172.17.0.1:5", "127.0.0.1:5"]),
        ("::", (), ["203.0.113.7:5", "172.17.0.1:5", "[2001:db8::7]:5", "127.0.0.1:5"]),
        ("203.0.113.7", ("cloud.example",), ["cloud.example:5", "203.0.113.7:5"]),
    ],
)
def test_names_then_the_default_route_then_others_and_loopback_last(
    host: str, names: tuple[str, ...], expected: list[str]
) -> None:
    assert list(reachable_addresses(host, 5, names)) == expected


def test_a_machine_without_a_network_has_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {})
    monkeypatch.setattr("psutil.net_if_stats", lambda: {})
    monkeypatch.setattr(addresses, "_default_route", lambda: "")
    assert reachable_addresses("0.0.0.0", 5) == ("127.0.0.1:5",)


@pytest.mark.process
def test_a_join_token_comes_with_the_addresses_of_the_server(start: Any) -> None:
    cloud = start(host="0.0.0.0", hostnames=("cloud.example",))
    with cloud.admin() as admin:
        listed = list(admin.create_token().addresses)
    assert listed[0].startswith("cloud.example:")
    assert listed[-1].startswith("127.0.0.1:")
