"""Whatever bytes come: both decoders give whole messages or refuse, and cost no more than the bytes are worth."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.errors import RemoteProtocolError
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from tests.fuzz.anything import HEADERS, any_of, everything_said, mangled
from tests.helpers.fuzzing import examples

DECODERS = {
    "of an engine": codec.engine_decoder,
    "of a client": codec.client_decoder,
    "of a Hello": codec.hello_decoder,
}
#: What decoding may cost at most, in bytes for one that was received, and once.
PER_BYTE, ONCE = 96, 1 << 20


def frame(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<II", len(header), len(payload)) + header + payload


def take(decoder: codec.Decoder, data: bytes) -> list[tuple[Any, Any]]:
    """What the decoder says, and that it is of the types that it accepts. Nothing if it refuses."""
    try:
        frames = decoder.decode(data)
    except RemoteProtocolError as exc:
        refusal = exc
        frames = []
    else:
        refusal = None
    assert refusal is None or (len(str(refusal)) < 500 and refusal.close_code in (1002, 1009))
    for message, payload in frames:
        assert isinstance(message, m.Struct)
        assert isinstance(payload, bytes)
        assert len(str(message)) < 10_000
    return frames


def frugal(data: bytes) -> None:
    """Decoding *data* keeps its memory within bounds, whatever it says of itself."""
    for decoder in DECODERS.values():
        tracemalloc.start()
        try:
            take(decoder, data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < PER_BYTE * len(data) + ONCE


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@examples(300)
@given(data=st.binary(max_size=300))
def test_any_bytes(decoder: codec.Decoder, data: bytes) -> None:
    take(decoder, data)
    take(decoder, frame(data))


@examples(150)
@given(data=st.data())
def test_messages_that_were_damaged(data: st.DataObject) -> None:
    messages = data.draw(st.lists(any_of(everything_said()), min_size=1, max_size=3))
    whole = b"".join(
        codec.encode_frame(message, b"payload" if type(message) in m.WITH_PAYLOAD else b"")
        for message in messages
    )
    header = whole[8 : 8 + struct.unpack_from("<I", whole)[0]]
    # The last one's lengths are right, what is in it is not.
    for each in (whole, data.draw(mangled(whole)), frame(data.draw(mangled(header)))):
        for decoder in DECODERS.values():
            take(decoder, each)


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_the_corpus(header: bytes) -> None:
    for data in (header, frame(header), frame(header) * 3, frame(header, b"payload"), frame(header)[:-1]):
        frugal(data)


@pytest.mark.parametrize("kind", everything_said(), ids=lambda kind: kind.__name__)
def test_every_message_cut_at_every_byte(kind: type[m.Struct]) -> None:
    @examples(3)
    @given(message=any_of([kind]))
    def cut(message: m.Struct) -> None:
        whole = codec.encode_frame(message)
        for end in range(len(whole)):
            for decoder in DECODERS.values():
                with pytest.raises(RemoteProtocolError):
                    decoder.decode(whole[:end])

    cut()


@examples(30)
@given(data=st.data())
def test_memory_is_bounded_by_what_was_received(data: st.DataObject) -> None:
    """Long lists of small things are where a few bytes become many."""
    item = data.draw(
        st.sampled_from([b"\x01", b"\x90", b"\xc4\x00", b"\xa0", b"\xc0", b"\x96\x01\0\x01\xa1r\x01\xc2"])
    )
    start = data.draw(
        st.sampled_from(
            [
                b"\x92\x04",
                b"\x93\x04\x90",
                b"\x97\x34\x01\x93\xc4\0\xc0\0\x02\0\xc2",
                b"\x92\x09",
                b"\x93\x5b\x01",
            ]
        )
    )
    count = data.draw(st.integers(0, 60_000 // len(item)))
    frugal(frame(start + b"\xdd" + struct.pack(">I", count) + item * count))


def test_a_message_of_the_most_frames_is_dealt_with() -> None:
    frugal(codec.encode_frame(m.Ping(1)) * codec.MAX_FRAMES)
    frugal(codec.encode_frame(m.Ping(1)) * (codec.MAX_FRAMES + 1))
    frugal(struct.pack("<II", 0, 0) * 100_000)
