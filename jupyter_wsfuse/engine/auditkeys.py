"""The key that audit logs are signed with."""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..auditlog.entries import KEYS
from ..auditlog.proof import fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Signer:
    """The key that the log of one audit folder is signed with."""

    private: Ed25519PrivateKey
    name: str

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message).hex().encode()


def load_key(key_file: Path, directory: Path) -> Signer:
    """The key in *key_file*, made (0600) if there is none; its public half is added to ``key.pub`` in *directory*.

    Several processes may do so at once. Raises :class:`OSError`, and :class:`ValueError` for a file with something
    else or readable by others.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not key_file.exists():
        made = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        temporary = key_file.with_name(f".{key_file.name}.{secrets.token_hex(8)}")
        create(temporary, made)
        try:
            os.link(temporary, key_file)  # not rename: whoever was first has the key
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    with open(key_file, "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ValueError(f"{key_file} can be read by others: chmod 600 it, or remove it for a new one")
        try:
            private = serialization.load_pem_private_key(file.read(1 << 14), None)
        except (ValueError, TypeError) as exc:
            raise ValueError(f"{key_file} is not the private key of an audit log ({exc})") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ValueError(f"{key_file} is not a key of Ed25519")
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with open(directory / KEYS, "a+b", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if pem not in file.read():
            file.write(pem)
    return Signer(private, fingerprint(public.public_bytes_raw()))


def create(path: Path, data: bytes) -> None:
    """A new file, 0600, on disk when this returns. Raises :class:`OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
