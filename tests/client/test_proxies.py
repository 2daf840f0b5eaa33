"""A proxy of the surroundings does not come between nodes and servers."""

from __future__ import annotations

from typing import Any

import pytest

from farshore.core.address import proxy_options


@pytest.mark.parametrize(
    ("environment", "address", "used"),
    [
        ({}, "cloud.example:1", 0),
        ({"http_proxy": "http://proxy:1", "https_proxy": "http://proxy:1"}, "cloud.example:1", 0),
        ({"grpc_proxy": "http://proxy:1"}, "cloud.example:1", 1),
        ({"grpc_proxy": "http://proxy:1"}, "127.0.0.1:1", 0),
        ({"grpc_proxy": "http://proxy:1"}, "[::1]:1", 0),
        ({"grpc_proxy": "http://proxy:1"}, "localhost:1", 0),
    ],
)
def test_only_a_proxy_for_grpc_is_used_and_never_for_loopback(
    environment: dict[str, str], address: str, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_options(address) == [("grpc.enable_http_proxy", used)]


@pytest.mark.process
def test_a_run_finishes_where_http_proxy_names_a_dead_proxy(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    cloud = start()
    cloud.join("a")
    cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")
