"""Whose bundles this app takes."""

from __future__ import annotations

from pathlib import Path

from edgevit.embed.app_python.errors import Refused

KEY: str | None = None
"""Public ed25519 key, 64 hexadecimal digits, that must have signed the manifest; None takes unsigned bundles."""


def check(bundle: Path, manifest: bytes) -> None:
    """Raise Refused unless the bytes of `manifest.json` are signed by KEY, where there is one."""
    if KEY is None:
        return
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise Refused(f"this app verifies signatures with cryptography ({error}): pip install cryptography") from error
    try:
        signature = (bundle / "manifest.sig").read_bytes()
    except OSError as error:
        raise Refused(f"{bundle} is not signed: it has no manifest.sig") from error
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY)).verify(signature, manifest)
    except InvalidSignature as error:
        raise Refused(f"{bundle}: manifest.sig is not by this app's key, or manifest.json was changed") from error
