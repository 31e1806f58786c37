"""The vocabulary: consistent with itself, and printable without secrets or length."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from jupyter_wsfuse.protocol import messages as m
from tests.helpers.fake_link import ATTR, ROOT, welcome


def test_every_message_is_listed_and_has_a_tag_of_its_own() -> None:
    tagged = {
        kind
        for _, kind in inspect.getmembers(m, inspect.isclass)
        if issubclass(kind, m.Struct) and kind.__struct_config__.tag is not None
    }
    listed = [*m.REQUESTS, *m.REPLIES, *m.CONTROL]
    assert len(listed) == len(set(listed)) == len({kind.__struct_config__.tag for kind in listed})
    assert tagged == set(listed)
    assert all(issubclass(kind, m.Request) for kind in m.REQUESTS)
    assert set(m.REQUESTS.values()) | {m.Error} == set(m.REPLIES)
    assert set(m.WITH_PAYLOAD) <= set(listed)


def test_numbers_come_first_in_requests_and_replies() -> None:
    for kind in [*m.REQUESTS, *m.REPLIES]:
        assert kind.__struct_fields__[0] == "seq"


def test_what_changes_something_is_executed_once() -> None:
    assert all(kind.once for kind in m.REQUESTS if kind.mutating)
    assert {kind for kind in m.REQUESTS if kind.waits} == {m.SetLock}
    assert not m.Read.once
    assert not m.Close.once


def test_fields_that_a_newer_peer_appends_are_ignored() -> None:
    newer = msgspec.msgpack.encode([5, 17, "something new"])
    assert msgspec.msgpack.decode(newer, type=m.Ping) == m.Ping(17)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([4, [1]]), type=m.Ack) == m.Ack([1], None)


def test_identity() -> None:
    assert ATTR.identity == m.Identity(1, 2, 4)
    assert len({ATTR.identity, m.Identity(1, 2, 4)}) == 1


def test_secrets_are_not_printed() -> None:
    assert str(m.Hello([1], "secret", "secret", client="ann")) == (
        "Hello(versions=[1], ticket=***, session=***, epoch=0, client='ann', transport='direct', links='keep', "
        "handles=None, features=[])"
    )
    assert "secret" not in str(welcome("secret"))


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (m.Ping(1), "Ping(nonce=1)"),
        (m.LinkReply(1, b"a/\xff\n"), r"LinkReply(seq=1, target='a/\\xff\n')"),
        (m.GetAttr(1, ROOT), "GetAttr(seq=1, ref=Ref(path='', identity=None, handle=0))"),
        (
            m.GetAttr(1, m.Ref(b"x", m.Identity(1, 2, 3))),
            "GetAttr(seq=1, ref=Ref(path='x', identity=Identity(dev=1, ino=2, btime=3), handle=0))",
        ),
        (m.Ack(list(range(1000))), "Ack(seqs=<1000 items>, keep=None)"),
        (m.ValueReply(1, b"v" * 99), f"ValueReply(seq=1, value='{'v' * 64}'...(99 bytes))"),
        (
            m.StatsReply(1, {"Open": [2, 0, 9, 4, 0, 0]}),
            "StatsReply(seq=1, operations={'Open': [2, 0, 9, 4, 0, 0]})",
        ),
        (m.StatsReply(1, {str(i): [] for i in range(9)}), "StatsReply(seq=1, operations=<9 items>)"),
        (m.NamesReply(1, [b"a", b"b"]), "NamesReply(seq=1, names=[b'a', b'b'])"),
    ],
)
def test_a_message_prints_as_one_line(message: m.Struct, line: str) -> None:
    assert str(message) == line


def test_the_line_is_bounded() -> None:
    for message in (m.Error(1, "E" * 9999, "x" * 9999), m.Bye("\n" * 9999), m.NamesReply(1, [b"n" * 9999])):
        assert len(str(message)) < 1000
        assert "\n" not in str(message)
