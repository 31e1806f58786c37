"""Messages of any type with any content, and what becomes of their bytes on the way."""

from __future__ import annotations

import random
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st

from jupyter_wsfuse.protocol import messages as m

#: Where programs go wrong.
EDGES = [
    0, 1, 2, 3, 7, 255, 4095, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62),
    (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -2, -100, -(1 << 31), -(1 << 63),
]  # fmt: skip
integers = st.one_of(st.sampled_from(EDGES), st.integers(-(1 << 63), (1 << 64) - 1))
some_bytes = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"", b".", b"..", b"file", b"dir", b"dir/file", b"../x", b"/x", b"\0", b"x" * 300]),
)

Special = Callable[[str, Any], st.SearchStrategy[Any] | None]


def nothing_special(name: str, kind: Any) -> st.SearchStrategy[Any] | None:
    return None


def of_type(name: str, kind: Any, special: Special = nothing_special) -> st.SearchStrategy[Any]:
    """Values of a field's type; *special* may have its own for a field."""
    chosen = special(name, kind)
    if chosen is not None:
        return chosen
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([of_type(name, argument, special) for argument in arguments])
    if origin is list:
        return st.lists(of_type(name, arguments[0], special), max_size=4)
    if origin is dict:
        return st.dictionaries(
            of_type(name, arguments[0], special), of_type(name, arguments[1], special), max_size=3
        )
    if origin is tuple:
        return st.tuples(*(of_type(name, argument, special) for argument in arguments if argument is not ...))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return struct(kind, special)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: integers,
        bool: st.booleans(),
        float: st.floats(),
        str: st.text(max_size=20),
        bytes: some_bytes,
        type(None): st.none(),
    }
    return simple[kind]


def struct(kind: type[msgspec.Struct], special: Special = nothing_special) -> st.SearchStrategy[Any]:
    """Structs of one type."""
    hints = typing.get_type_hints(kind)
    fields = {
        name: of_type(name, hints[name], special) for name in kind.__struct_fields__ if name != "hidden"
    }
    return st.builds(kind, **fields)


def any_of(
    kinds: typing.Iterable[type[msgspec.Struct]], special: Special = nothing_special
) -> st.SearchStrategy[Any]:
    return st.one_of([struct(kind, special) for kind in kinds])


BAD_BYTES = [0, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xDD, 0xDF, 0xC6, 0xDB, 0xFF]


def damage(data: bytes, rng: random.Random) -> bytes:
    """*data* with a few bytes flipped, lost, doubled, or of another message."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(changed))
        match rng.randint(0, 5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randint(0, 7)
            case 1 if at < len(changed):
                changed[at] = rng.choice(BAD_BYTES)
            case 2:
                del changed[at : at + rng.randint(1, 8)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randint(0, 9))
            case 4:
                changed[at:at] = changed[at : at + rng.randint(1, 64)]
            case _:
                del changed[at:]
    return bytes(changed)


def mangled(data: bytes) -> st.SearchStrategy[bytes]:
    """What :func:`damage` makes of *data*."""
    return st.integers(0, (1 << 32) - 1).map(lambda seed: damage(data, random.Random(seed)))


#: Headers that decoders of msgpack have stumbled over: lengths that lie, depth, types nobody asked for.
HEADERS: list[bytes] = [
    b"", b"\xc0", b"\xc1", b"\x90", b"\x80", b"\x91\x14", b"\x92\x14\x01", b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01",
    b"\x92\x04\xdd\xff\xff\xff\xff", b"\x93\x04\x90\xdd\xff\xff\xff\xff",
    b"\x92\x04\xdd\x00\x00\xff\xff" + bytes(900), b"\x91" * 10_000, b"\x92\x04" + b"\x91" * 10_000,
    b"\x81\x01" * 5000, b"\xd6\xff\0\0\0\0", b"\xcb" + b"\x7f\xf8" + bytes(6), b"\x93\x04\x91\x01\xc0\x01",
    b"\x92\xa1x\x01", b"\x92\xcc\x05\x01", b"\x92\xd0\x05\x01", b"\x92\x05\xcf" + b"\xff" * 8,
    b"\x92\x05\xcb\x3f\xf0" + bytes(6), b"\x99" + b"\x01" * 9, b"\x96\x34\x01\x91\xa1\xff\x02\x00\xc2",
    b"\x97\x34\x01\x93\xc4\0\xc0\0\x02\x00\xc2\xdd\x10\x00\x00\x00" + b"\x96" * 300,
    b"\xc7\xff\xff" * 40, b"\xd9\xff", b"\x92\x20" + b"\xdc\x40\x00" * 2000,
]  # fmt: skip


def everything_said() -> list[type[m.Struct]]:
    return [*m.REQUESTS, *m.REPLIES, *m.CONTROL]
