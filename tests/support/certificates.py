"""Certificates signed by an authority of the test, and TLS clients that show them."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from app.auth import tls
from app.auth.tls import Tls

NOW = datetime.now(UTC)


@dataclass
class Signed:
    """A certificate with its key, and the files they are in."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    cert_file: Path
    key_file: Path


def sign(
    directory: Path, name: str, issuer: Signed | None = None, names: Sequence[x509.GeneralName] | None = None
) -> Signed:
    """A certificate with this common name, signed by the issuer; without an issuer, an authority's own certificate."""
    if names is None:
        names = [x509.DNSName("localhost"), x509.DNSName(name)]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    cert = builder.sign(issuer.key if issuer else key, SHA256())
    file = name.replace("\0", "-")
    made = Signed(cert, key, directory / f"{file}.pem", directory / f"{file}.key")
    made.cert_file.write_bytes(cert.public_bytes(Encoding.PEM))
    made.key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


@dataclass
class Party:
    """An authority, certificates of the server and of a client, and a certificate from another authority."""

    authority: Signed
    server: Signed
    client: Signed
    stranger: Signed

    def tls(self, *, mutual: bool) -> Tls:
        loaded = tls.load(self.server.cert_file, self.server.key_file, self.authority.cert_file if mutual else None)
        assert loaded is not None
        return loaded


def grpc_credentials(party: Party, shown: Signed | None) -> grpc.ChannelCredentials:
    authority = party.authority.cert_file.read_bytes()
    if shown is None:
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(authority, shown.key_file.read_bytes(), shown.cert_file.read_bytes())


def http_context(party: Party, shown: Signed | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=party.authority.cert_file)
    if shown is not None:
        context.load_cert_chain(shown.cert_file, shown.key_file)
    return context
