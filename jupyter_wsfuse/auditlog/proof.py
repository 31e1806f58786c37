"""Proving that a log is whole: what every line, seal and head says is walked through once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .entries import (
    EXPIRED,
    HEAD,
    KEYS,
    MAX_LINE,
    SEAL,
    SEGMENT,
    ZERO,
    Stream,
    decode,
    link,
    streams,
    to_sign,
    unchain,
    unsign,
)


def fingerprint(raw: bytes) -> str:
    """What a public key (its 32 bytes) is called: the beginning of its SHA-256."""
    return hashlib.sha256(raw).hexdigest()[:32]


class Keys:
    """Public keys by their fingerprint."""

    def __init__(self, pem: bytes) -> None:
        """Raises :class:`ValueError` for what are no Ed25519 keys."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self._keys: dict[str, Ed25519PublicKey] = {}
        for block in re.findall(rb"-----BEGIN [^-]+-----.*?-----END [^-]+-----", pem, re.DOTALL):
            key = load_pem_public_key(block)
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError("a public key is not one of Ed25519")
            self._keys[fingerprint(key.public_bytes_raw())] = key
        if not self._keys:
            raise ValueError("there is no public key")

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def valid(self, name: str, signature: bytes, message: bytes) -> bool:
        """Whether the key called *name*, one of these, signed *message*."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._keys[name].verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Fault(NamedTuple):
    """The first thing that is wrong in a stream. ``line`` counts from 1; 0: the file as a whole."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return (
            f"{self.file}, line {self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"
        )


@dataclass
class Proof:
    """What is proven of one stream: ``entries`` numbered ``first`` to ``last``, from time ``since`` to ``until``, are
    as they were written, none missing between them, ``signed`` the last that a signature covers.

    ``hash``: the head of the chain; noted elsewhere, it proves later that everything up to it is still there.
    ``expired``: segments removed as their retention was over. ``notes``: what is no fault, but good to know.
    With ``fault`` the rest is what was true up to there.
    """

    tenant: str
    stream: int
    entries: int = 0
    first: int = 0
    last: int = 0
    since: str = ""
    until: str = ""
    signed: int = 0
    segments: int = 0
    expired: int = 0
    hash: str = ""
    closed: bool = False
    keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    fault: Fault | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "fault": self.fault and {**self.fault._asdict(), "text": str(self.fault)}}


class _Wrong(Exception):
    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(file, line, message)


