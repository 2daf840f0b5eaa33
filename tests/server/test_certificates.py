"""TLS certificates: subject names, file permissions, and signatures of a private authority."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from farshore.core.errors import ConfigError, StorageError
from farshore.server.certificates import certs_init, certs_issue, fingerprint, self_signed
from farshore.server.identity import open_identity
from farshore.server.options import ServeOptions


def _names(pem: bytes) -> set[str]:
    extension = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(entry.value) for entry in extension.value}


def test_the_self_signed_certificate_names_loopback_and_the_given_hosts() -> None:
    names = _names(self_signed(("cloud.example", "192.0.2.7")).certificate)
    assert {"farshore-server", "localhost", "127.0.0.1", "cloud.example", "192.0.2.7"} <= names


def test_an_issued_certificate_is_signed_by_the_authority(tmp_path: Path) -> None:
    authority = x509.load_pem_x509_certificate(certs_init(tmp_path).read_bytes())
    certificate_path, key_path = certs_issue(tmp_path, ["cloud.example"])
    certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    certificate.verify_directly_issued_by(authority)
    assert certificate.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=300)
    assert key_path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600


def test_an_existing_authority_is_not_overwritten(tmp_path: Path) -> None:
    certs_init(tmp_path)
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(StorageError, match="exists"):
        certs_init(tmp_path)
    assert (tmp_path / "ca.key").read_bytes() == before


def test_issuing_without_an_authority_hints_at_certs_init(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="certs init"):
        certs_issue(tmp_path, ["x"])


def test_a_server_keeps_its_identity_across_restarts_and_its_secrets_are_private(tmp_path: Path) -> None:
    options = ServeOptions(home=tmp_path / "home")
    first = open_identity(options)
    first.release()
    second = open_identity(options)
    assert (first.server_id, first.fingerprint, first.admin_token) == (
        second.server_id,
        second.fingerprint,
        second.admin_token,
    )
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    for name in ("admin.token", "operator.token", "self_signed.key"):
        assert (tmp_path / "home" / name).stat().st_mode & 0o777 == 0o600
    assert first.is_admin(first.admin_token)
    assert first.is_admin(first.operator_token)
    assert first.is_operator(first.operator_token)
    assert not first.is_operator(first.admin_token)
    assert not first.is_admin("")
    assert not first.is_admin(first.admin_token + "x")


def test_a_key_without_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both"):
        open_identity(ServeOptions(home=tmp_path, key=tmp_path / "k"))


def test_the_fingerprint_of_invalid_pem_raises_a_config_error() -> None:
    with pytest.raises(ConfigError):
        fingerprint(b"not a certificate")
