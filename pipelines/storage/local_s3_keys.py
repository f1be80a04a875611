"""The keys that guard the inner ports of the local S3 server: tokens for HTTP, certificates for gRPC."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

LIFETIME = timedelta(days=3650)  # made anew at every start
COMPONENTS = ("MASTER", "VOLUME", "FILER", "S3", "CLIENT")


def make_environment(folder: Path) -> dict[str, str]:
    """Make new keys in a private folder, and return the variables with which the server reads them.

    Every reader and writer of an inner port is the server itself: nobody else needs these keys.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    certificate, key = _make_certificate()
    for name, content in (("cert.pem", certificate), ("key.pem", key)):
        write_private(folder / name, content)
    tokens = {
        f"WEED_JWT_{name}": secrets.token_hex(32)
        for name in ("SIGNING_KEY", "SIGNING_READ_KEY", "FILER_SIGNING_KEY", "FILER_SIGNING_READ_KEY")
    }
    paths = {"CERT": str(folder / "cert.pem"), "KEY": str(folder / "key.pem")}
    grpc = {f"WEED_GRPC_{component}_{kind}": path for component in COMPONENTS for kind, path in paths.items()}
    return tokens | grpc | {"WEED_GRPC_CA": paths["CERT"]}


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, at once and whole."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)


def _make_certificate() -> tuple[bytes, bytes]:
    """Return a certificate that is its own authority, and its key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "presto")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), pem