class _Check:
    """One walk through a stream."""

    def __init__(self, stream: Stream, keys: Keys, expected: Collection[str]) -> None:
        self.stream = stream
        self.keys = keys
        self.expected = expected
        self.proof = Proof(stream.tenant, stream.number)
        self.seq = 0
        self.hash = ZERO
        self.sealed = False
        self.entry: dict[str, Any] = {}
        self.before = (0, b"")  # number and final hash of the segment before the first one that is there
        self.gone: dict[
            int, tuple[str, int, int]
        ] = {}  # expired: number -> hash, last seq, seq of who says so
        self.name = HEAD
        self.line = 0

    def wrong(self, message: str) -> _Wrong:
        return _Wrong(self.name, self.line, message)

    def signature(self, what: str, previous: bytes, signed: bytes) -> dict[str, Any]:
        try:
            body, signature = unsign(signed)
            said = decode(body + b"}")
        except ValueError as exc:
            raise self.wrong(str(exc)) from None
        key = said.get("key")
        if key not in self.keys:
            raise self.wrong(f"signed by a key that is not among the public keys: {key}")
        if not self.keys.valid(str(key), signature, to_sign(what, previous, body)):
            raise self.wrong("the signature is wrong: it was changed, or not made by the key it names")
        if key not in self.proof.keys:
            self.proof.keys.append(str(key))
        return said

    def head(self, raw: bytes | None) -> dict[str, Any]:
        if raw is None:
            raise self.wrong("missing")
        head = self.signature("head", b"", raw)
        if (head.get("tenant"), head.get("stream")) != (self.stream.tenant, self.stream.number):
            raise self.wrong("it belongs to another log")
        return head

    def run(self, raw: bytes | None) -> None:
        """Raises :class:`_Wrong`."""
        head = self.head(raw)
        proof, count = self.proof, int(head["count"])
        segments = self.stream.segments()
        for index, (number, path) in enumerate(segments):
            self.name, self.line = path.name, 0
            if index and number != segments[index - 1][0] + 1:
                raise self.wrong(f"segment {number - 1} before it is missing")
            self.segment(number, path, first=not index, last=number == segments[-1][0], head=head)
        self.name, self.line = HEAD, 0
        if self.seq < count:
            raise self.wrong(
                f"it was signed for {count} entries, but the log ends after {self.seq}: the end was cut off"
            )
        if proof.signed < count:
            raise self.wrong(f"entry {count}, which it was signed for, is missing")
        if head["closed"] and self.seq > count:
            self.name = segments[-1][1].name
            raise self.wrong(f"{self.seq - count} entries were appended after the log had been closed")
        proof.closed = head["closed"]
        if segments and segments[0][0] > 1:
            self.name = segments[0][1].name
            proof.expired = number = segments[0][0] - 1
            hash, seq, by = self.gone.get(number, ("", 0, 0))
            if (number, hash.encode()) != self.before or seq != proof.first - 1 or by > proof.signed:
                raise self.wrong(
                    f"segment {number} before it is missing, and no entry says that it had expired"
                )
        if self.seq > proof.signed:
            proof.notes.append(
                f"the last {self.seq - proof.signed} entries are not signed yet: the engine is writing, or was killed"
            )

    def segment(self, number: int, path: Path, *, first: bool, last: bool, head: dict[str, Any]) -> None:
        proof = self.proof
        before = self.hash
        with open(path, "rb") as file:
            for self.line, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
                unfinished = not line.endswith(b"\n") and len(line) < MAX_LINE
                if unfinished and last and self.seq >= head["count"] and not head["closed"]:
                    proof.notes.append("the last line is not finished: the engine is writing, or was killed")
                    break
                if self.sealed and self.line > 1:
                    raise self.wrong("there is a line after the seal")
                try:
                    body, hash = unchain(line)
                    if first and self.line == 1:
                        self.start(number, decode(line))
                        before = self.hash
                    if link(self.hash, body) != hash:
                        raise ValueError("its hash is wrong: it was changed, or a line before it is missing")
                    entry = decode(line)
                except ValueError as exc:
                    raise self.wrong(str(exc)) from None
                self.check(number, entry, body, before)
                self.hash = hash
                self.seq += 1
                proof.entries += 1
                proof.last, proof.until, proof.hash = self.seq, entry["time"], hash.decode()
                if not proof.since:
                    proof.first, proof.since = self.seq, entry["time"]
                if self.seq == head["count"]:
                    if proof.hash != head["hash"]:
                        raise self.wrong(f"entry {self.seq} is not the one that {HEAD} was signed for")
                    proof.signed = max(proof.signed, self.seq)
                if self.sealed:
                    proof.signed = max(proof.signed, self.seq)
                if proof.hash in self.expected:
                    proof.found.append(proof.hash)
            else:
                if not self.line and not last:
                    raise self.wrong("empty")
        proof.segments += 1
        if not self.sealed and not last:
            raise self.wrong("the segment ends without a seal")

    def start(self, number: int, entry: dict[str, Any]) -> None:
        """The first line of the first segment that is there."""
        previous, seq = entry.get("details", {}).get("previous"), entry.get("seq")
        if entry.get("operation") != SEGMENT or not isinstance(previous, str) or not isinstance(seq, int):
            raise self.wrong("the first line does not begin a segment")
        if number == 1 and (previous.encode() != ZERO or seq != 1):
            raise self.wrong("the first segment does not begin the log")
        self.hash, self.seq = previous.encode(), seq - 1
        self.before = (number - 1, self.hash)
        if previous in self.expected:
            self.proof.found.append(previous)

    def check(self, number: int, entry: dict[str, Any], body: bytes, before: bytes) -> None:
        operation, details = entry.get("operation"), entry.get("details", {})
        if entry.get("seq") != self.seq + 1:
            raise self.wrong(f"it is entry {entry.get('seq')}, and should be {self.seq + 1}")
        if (operation == SEGMENT) != (self.line == 1):
            raise self.wrong(
                "a segment has one first line" if self.line > 1 else "the first line does not begin a segment"
            )
        self.sealed = operation == SEAL
        if operation == SEGMENT:
            of = (self.stream.tenant, self.stream.number, number, before.decode())
            if (
                entry.get("tenant"),
                details.get("stream"),
                details.get("segment"),
                details.get("previous"),
            ) != of:
                raise self.wrong("it belongs to another log or another place in this one")
            if details.get("fault"):
                raise self.wrong(f"the engine found on starting: {details['fault']}")
        elif operation == SEAL:
            self.signature("seal", self.hash, body + b"}\n")
        elif operation == EXPIRED:
            self.gone[details["segment"]] = (details["hash"], details["seq"], self.seq + 1)
            if details["hash"] in self.expected:
                self.proof.found.append(details["hash"])


def read_head(path: Path) -> bytes | None:
    """The head of the stream in the folder *path*, not looked at; None if there is none."""
    try:
        with open(path / HEAD, "rb") as file:
            return file.read(MAX_LINE)
    except FileNotFoundError:
        return None


def check(stream: Stream, keys: Keys, expected: Collection[str] = ()) -> Proof:
    """Prove one stream; hashes of *expected* that are in its chain are in ``found``. Raises :class:`OSError`."""
    for _ in range(3):
        raw = read_head(stream.path)
        walk = _Check(stream, keys, expected)
        try:
            walk.run(raw)
        except FileNotFoundError:  # a segment expired meanwhile
            walk.proof.fault = Fault(walk.name, 0, "removed while it was read")
        except _Wrong as exc:
            walk.proof.fault = exc.fault
            # What we saw may be of two moments, if the engine went on meanwhile.
            if read_head(stream.path) == raw:
                break
        except (KeyError, TypeError, ValueError) as exc:  # a line of the right hash that makes no sense
            walk.proof.fault = Fault(walk.name, walk.line, f"not as the engine writes it ({exc!r})")
            break
        else:
            break
    return walk.proof


def verify(
    directory: Path, *, tenant: str | None = None, expected: Collection[str] = (), keys: bytes | None = None
) -> Iterable[Proof]:
    """Prove every stream below *directory* (or of one tenant). *keys*: public keys known from elsewhere, in PEM, to
    be trusted instead of those beside the log.

    Raises :class:`OSError`, and :class:`ValueError` for keys that are none.
    """
    known = Keys((directory / KEYS).read_bytes() if keys is None else keys)
    return (check(stream, known, expected) for stream in streams(directory, tenant))
