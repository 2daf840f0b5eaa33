"""Damaged files in the home of a server or node end in one typed error that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from farshore.client.join import Membership, membership
from farshore.client.options import AgentOptions
from farshore.core.errors import ConfigError, RefusedError, StorageError
from farshore.core.paths import LocalServer
from farshore.core.profiles import DeviceProfile
from farshore.server.certificates import self_signed
from farshore.server.identity import Identity, open_identity
from farshore.server.options import ServeOptions

_GARBAGE = (b"\xff\xfe\x00garbage", b"\x00\x01\x02", b"two words\nand lines", "ü".encode())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    options = ServeOptions(home=tmp_path / "server")
    open_identity(options).release()
    return options.home


def _open(home: Path, **options: Path) -> Identity:
    identity = open_identity(ServeOptions(home=home, **options))
    identity.release()
    return identity


@pytest.mark.parametrize("name", ["server.id", "admin.token", "operator.token"])
@pytest.mark.parametrize("content", _GARBAGE)
def test_a_damaged_token_or_id_is_named(home: Path, name: str, content: bytes) -> None:
    (home / name).write_bytes(content)
    with pytest.raises(StorageError, match=rf"{name} is damaged"):
        _open(home)


@pytest.mark.parametrize("name", ["self_signed.pem", "self_signed.key"])
@pytest.mark.parametrize("content", [b"", *_GARBAGE])
def test_a_damaged_certificate_or_key_is_named(home: Path, name: str, content: bytes) -> None:
    (home / name).write_bytes(content)
    with pytest.raises(StorageError, match=name):
        _open(home)


def test_given_certificates_and_keys_that_are_garbage_or_do_not_match_are_named(home: Path, tmp_path: Path) -> None:
    certificate, key, other = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "o.pem"
    pair = self_signed()
    certificate.write_bytes(pair.certificate)
    key.write_bytes(b"garbage")
    other.write_bytes(self_signed().key)
    with pytest.raises(ConfigError, match=r"k\.pem is not a private key"):
        _open(home, certificate=certificate, key=key)
    with pytest.raises(ConfigError, match=r"c\.pem does not match its key .*o\.pem"):
        _open(home, certificate=certificate, key=other)
    key.write_bytes(pair.key)
    assert _open(home, certificate=certificate, key=key).pair is not None


@pytest.mark.parametrize("name", ["address", "admin.token", "operator.token"])
@pytest.mark.parametrize("content", _GARBAGE)
def test_a_client_on_the_servers_machine_names_the_file(home: Path, name: str, content: bytes) -> None:
    (home / "address").write_text("127.0.0.1:50051\n")
    if name == "admin.token":
        (home / "operator.token").unlink()
    (home / name).write_bytes(content)
    with pytest.raises(StorageError, match=name.partition(".")[0]):
        LocalServer.read(home)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AgentOptions]:
    options = AgentOptions(address="127.0.0.1:1", name="a", home=tmp_path / "node")
    pair = self_signed()
    Membership("a", "a:key", pair.certificate, True, "id", ("s", "")).store(options.home)
    assert membership(options).secrets == ("s", "")
    yield options
    shutil.rmtree(options.home)


@pytest.mark.parametrize("name", ["membership.json", "server.pem"])
@pytest.mark.parametrize("content", [b"", *_GARBAGE, b"[]", b"[" * 100_000, b'{"name": "a"}'])
def test_a_damaged_file_of_a_node_is_named(node: AgentOptions, name: str, content: bytes) -> None:
    (node.home / name).write_bytes(content)
    with pytest.raises(StorageError, match=rf"{name} is damaged"):
        membership(node)


def test_secrets_of_the_wrong_shape_are_named(node: AgentOptions) -> None:
    path = node.home / "membership.json"
    for secrets in (None, 3, [], ["a", "b", "c"]):
        path.write_text(json.dumps({**json.loads(path.read_text()), "secrets": secrets}))
        with pytest.raises(StorageError, match=r"membership\.json is damaged"):
            membership(node)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1, 2]", b"threads: [", b"threads: many", b"[" * 10_000])
def test_a_damaged_profile_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "profile.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"profile\.yaml"):
        DeviceProfile.read(path)


def test_a_second_server_with_the_same_home_names_the_first(home: Path) -> None:
    first = open_identity(ServeOptions(home=home))
    try:
        with pytest.raises(RefusedError, match=rf"another server is running: process {os.getpid()} holds"):
            open_identity(ServeOptions(home=home))
    finally:
        first.release()
