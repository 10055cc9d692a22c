"""Ed25519 signatures (RFC 8032) of a bundle's manifest, which names the sha256 of every other file.

A signature is `manifest.sig`, 64 bytes over the bytes of `manifest.json`. A private key is a PEM file
(`openssl genpkey -algorithm ed25519`); a public key is one too, or its 32 bytes in hexadecimal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import MANIFEST
from edgevit.errors import BundleError, missing_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "manifest.sig"
MAKE = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"


def sign(bundle: Path, key: Ed25519PrivateKey) -> None:
    """Write `manifest.sig` beside the manifest."""
    (bundle / SIGNATURE).write_bytes(key.sign((bundle / MANIFEST).read_bytes()))


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a PEM file without a passphrase. Raises BundleError, MissingExtra."""
    found = _loaded(path, "load_pem_private_key", password=None)
    if not isinstance(found, _library()[0].Ed25519PrivateKey):
        raise BundleError(f"{path} is no ed25519 private key; {MAKE}")
    key: Ed25519PrivateKey = found
    return key


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half, 64 hexadecimal digits."""
    return str(key.public_key().public_bytes_raw().hex())


def read_public(text: str) -> str:
    """A public key as given: 64 hexadecimal digits, or a PEM file. Returns the digits. Raises BundleError."""
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text.lower()):
        return text.lower()
    found = _loaded(Path(text), "load_pem_public_key")
    if not isinstance(found, _library()[0].Ed25519PublicKey):
        raise BundleError(f"{text} is no ed25519 public key")
    return str(found.public_bytes_raw().hex())


def verify(bundle: Path, public: str) -> None:
    """Raise BundleError unless the manifest is signed by the key."""
    ed25519, _, invalid = _library()
    try:
        signature = (bundle / SIGNATURE).read_bytes()
    except OSError as error:
        raise BundleError(f"{bundle} is not signed: it has no {SIGNATURE}") from error
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            signature, (bundle / MANIFEST).read_bytes()
        )
    except invalid as error:
        raise BundleError(
            f"{bundle}: {SIGNATURE} is not by the key {public[:16]}…, or {MANIFEST} was changed"
        ) from error
    except OSError as error:
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST}") from error


def _library() -> tuple[Any, Any, type[Exception]]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise missing_extra("sign", error) from error
    return ed25519, serialization, InvalidSignature


def _loaded(path: Path, reader: str, **options: Any) -> Any:
    """A key by cryptography's own reader. Raises BundleError."""
    _, serialization, _ = _library()
    try:
        return getattr(serialization, reader)(path.read_bytes(), **options)
    except OSError as error:
        raise BundleError(f"cannot read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path} holds no key that can be read ({error}); {MAKE}") from error
