"""Frames: exact bytes, limits in both directions, and what happens to rubbish."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.errors import LimitExceededError, LocalProtocolError, RemoteProtocolError
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.fake_link import ATTR, ROOT

READ = m.Read(5, 7, 4096, 100)


def frame(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<II", len(header), len(payload)) + header + payload


def test_the_bytes_of_a_frame() -> None:
    assert codec.encode_frame(m.Ping(1)) == bytes.fromhex("03000000 00000000 92 05 01")
    assert (
        codec.encode_frame(m.Write(1, 2, 3), b"abc")
        == bytes.fromhex("06000000 03000000 95 20 01 02 03 c2") + b"abc"
    )


def test_a_head_is_a_frame_without_its_payload() -> None:
    assert codec.encode_head(m.DataReply(1), 3) + b"abc" == codec.encode_frame(m.DataReply(1), b"abc")


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_several_frames_in_a_message(convert: Any) -> None:
    encoder = codec.Encoder()
    assert not encoder
    assert encoder.take() == []
    encoder.add(READ)
    encoder.add(m.Write(6, 7, 0), memoryview(b"data"))
    encoder.add(m.DataReply(7), bytearray(b"more"))
    encoder.add_first(m.Ack([1, 2]))
    assert encoder
    (message,) = encoder.take()
    assert not encoder
    assert codec.decode(convert(message)) == [
        (m.Ack([1, 2]), b""), (READ, b""), (m.Write(6, 7, 0), b"data"), (m.DataReply(7), b"more"),
    ]  # fmt: skip


def test_first_of_nothing() -> None:
    encoder = codec.Encoder()
    encoder.add_first(m.Ack([1]))
    assert codec.decode(encoder.take()[0]) == [(m.Ack([1]), b"")]


def test_clear() -> None:
    encoder = codec.Encoder()
    encoder.add(READ)
    encoder.clear()
    encoder.add(m.Ping(1))
    assert encoder.take() == [codec.encode_frame(m.Ping(1))]


def test_messages_are_bounded() -> None:
    encoder = codec.Encoder()
    payload = bytes(codec.BATCH // 2)
    for seq in range(3):
        encoder.add(m.DataReply(seq), payload)
    encoder.add(m.DataReply(3), bytes(codec.DEFAULT_MAX_PAYLOAD))
    encoder.add_first(m.Ping(1))
    messages = encoder.take()
    assert [[getattr(head, "seq", None) for head, _ in codec.decode(message)] for message in messages] == [
        [None, 0], [1], [2], [3],
    ]  # fmt: skip
    for _ in range(10_000):
        encoder.add(READ)
    encoder.add_first(m.Ping(1))
    messages = encoder.take()
    assert sum(len(codec.decode(message)) for message in messages) == 10_001
    assert len(messages) == 3


def test_the_largest_frame_fits_in_a_message() -> None:
    largest = 8 + codec.MAX_HEADER + codec.DEFAULT_MAX_PAYLOAD
    assert largest + codec.BATCH < codec.MAX_MESSAGE


def test_payloads_are_copied_once_or_not_at_all() -> None:
    payload = bytes(1 << 20)
    message = codec.encode_frame(m.DataReply(1), payload)
    for copy, allowed in ((True, 1.1), (False, 0.1)):
        tracemalloc.start()
        frames = codec.client_decoder.decode(message, copy=copy)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < allowed * len(payload)
        assert frames[0][1] == payload
        assert type(frames[0][1]) is (bytes if copy else memoryview)
    encoder = codec.Encoder()
    tracemalloc.start()
    encoder.add(m.DataReply(1), payload)
    encoder.take()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * len(payload)


def test_our_own_mistakes() -> None:
    encoder = codec.Encoder()
    with pytest.raises(LocalProtocolError, match="Read takes no payload"):
        encoder.add(READ, b"data")
    with pytest.raises(LocalProtocolError, match="payload of 1052673 bytes"):
        encoder.add(m.DataReply(1), bytes(codec.DEFAULT_MAX_PAYLOAD + 1))
    with pytest.raises(LocalProtocolError, match="header of"):
        encoder.add(m.ValueReply(1, bytes(codec.MAX_HEADER)))
    with pytest.raises(LocalProtocolError, match="header of"):
        codec.encode_head(m.ValueReply(1, bytes(100)), max_header=100)
    assert not encoder


@pytest.mark.parametrize(
    ("message", "error", "complaint"),
    [
        (b"", RemoteProtocolError, "ends within a frame's lengths"),
        (b"\0" * 7, RemoteProtocolError, "ends within a frame's lengths"),
        (b"\0" * 8, RemoteProtocolError, "malformed header"),
        (codec.encode_frame(READ)[:-1], RemoteProtocolError, "ends within a frame"),
        (codec.encode_frame(READ) + b"\0", RemoteProtocolError, "ends within a frame's lengths"),
        (struct.pack("<II", 3, 1) + b"\x92\x05\x01", RemoteProtocolError, "ends within a frame"),
        (struct.pack("<II", codec.MAX_HEADER + 1, 0), LimitExceededError, "header of 1048577"),
        (struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF), LimitExceededError, "header of 4294967295"),
        (struct.pack("<II", 1, codec.DEFAULT_MAX_PAYLOAD + 1), LimitExceededError, "payload of 1052673"),
        (bytes(codec.MAX_MESSAGE + 1), LimitExceededError, "message of 4194305"),
        (codec.encode_frame(READ) * (codec.MAX_FRAMES + 1), LimitExceededError, "more than 4096 frames"),
        (frame(b"\x92\x05\x01", b"x"), RemoteProtocolError, "Ping with a payload"),
        (frame(b"\x92\x7f\x01"), RemoteProtocolError, "Invalid value 127"),
        (frame(b"\x92\xa4Ping\x01"), RemoteProtocolError, "malformed header"),
        (frame(b"\x91\x05"), RemoteProtocolError, "malformed header"),
        (frame(b"\x92\x05\x01\x01"), RemoteProtocolError, "trailing"),
        (frame(b"\x92\x05\xca\0\0\0\0"), RemoteProtocolError, "malformed header"),
        (frame(b"\x93\x03\xa1\xff\xa1a"), RemoteProtocolError, "utf-8"),
        (frame(b"\x92\x04\xdd\xff\xff\xff\xff"), RemoteProtocolError, "truncated"),
        (frame(b"\x93\x05\x01" + b"\x91" * 100_000), RemoteProtocolError, "recursion"),
        (frame(b"\xc1"), RemoteProtocolError, "malformed header"),
    ],
)
def test_the_peers_mistakes(message: bytes, error: type[RemoteProtocolError], complaint: str) -> None:
    for data in (message, memoryview(message)):
        with pytest.raises(RemoteProtocolError, match=complaint) as caught:
            codec.decode(data)
        assert type(caught.value) is error
        assert len(str(caught.value)) < 300


def test_exactly_the_limits() -> None:
    payload = bytes(codec.DEFAULT_MAX_PAYLOAD)
    assert codec.decode(codec.encode_frame(m.DataReply(1), payload)) == [(m.DataReply(1), payload)]
    value = m.ValueReply(1, bytes(codec.MAX_HEADER - 8))
    assert len(codec.encode_frame(value)) == codec.MAX_HEADER + 8
    assert codec.decode(codec.encode_frame(value)) == [(value, b"")]
    assert len(codec.decode(codec.encode_frame(READ) * codec.MAX_FRAMES)) == codec.MAX_FRAMES
    small = codec.Decoder([m.DataReply], max_payload=3, max_header=3)
    assert small.decode(codec.encode_frame(m.DataReply(1), b"abc")) == [(m.DataReply(1), b"abc")]
    with pytest.raises(LimitExceededError):
        small.decode(codec.encode_frame(m.DataReply(1), b"abcd"))
    with pytest.raises(LimitExceededError):
        small.decode(codec.encode_frame(m.DataReply(1000)))


def test_a_complaint_does_not_quote_the_peer_at_length() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(frame(b"\x92\xda\xff\xff" + b"x" * 0xFFFF + b"\x01"))
    assert len(str(caught.value)) < 300


def test_each_side_accepts_only_what_the_other_may_say() -> None:
    everything = {*m.REQUESTS, *m.REPLIES, *m.CONTROL}
    assert {*codec.FROM_CLIENT, m.Hello} | {*codec.FROM_ENGINE} == everything
    assert {*codec.FROM_CLIENT} & {*codec.FROM_ENGINE} == {m.Ping, m.Pong, m.Bye}
    for message, theirs in ((READ, codec.client_decoder), (m.Done(1), codec.engine_decoder)):
        with pytest.raises(RemoteProtocolError):
            theirs.decode(codec.encode_frame(message))


# --- fuzz ------------------------------------------------------------------------------------------

integers = st.integers(-(2**63), 2**64 - 1)
samples: st.SearchStrategy[tuple[m.Struct, bytes]] = st.one_of(
    st.tuples(st.builds(m.Write, integers, integers, integers), st.binary(max_size=50)),
    st.tuples(st.builds(m.DataReply, integers), st.binary(max_size=50)),
    st.tuples(
        st.one_of(
            st.builds(m.Lookup, integers, st.builds(m.Ref, st.binary()), st.binary(max_size=300)),
            st.builds(m.Ack, st.lists(integers), st.none() | st.lists(integers)),
            st.builds(m.Error, integers, st.text(), st.text()),
            st.builds(m.Hello, st.lists(integers), st.text(), handles=st.none() | st.lists(integers)),
            st.just(m.Changed([m.Change(ATTR.identity), m.Change(ATTR.identity, b"n")])),
            st.just(m.DirReply(1, [m.DirEntry(b"n", 1, 2, 4, ATTR), m.DirEntry(b"..", 2, 2, 4)], True)),
            st.builds(m.Stats, integers),
            st.builds(m.StatsReply, integers, st.dictionaries(st.text(), st.lists(integers), max_size=5)),
            st.just(m.Reopen(1, ROOT, 7, 0, False, [m.Lock(1, 0, 9, "w", 1)])),
        ),
        st.just(b""),
    ),
)


@given(st.lists(samples, min_size=1, max_size=8))
def test_what_is_encoded_is_decoded(frames: list[tuple[m.Struct, bytes]]) -> None:
    encoder = codec.Encoder()
    for message, payload in frames:
        encoder.add(message, payload)
    (data,) = encoder.take()
    assert codec.decode(data) == frames
    assert codec.decode(data, copy=False) == frames


def decode_anything(data: bytes) -> None:
    for decoder in (codec.client_decoder, codec.engine_decoder, codec.hello_decoder):
        tracemalloc.start()
        try:
            decoder.decode(data)
        except RemoteProtocolError as exc:
            assert len(str(exc)) < 300  # noqa: PT017 - success is as good
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 50_000 + 100 * len(data)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes(data: bytes) -> None:
    decode_anything(data)
    decode_anything(frame(data[:100], data[100:]))


@given(st.lists(samples, min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=300)
def test_mutated_messages(frames: list[tuple[m.Struct, bytes]], data: st.DataObject) -> None:
    message = bytearray(b"".join(codec.encode_frame(*pair) for pair in frames))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message)))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set" if at < len(message):
                message[at] = data.draw(
                    st.sampled_from([0, 1, 0x7F, 0x91, 0xC0, 0xC6, 0xDB, 0xDD, 0xDF, 0xFF])
                )
            case "cut":
                del message[at : at + data.draw(st.integers(1, 9))]
            case _:
                message[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    decode_anything(bytes(message))
