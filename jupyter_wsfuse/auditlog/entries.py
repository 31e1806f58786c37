"""Names, lines, hashes: what everybody who writes or reads the log agrees on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec

VERSION: Final = 1
ZERO: Final = b"0" * 64
HEAD: Final = "head.json"
KEYS: Final = "key.pub"
#: Bytes of a line: several names of the longest kind, each byte written as six.
MAX_LINE: Final = 1 << 18
#: What ``operation`` is in the lines that hold the log together.
SEGMENT: Final = "segment"
SEAL: Final = "seal"
EXPIRED: Final = "expired"
#: Failures that mean "you may not", whoever said so.
DENIALS: Final = frozenset({"EACCES", "EPERM", "EROFS"})

HASH_KEY: Final = b',"hash":"'
SIGNATURE_KEY: Final = b',"signature":"'
END: Final = b'"}\n'
_TAIL: Final = len(HASH_KEY) + 64 + len(END)
_SIGNED_TAIL: Final = len(SIGNATURE_KEY) + 128 + len(END)
_HEX: Final = re.compile(rb"[0-9a-f]+", re.ASCII)
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_SEGMENT_NAME: Final = re.compile(r"([0-9]{8})\.jsonl", re.ASCII)


def escape(tenant: str) -> str:
    """The name of a tenant's folder: bytes other than letters, digits, ``_`` and ``-`` as ``%XX``."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in os.fsencode(tenant))


def unescape(name: str) -> str:
    """The tenant that :func:`escape` made *name* of."""
    return unquote(name, "utf-8", "surrogateescape")


def stamp(ns: int) -> str:
    """A time in nanoseconds since the epoch as the log has it: ``2025-01-31T23:59:59.000000001Z``."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def link(previous: bytes, body: bytes) -> bytes:
    """The hash, in hexadecimal digits, of a line *body* (up to ``,"hash"``) after one whose hash is *previous*."""
    return hashlib.sha256(previous + body).hexdigest().encode()


def to_sign(what: str, previous: bytes, body: bytes) -> bytes:
    """What is signed: of a seal *previous* is the hash of the line before, of a head empty."""
    return b"wsfuse audit %s %d\0" % (what.encode(), VERSION) + previous + body


def segment_name(number: int) -> str:
    return f"{number:08d}.jsonl"


class Stream(NamedTuple):
    """A tenant's log of one engine."""

    tenant: str
    number: int
    path: Path

    def segments(self) -> list[tuple[int, Path]]:
        """Numbers and files, oldest first."""
        found = ((_SEGMENT_NAME.fullmatch(name), name) for name in os.listdir(self.path))
        return sorted((int(match[1]), self.path / name) for match, name in found if match)


def streams(directory: Path, tenant: str | None = None) -> list[Stream]:
    """The streams below *directory*; of one tenant if it is named. Raises :class:`OSError`."""
    found = []
    for folder in sorted(os.listdir(directory)):
        if tenant is not None and folder != escape(tenant):
            continue
        try:
            numbers = [name for name in os.listdir(directory / folder) if name.isascii() and name.isdigit()]
        except NotADirectoryError:
            continue
        found += [
            Stream(unescape(folder), number, directory / folder / str(number))
            for number in sorted(map(int, numbers))
        ]
    return found


def decode(line: bytes) -> dict[str, Any]:
    """The entry of a line. Bytes of names that are not UTF-8 are surrogates in it, as :func:`os.fsdecode` makes
    them. Raises :class:`ValueError`."""
    try:
        entry = msgspec.json.decode(line)
    except msgspec.DecodeError:
        entry = json.loads(line)  # takes surrogates, too
    if not isinstance(entry, dict):
        raise ValueError("not an entry")
    return entry


def unchain(line: bytes) -> tuple[bytes, bytes]:
    """A line's body and hash. Raises :class:`ValueError`."""
    body, hash = line[:-_TAIL], line[-_TAIL + len(HASH_KEY) : -len(END)]
    if line != body + HASH_KEY + hash + END or not body or not _HEX.fullmatch(hash):
        raise ValueError("the line does not end in a hash")
    return body, hash


def unsign(signed: bytes) -> tuple[bytes, bytes]:
    """What was signed and its signature. Raises :class:`ValueError`."""
    body, hex = signed[:-_SIGNED_TAIL], signed[-_SIGNED_TAIL + len(SIGNATURE_KEY) : -len(END)]
    if signed != body + SIGNATURE_KEY + hex + END or not body or not _HEX.fullmatch(hex):
        raise ValueError("it does not end in a signature")
    return body, bytes.fromhex(hex.decode())


def is_denial(entry: Mapping[str, Any]) -> bool:
    """Whether a failed *entry* says that somebody might not."""
    return bool(entry.get("rule")) or entry.get("errno") in DENIALS or entry.get("denied") is True
