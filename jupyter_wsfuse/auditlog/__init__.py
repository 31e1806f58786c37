"""The audit log as files: how entries are chained and signed, how they are searched, what can be proven of them.

::

    DIR/key.pub                     the public keys that the log was signed with, PEM
    DIR/TENANT/STREAM/00000001.jsonl
    DIR/TENANT/STREAM/head.json     up to where the log is signed
    DIR/TENANT/STREAM/00000001.torn what a crash left of a line that was not finished; not part of the log

A *stream* is what one engine writes: servers that share DIR each have their own. A *segment* is a file of lines
of JSON. The last key of a line is ``hash``: the SHA-256 of the line before's hash (64 hexadecimal digits; zeros
before the first line of all) followed by this line's bytes up to ``,"hash"``. The first line of a segment
(``operation`` "segment") repeats the final hash of the segment before, its last line ("seal") is signed by Ed25519,
and so is the head. So nothing can be changed, removed, added or put elsewhere up to the head without its showing,
except by who holds the private key.

Segments go when their retention is over: then an entry ("expired") that was signed before says so, with their hash.

Whoever reads may do so while an engine writes.
"""

from .entries import (
    DENIALS,
    EXPIRED,
    HEAD,
    KEYS,
    SEAL,
    SEGMENT,
    Stream,
    decode,
    escape,
    is_denial,
    stamp,
    streams,
)
from .proof import Fault, Keys, Proof, check, verify
from .search import Filter, glob, parse_time, query

__all__ = [
    "DENIALS", "EXPIRED", "HEAD", "KEYS", "SEAL", "SEGMENT", "Fault", "Filter", "Keys", "Proof", "Stream",
    "check", "decode", "escape", "glob", "is_denial", "parse_time", "query", "stamp", "streams", "verify",
]  # fmt: skip
