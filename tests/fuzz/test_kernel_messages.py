"""Whatever is read from /dev/fuse: a typed request, or one exception that says what to answer to."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.fuse import requests as rq
from jupyter_wsfuse.fuse.abi import Opcode
from jupyter_wsfuse.fuse.wire import MalformedRequestError, parse
from tests.fuse.kernel import init, message
from tests.fuse.test_wire import GOLDEN
from tests.fuzz.anything import mangled
from tests.helpers.fuzzing import examples

OPCODES = sorted({*map(int, Opcode), 0, 7, 19, 99, 4096, (1 << 32) - 1})
#: One whole message of every kind that the kernel sends.
CORPUS = [init(), *(message(opcode, body) for opcode, body, _ in GOLDEN.values())]


def understand(data: bytes) -> rq.Request | None:
    """The request; None if it is refused. Anything else that is raised is a failure."""
    try:
        request = parse(memoryview(bytearray(data)))
    except MalformedRequestError as exc:
        refusal = exc
    else:
        assert len(str(request)) < 2000
        assert "\n" not in str(request)
        return request
    assert len(str(refusal)) < 1000
    assert refusal.unique == 0 or refusal.unique == struct.unpack_from("=Q", data, 8)[0]
    return None


@examples(500)
@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    understand(data)


@examples(1500)
@given(opcode=st.sampled_from(OPCODES), body=st.binary(max_size=200), node=st.integers(0, (1 << 64) - 1))
def test_any_body(opcode: int, body: bytes, node: int) -> None:
    understand(message(opcode, body, node=node))


@examples(1500)
@given(data=st.data())
def test_messages_that_were_damaged(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(CORPUS))
    damaged = data.draw(mangled(whole))
    understand(damaged)
    if len(damaged) >= 40:  # with a length that is right, so that it is looked at
        understand(struct.pack("=I", len(damaged)) + damaged[4:])
        understand(struct.pack("=I", len(damaged)) + damaged[4:36] + bytes(4) + damaged[40:])


@pytest.mark.parametrize("whole", CORPUS, ids=range(len(CORPUS)))
def test_cut_and_extended_at_every_byte(whole: bytes) -> None:
    assert understand(whole) is not None
    for end in range(len(whole)):
        assert understand(whole[:end]) is None
        if end >= 40:
            understand(struct.pack("=I", end) + whole[4:end])
    for more in (1, 8, 300):
        understand(struct.pack("=I", len(whole) + more) + whole[4:] + bytes(more))


@examples(300)
@given(names=st.lists(st.binary(max_size=12), max_size=4), opcode=st.sampled_from(OPCODES))
def test_names_are_names(names: list[bytes], opcode: int) -> None:
    """No request has a name in it that is none, whatever the kernel (or who plays it) says."""
    request = understand(message(opcode, b"".join(name + b"\0" for name in names)))
    lookups = (rq.Lookup,)  # of "." and ".." by those who export the mount
    for field in ("name", "new_name"):
        name = getattr(request, field, None)
        if isinstance(name, bytes) and not isinstance(request, rq.GetXattr | rq.SetXattr | rq.RemoveXattr):
            assert name
            assert b"/" not in name
            assert b"\0" not in name
            assert name not in (b".", b"..") or isinstance(request, lookups)


def test_numbers_that_lie_cost_nothing() -> None:
    for opcode, body in (
        (42, struct.pack("=II", (1 << 32) - 1, 0)),  # BATCH_FORGET of four thousand million nodes
        (16, struct.pack("=QQIIQII", 1, 0, (1 << 32) - 1, 0, 0, 0, 0)),  # WRITE of 4 GiB
        (21, struct.pack("=II", (1 << 32) - 1, 0) + b"name\0"),  # SETXATTR
        (22, struct.pack("=II", (1 << 32) - 1, 0) + b"name\0"),  # GETXATTR: a size asked for is no size given
    ):
        tracemalloc.start()
        try:
            understand(message(opcode, body))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20
