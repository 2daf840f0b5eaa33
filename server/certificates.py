"""TLS certificates: the self-signed certificate of a server, and a private certificate authority to issue others."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..core.errors import ConfigError, StorageError
from ..core.files import write_file

#: The name that nodes and submitters verify a pinned certificate against, independent of the address.
SERVER_NAME = "farshore-server"
_DEFAULT_NAMES = (SERVER_NAME, "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class CertificateAndKey:
    """A certificate (PEM, with its chain appended) and its private key (PEM)."""

    certificate: bytes
    key: bytes


def fingerprint(certificate_pem: bytes) -> str:
    """Return the SHA-256 of the first certificate in DER form, in hex.

    Raises
    ------
    ConfigError
        ``certificate_pem`` is not a PEM certificate.
    """
    try:
        return x509.load_pem_x509_certificate(certificate_pem).fingerprint(hashes.SHA256()).hex()
    except ValueError as error:
        raise ConfigError(f"not a PEM certificate: {error}") from error


def check_pair(pair: CertificateAndKey, certificate: Path, key: Path) -> None:
    """Check that a certificate and a key can be read and belong together.

    Raises
    ------
    ConfigError
        They do not; the message names the file.
    """
    try:
        public = x509.load_pem_x509_certificate(pair.certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{certificate} is not a certificate in PEM format") from error
    try:
        private = serialization.load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key} is not a private key in PEM format without a password") from error
    if _public_bytes(public) != _public_bytes(private.public_key()):
        raise ConfigError(f"the certificate {certificate} does not match its key {key}")


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def self_signed(hostnames: Sequence[str] = (), *, days: int = 3650) -> CertificateAndKey:
    """Create a self-signed certificate for ``farshore-server``, loopback and ``hostnames``."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(SERVER_NAME, _name(SERVER_NAME), key.public_key(), days)
    builder = builder.add_extension(_alternatives(hostnames), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return CertificateAndKey(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def new_authority(name: str = "farshore authority", *, days: int = 3650) -> CertificateAndKey:
    """Create a certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, _name(name), key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = builder.add_extension(usage, critical=True)
    return CertificateAndKey(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def issue(authority: CertificateAndKey, hostnames: Sequence[str], *, days: int = 825) -> CertificateAndKey:
    """Issue a server certificate for ``hostnames``, signed by ``authority`` and with its certificate appended.

    Raises
    ------
    ConfigError
        ``authority`` is not a PEM certificate with its key.
    """
    try:
        root = x509.load_pem_x509_certificate(authority.certificate)
        signer = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the certificate authority is not a PEM certificate with its key: {error}") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            "the authority's key is not an elliptic-curve key", hint="make one with 'farshore certs init'"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(hostnames[0] if hostnames else SERVER_NAME, root.subject, key.public_key(), days)
    builder = builder.add_extension(_alternatives(hostnames), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    return CertificateAndKey(_pem(certificate) + authority.certificate, _key_pem(key))


def certs_init(folder: Path) -> Path:
    """Write a new authority (``ca.pem``, ``ca.key``) to ``folder``; returns ``ca.pem``.

    Raises
    ------
    StorageError
        ``folder`` cannot be written or already contains an authority.
    """
    pair = new_authority()
    write_file(folder / "ca.key", pair.key, new=True)
    write_file(folder / "ca.pem", pair.certificate, mode=0o644)
    return folder / "ca.pem"


def certs_issue(folder: Path, hostnames: Sequence[str]) -> tuple[Path, Path]:
    """Issue a server certificate with the authority in ``folder``; returns the paths of certificate and key.

    Raises
    ------
    StorageError
        ``folder`` contains no authority or cannot be written.
    """
    try:
        authority = CertificateAndKey((folder / "ca.pem").read_bytes(), (folder / "ca.key").read_bytes())
    except OSError as error:
        raise StorageError(
            f"no certificate authority in {folder}: {error.strerror}", hint="run 'farshore certs init'"
        ) from error
    pair = issue(authority, hostnames)
    stem = hostnames[0] if hostnames else SERVER_NAME
    write_file(folder / f"{stem}.key", pair.key)
    write_file(folder / f"{stem}.pem", pair.certificate, mode=0o644)
    return folder / f"{stem}.pem", folder / f"{stem}.key"


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(subject: str, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # An hour in the past: clocks of small devices are often slow.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _alternatives(hostnames: Sequence[str]) -> x509.SubjectAlternativeName:
    entries: list[x509.GeneralName] = []
    for host in dict.fromkeys((*_DEFAULT_NAMES, *hostnames)):
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                entries.append(x509.DNSName(host))
            except ValueError as error:
                raise ConfigError(f"'{host}' is neither a host name nor an IP address") from error
    return x509.SubjectAlternativeName(entries)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
