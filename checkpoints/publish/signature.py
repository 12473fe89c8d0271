"""Ed25519 signatures of release manifests: `release.json.sig` says whose key signed exactly these bytes.

The signature file is JSON: {"algorithm": "ed25519", "public_key": base64 of 32 bytes, "signature": base64 of 64 bytes}.
A key is trusted because the reader got it elsewhere; the one in the file only says which to look for.
"""

import base64
import binascii
import json
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olmo_train.errors import CheckpointError, ConfigError

ALGORITHM = "ed25519"
NEW_KEY = "make one with `olmo keys new FILE`"


@dataclass(frozen=True)
class Signer:
    """Who signed a text."""

    public_key: str
    """Base64 of the 32 bytes."""
    is_trusted: bool
    """The key is one of those that the reader trusts."""


def sign_release(text: bytes, key_file: Path) -> bytes:
    """The signature file for the bytes of a `release.json`; Ed25519 is deterministic, so it is always the same.

    Raises:
        ConfigError: the key cannot be used (`read_private_key`), or the package `cryptography` is missing.
    """
    key = read_private_key(key_file)
    values = {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        "signature": base64.b64encode(key.sign(text)).decode(),
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def check_signature(text: bytes, signature: bytes, trusted: Collection[str], where: str) -> Signer:
    """Whose signature it is; `trusted` are public keys (`read_public_key`), `where` names the release in errors.

    Raises:
        CheckpointError: the signature file is damaged, or the signature does not fit the text.
    """
    _require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    file = f"{where}/release.json.sig"
    try:
        values = json.loads(signature)
        if values["algorithm"] != ALGORITHM:
            raise ValueError(f"algorithm {values['algorithm']!r}, not {ALGORITHM!r}")
        public = base64.b64decode(values["public_key"], validate=True)
        key = Ed25519PublicKey.from_public_bytes(public)
        signed = base64.b64decode(values["signature"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise CheckpointError(f"{file} cannot be used: {error}; fetch it again, or sign the release again") from error
    try:
        key.verify(signed, text)
    except InvalidSignature:
        raise CheckpointError(
            f"{file} does not fit release.json: one of them was changed after signing; fetch both again from a place you trust"
        ) from None
    name = base64.b64encode(public).decode()
    return Signer(name, name in trusted)


# ---- keys ------------------------------------------------------------------------------------------------------------


def read_private_key(file: Path) -> Any:
    """The Ed25519 private key of a PEM file (PKCS#8, not encrypted).

    Raises:
        ConfigError: it cannot be read, others may read it, or it is not such a key.
    """
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_secret(file)
    if b"PUBLIC KEY" in data:
        raise ConfigError(f"--sign={file} is a public key; give the private one")
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise ConfigError(
            f"--sign={file} is encrypted, and nobody is here to type its password; decrypt it for signing: "
            f"openssl pkey -in {file} -out PLAIN"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"--sign={file} is not a private key in PEM (PKCS#8); {NEW_KEY}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"--sign={file} is a key of another algorithm ({type(key).__name__}), must be Ed25519; {NEW_KEY}")
    return key


def read_public_key(file: Path) -> str:
    """Base64 of an Ed25519 public key in a PEM file, as `check_signature` wants it.

    Raises:
        ConfigError: it cannot be read, or is no such key.
    """
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"public key {file}: {error.strerror}; give the .pub file of the key that signed") from error
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"public key {file} is not a public key in PEM; give the .pub file of the key that signed") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"public key {file} is of another algorithm ({type(key).__name__}), must be Ed25519")
    return base64.b64encode(key.public_bytes_raw()).decode()


def write_key_pair(file: Path) -> Path:
    """Write a new private key, readable by its owner alone, and its public key beside it (`.pub`); return the latter's path.

    Raises:
        ConfigError: one of them exists, or cannot be written.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    public_file = file.with_name(f"{file.name}.pub")
    for path in (file, public_file):
        if os.path.lexists(path):
            raise ConfigError(f"{path} exists already; a key is never overwritten: give another name")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    written: list[Path] = []
    try:
        for path, data, mode in ((file, private, 0o600), (public_file, public, 0o644)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(path)
            with os.fdopen(descriptor, "wb") as out:
                out.write(data)
    except OSError as error:
        for path in written:
            path.unlink()
        raise ConfigError(f"{error.filename or file}: {error.strerror}; the key was not written") from error
    return public_file


def _read_secret(file: Path) -> bytes:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(f"--sign={file} may be read by others (mode {mode:03o}); chmod 600 it, or make a new key")
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--sign={file}: {error.strerror}; {NEW_KEY}") from error


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigError("signing needs the package cryptography; pip install 'olmo-train[publish]'") from None
