"""The rules of a session, one at a time; test_link.py has them all together."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from jupyter_wsfuse.errors import LimitExceededError, LocalProtocolError, RemoteProtocolError
from jupyter_wsfuse.protocol import codec, serving, session
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.session import (
    Acked,
    Cancelled,
    ClientSession,
    ClientState,
    EngineSession,
    EngineState,
    Event,
    Notified,
    PeerClosed,
    PongReceived,
    RefusedEvent,
    Replied,
    Requested,
    Welcomed,
    read_hello,
)
from tests.helpers.fake_link import ATTR, ROOT, welcome

EIO = "the server lost the session: whether this was done is unknown"


def mkdir(seq: int) -> m.MkDir:
    return m.MkDir(seq, ROOT, b"d", 0o755)


def stat(seq: int) -> m.GetAttr:
    return m.GetAttr(seq, ROOT)


def lock(seq: int, wait: bool = True) -> m.SetLock:
    return m.SetLock(seq, 1, m.Lock(1, 0, 1, "w", 1), wait)


def attr(seq: int) -> m.AttrReply:
    return m.AttrReply(seq, ATTR)


def message(*structs: m.Struct) -> bytes:
    return b"".join(codec.encode_frame(struct) for struct in structs)


def said(peer: ClientSession | EngineSession) -> list[m.Struct]:
    """What has been said since this was last asked."""
    return [struct for data in peer.outgoing() for struct, _ in codec.decode(data)]


def client(**granted: Any) -> ClientSession:
    """An open session, which has said everything."""
    peer = ClientSession(client="test", incarnation=5)
    peer.connected("ticket")
    assert [type(event) for event in peer.receive(message(welcome(**granted)))] == [Welcomed]
    peer.recovered()
    said(peer)
    return peer


def reconnect(peer: ClientSession, **granted: Any) -> list[Event]:
    peer.disconnected()
    peer.connected("ticket")
    said(peer)
    return peer.receive(message(welcome(**{"resumed": True, **granted})))


def engine(**options: Any) -> EngineSession:
    peer = EngineSession("s1", **{"window": 8, "window_bytes": 1 << 20, **options})
    peer.attach()
    return peer


# --- states ----------------------------------------------------------------------------------------


def bring(state: ClientState) -> ClientSession:
    peer = ClientSession(client="test", incarnation=5)
    if state is ClientState.IDLE:
        return peer
    peer.connected("ticket")
    if state in (ClientState.RECOVERING, ClientState.OPEN):
        peer.receive(message(welcome()))
    if state is ClientState.OPEN:
        peer.recovered()
    if state is ClientState.LOST:
        peer.disconnected()
    if state is ClientState.CLOSED:
        peer.close()
    assert peer.state is state
    return peer


@pytest.mark.parametrize(
    ("state", "call"),
    list(itertools.product(ClientState, ["connected", "recovered", "disconnected", "close"])),
    ids=lambda value: value if isinstance(value, str) else value.value,
)
def test_client_calls_follow_the_table(state: ClientState, call: str) -> None:
    peer = bring(state)
    after = session.TRANSITIONS[call].get(state)
    arguments = ["ticket"] if call == "connected" else []
    if after is None:
        with pytest.raises(LocalProtocolError, match=f"{call} while {state.value}"):
            getattr(peer, call)(*arguments)
        assert peer.state is state
    else:
        getattr(peer, call)(*arguments)
        assert peer.state is after


def test_the_table_in_the_docstring_is_the_table_in_the_code() -> None:
    assert session.__doc__ is not None
    rows = [line.split() for line in session.__doc__.partition("\n==")[2].splitlines()[1:]]
    states = [ClientState[name] for name in rows[0][1:]]
    drawn = {
        row[0].strip("`").lower(): {
            before: ClientState[after] for before, after in zip(states, row[1:], strict=True) if after != "."
        }
        for row in rows[2:-1]
    }
    assert drawn == session.TRANSITIONS


@pytest.mark.parametrize("call", ["attach", "detach", "close"])
@pytest.mark.parametrize("state", list(EngineState))
def test_engine_calls_follow_the_table(state: EngineState, call: str) -> None:
    peer = EngineSession("s1", window=1, window_bytes=1)
    if state is EngineState.ATTACHED:
        peer.attach()
    elif state is EngineState.CLOSED:
        peer.close()
    assert peer.state is state
    after = serving.TRANSITIONS[call].get(state)
    if after is None:
        with pytest.raises(LocalProtocolError, match=f"{call} while {state.value}"):
            getattr(peer, call)()
    else:
        getattr(peer, call)()
        assert peer.state is after


# --- the handshake ---------------------------------------------------------------------------------


def test_hello_says_who_comes_back() -> None:
    peer = ClientSession(client="ann's laptop", incarnation=5, session="old", epoch=3)
    peer.connected("secret ticket", transport="relay", links="contain", handles=[7, 8])
    (data,) = peer.outgoing()
    assert read_hello(data) == m.Hello(
        [m.PROTOCOL_VERSION], "secret ticket", "old", 3, "ann's laptop", "relay", "contain", [7, 8]
    )


@pytest.mark.parametrize(
    "data", [message(m.Hello([1], "t"), m.Hello([1], "t")), message(m.Ping(1)), message(mkdir(1)), b""]
)
def test_only_one_hello_opens_a_connection(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_hello(data)


def test_welcome_tells_the_limits() -> None:
    peer = ClientSession(client="test", incarnation=5)
    peer.connected("ticket")
    granted = welcome(epoch=9, window=1 << 20, window_bytes=77, max_payload=5000)
    assert peer.receive(message(granted)) == [Welcomed(granted, "new")]
    assert (peer.session, peer.epoch, peer.window_bytes, peer.max_payload) == ("s1", 9, 77, 5000)
    assert peer.window == session.WIDEST_WINDOW
    with pytest.raises(LocalProtocolError, match="payload of 5001"):
        peer.submit(m.Write(1, 1, 0), bytes(5001))


def test_refused() -> None:
    peer = ClientSession(client="test", incarnation=5)
    peer.connected("ticket")
    assert peer.receive(message(m.Refused("busy", "later"), m.Ping(1))) == [RefusedEvent("busy", "later")]
    assert peer.state is ClientState.LOST
    assert peer.receive(b"rubbish behind it") == []
    assert peer.disconnected() == []
    peer.connected("another")


@pytest.mark.parametrize(
    ("asked", "data"),
    [
        ("", message(m.Ping(1))),
        ("", message(m.Done(1))),
        ("", message(m.Bye())),
        ("", message(welcome(), welcome())),
        ("", message(welcome(), m.Refused("busy", ""))),
        ("", message(welcome(version=2))),
        ("", message(welcome(window=0))),
        ("", message(welcome(window_bytes=0))),
        ("", message(welcome(max_payload=-1))),
        ("", message(welcome(session=""))),
        ("", message(welcome(resumed=True))),
        ("", message(welcome(recovered=True))),
        ("s1", message(welcome(resumed=True, recovered=True))),
        ("s1", message(welcome())),
        ("s0", message(welcome(resumed=True))),
        ("s0", message(welcome(recovered=True))),
    ],
)
def test_an_impossible_greeting_has_no_effect(asked: str, data: bytes) -> None:
    peer = ClientSession(client="test", incarnation=5, session=asked)
    peer.connected("ticket")
    with pytest.raises(RemoteProtocolError):
        peer.receive(data)
    assert peer.state is ClientState.GREETING
    assert peer.session == asked
    peer.disconnected()


def test_unfinished_recovery_is_asked_for_again() -> None:
    peer = client()
    assert reconnect(peer, recovered=True, resumed=False, epoch=2)[0].kind == "recovered"
    assert reconnect(peer, epoch=2)[0].kind == "recovered"
    assert reconnect(peer, session="s2", resumed=False)[0].kind == "lost"
    assert reconnect(peer, session="s2")[0].kind == "lost"
    peer.recovered()
    assert reconnect(peer, session="s2")[0].kind == "resumed"


def test_another_epoch_has_our_handles_no_more() -> None:
    """The engine was replaced, and the Welcome that said so was lost."""
    peer = client(epoch=1)
    assert reconnect(peer, resumed=True, epoch=2)[0].kind == "recovered"


# --- requests --------------------------------------------------------------------------------------


def test_numbers() -> None:
    peer = ClientSession(client="test", incarnation=0x12345 | 1 << 20)
    first = peer.next_seq()
    assert first == 2**62 | 0x12345 << 40 | 1
    assert peer.next_seq() == first + 1


@pytest.mark.parametrize("seq", [0, -1, 2**63])
def test_a_number_has_63_bits(seq: int) -> None:
    with pytest.raises(LocalProtocolError, match="sequence number"):
        client().submit(stat(seq))
    with pytest.raises(RemoteProtocolError, match="sequence number"):
        engine().receive(message(stat(seq)))


def test_a_number_in_use_is_refused() -> None:
    peer = client()
    peer.submit(mkdir(1))
    with pytest.raises(LocalProtocolError):
        peer.submit(stat(1))
    peer.receive(message(attr(1)))
    with pytest.raises(LocalProtocolError):
        peer.submit(stat(1))
    peer.done(1)
    peer.submit(stat(1))


def test_requests_wait_for_the_session() -> None:
    peer = ClientSession(client="test", incarnation=5)
    peer.submit(stat(1))
    peer.connected("ticket")
    peer.submit(stat(2))
    assert len(said(peer)) == 1
    peer.receive(message(welcome()))
    peer.submit(stat(3))
    peer.submit(stat(4), recovery=True)
    assert said(peer) == [stat(4)]
    assert (peer.held, peer.unanswered) == (3, 4)
    peer.recovered()
    assert said(peer) == [stat(1), stat(2), stat(3)]


def test_nothing_is_submitted_to_a_closed_session() -> None:
    peer = client()
    peer.submit(stat(1))
    peer.close("done with it")
    assert said(peer) == [stat(1), m.Bye("done with it")]
    with pytest.raises(LocalProtocolError, match="closed"):
        peer.submit(stat(2))
    assert peer.receive(message(attr(1))) == []
    with pytest.raises(LocalProtocolError, match="ping"):
        peer.ping(1)


def test_closing_before_the_welcome_says_bye() -> None:
    peer = bring(ClientState.GREETING)
    peer.close()
    assert [type(struct) for struct in said(peer)] == [m.Hello, m.Bye]


def test_window_of_requests() -> None:
    peer = client(window=2)
    for seq in range(1, 6):
        peer.submit(stat(seq))
    assert said(peer) == [stat(1), stat(2)]
    assert peer.receive(message(attr(2))) == [Replied(2, attr(2), b"")]  # out of order
    assert said(peer) == [stat(3)]
    peer.receive(message(attr(1), attr(3)))
    assert said(peer) == [stat(4), stat(5)]


def test_a_once_request_holds_its_place_until_it_is_done() -> None:
    peer = client(window=1)
    peer.submit(mkdir(1))
    peer.submit(mkdir(2))
    assert said(peer) == [mkdir(1)]
    with pytest.raises(LocalProtocolError, match="no answer yet"):
        peer.done(1)
    peer.receive(message(attr(1)))
    assert said(peer) == []
    peer.done(1)
    assert said(peer) == [m.Ack([1]), mkdir(2)]
    peer.done(1)
    peer.done(99)
    assert said(peer) == []


def test_window_of_bytes() -> None:
    peer = client(window_bytes=100)
    peer.submit(m.Write(1, 1, 0), bytes(60))
    peer.submit(m.Read(2, 1, 0, 40))
    peer.submit(m.Write(3, 1, 0), bytes(1))
    peer.submit(stat(4))  # behind the one that waits
    peer.submit(m.Write(5, 1, 0), bytes(500))  # larger than the window: goes alone
    assert said(peer) == [m.Write(1, 1, 0), m.Read(2, 1, 0, 40)]
    peer.receive(message(m.DataReply(2)))
    assert said(peer) == [m.Write(3, 1, 0), stat(4)]
    peer.receive(message(m.CountReply(1, 60)))
    assert said(peer) == []
    peer.receive(message(m.CountReply(3, 1)))
    assert said(peer) == [m.Write(5, 1, 0)]


def test_what_waits_for_others_does_not_starve_what_lets_it_go() -> None:
    peer = client(window=1)
    peer.submit(lock(1))
    peer.submit(lock(2))
    peer.submit(lock(3, wait=False))
    peer.submit(stat(4), recovery=True)
    assert said(peer) == [lock(1), lock(3, wait=False), stat(4)]


def test_acknowledgements_travel_with_messages_or_in_numbers() -> None:
    peer = client(window=500)
    count = session.ACKS_WAITING + 1
    for seq in range(1, count + 2):
        peer.submit(mkdir(seq))
    said(peer)
    peer.receive(message(*(attr(seq) for seq in range(1, count + 2))))
    for seq in range(1, count):
        peer.done(seq)
    assert peer.outgoing() == []
    peer.done(count)
    assert said(peer) == [m.Ack(list(range(1, count + 1)))]
    peer.done(count + 1)
    assert peer.outgoing() == []
    peer.ping(3)
    assert said(peer) == [m.Ack([count + 1]), m.Ping(3)]


def test_cancel() -> None:
    peer = client(window=1)
    peer.submit(lock(1))
    peer.submit(lock(2))
    said(peer)
    assert peer.cancel(2) is True
    assert peer.cancel(2) is False
    assert peer.cancel(1) is False
    assert said(peer) == [m.Cancel(1)]
    peer.disconnected()
    assert peer.cancel(1) is False  # it may be executing: it has to be asked for its answer
    peer.connected("ticket")
    said(peer)
    peer.receive(message(welcome(resumed=True)))
    said(peer)
    peer.recovered()
    assert said(peer) == [lock(1), m.Cancel(1)]
    assert peer.unanswered == 1


# --- after a loss ----------------------------------------------------------------------------------


def test_resume_repeats_what_is_unanswered_in_order() -> None:
    peer = client()
    for request in (mkdir(1), stat(2), mkdir(3), mkdir(4)):
        peer.submit(request)
    said(peer)
    peer.receive(message(attr(3), attr(4)))
    peer.done(4)  # this acknowledgement is lost
    assert reconnect(peer) == [Welcomed(welcome(resumed=True), "resumed")]
    peer.submit(stat(5))
    assert said(peer) == [m.Ack([], [1, 3])]
    peer.done(3)
    peer.recovered()
    assert said(peer) == [m.Ack([3]), mkdir(1), stat(2), stat(5)]
    assert peer.disconnected() == [1, 2, 5]


def test_what_was_done_between_connections_is_not_kept() -> None:
    peer = client()
    for seq in (1, 2):
        peer.submit(mkdir(seq))
    said(peer)
    peer.receive(message(attr(1), attr(2)))
    peer.disconnected()
    peer.done(1)
    peer.connected("ticket")
    said(peer)
    peer.receive(message(welcome(resumed=True)))
    assert said(peer) == [m.Ack([], [2])]


def test_what_is_not_done_holds_its_place_across_connections() -> None:
    peer = client(window=1)
    peer.submit(mkdir(1))
    said(peer)
    peer.receive(message(attr(1)))
    reconnect(peer, window=1)
    peer.recovered()
    peer.submit(mkdir(2))
    assert said(peer) == [m.Ack([], [1])]
    peer.done(1)
    assert said(peer) == [m.Ack([1]), mkdir(2)]


def test_an_answer_may_come_before_the_request_is_repeated() -> None:
    peer = client()
    peer.submit(stat(1))
    said(peer)
    reconnect(peer)
    assert peer.receive(message(attr(1))) == [Replied(1, attr(1), b"")]
    peer.recovered()
    assert said(peer) == [m.Ack([], [])]


def test_too_much_to_keep_is_not_spelled_out() -> None:
    peer = client()
    for seq in range(1, session.LONGEST_KEEP + 1):
        peer.submit(mkdir(seq))
    said(peer)
    reconnect(peer)
    (ack,) = said(peer)
    assert isinstance(ack, m.Ack)
    assert len(ack.keep or []) == session.LONGEST_KEEP
    peer.submit(mkdir(peer.next_seq()))
    reconnect(peer)
    assert said(peer) == []


def test_the_longest_keep_fits() -> None:
    seqs = [2**62 + number for number in range(session.LONGEST_KEEP)]
    assert engine().receive(message(m.Ack([], seqs))) == []


def test_a_lost_session_answers_what_cannot_be_known() -> None:
    peer = client(window=3)
    for request in (mkdir(1), stat(2), mkdir(3), mkdir(4)):
        peer.submit(request)
    said(peer)
    peer.receive(message(attr(3)))
    events = reconnect(peer, session="s2", resumed=False)
    assert events[1:] == [Replied(1, m.Error(1, "EIO", EIO), b"")]
    peer.recovered()
    assert said(peer) == [stat(2), mkdir(4)]
    peer.done(3)
    peer.done(1)
    peer.ping(1)
    assert said(peer) == [m.Ping(1)]
    with pytest.raises(OSError, match="unknown"):
        peer.submit(mkdir(5), repeated=True)
    peer.submit(stat(6), repeated=True)


def test_another_session_has_been_sent_nothing_yet() -> None:
    peer = client()
    peer.submit(stat(1))
    said(peer)
    reconnect(peer, session="s2", resumed=False)
    assert peer.cancel(1) is True
    assert peer.unanswered == 0


def test_a_second_answer_is_ignored_and_acknowledged() -> None:
    peer = client()
    peer.submit(mkdir(1))
    said(peer)
    assert len(peer.receive(message(attr(1), attr(1)))) == 1
    peer.done(1)
    assert peer.receive(message(attr(1))) == []
    peer.ping(1)
    assert said(peer) == [m.Ack([1, 1]), m.Ping(1)]


def test_a_successor_does_not_acknowledge_for_its_predecessor() -> None:
    peer = ClientSession(client="test", incarnation=5, session="s1")
    peer.connected("ticket")
    peer.receive(message(welcome(resumed=True), attr(2)))
    peer.recovered()
    assert [type(struct) for struct in said(peer)] == [m.Hello]
    peer.submit(mkdir(4), repeated=True)
    peer.forget_others()
    assert said(peer) == [mkdir(4), m.Ack([], [4])]
    peer.receive(message(attr(6)))
    peer.ping(1)
    assert said(peer) == [m.Ack([6]), m.Ping(1)]


def test_others_are_forgotten_on_the_next_connection_if_there_is_none() -> None:
    peer = ClientSession(client="test", incarnation=5, session="s1")
    peer.forget_others()
    peer.connected("ticket")
    peer.receive(message(welcome(resumed=True)))
    assert said(peer)[1:] == [m.Ack([], [])]


# --- what else the engine says ---------------------------------------------------------------------


def test_notifications_pings_and_bye() -> None:
    peer = client()
    change = m.Changed([m.Change(ATTR.identity, b"x")])
    peer.submit(stat(1))
    said(peer)
    events = peer.receive(message(change, m.InvalidateAll("?"), m.Ping(4), m.Pong(5), m.Bye("stop"), attr(1)))
    assert events == [Notified(change), Notified(m.InvalidateAll("?")), PongReceived(5), PeerClosed("stop")]
    assert peer.state is ClientState.LOST
    assert peer.outgoing() == []
    assert peer.disconnected() == [1]


REPORT = m.Report("connected", "laptop", b"/mnt", 1, 2, 3, 4, 5, 6)


def test_reports_go_one_way_and_whether_they_are_wanted_the_other() -> None:
    peer, other = client(), engine()
    said(other)
    other.watched(True)
    [message_] = said(other)
    assert peer.receive(message(message_)) == [Notified(m.Watched(True))]
    peer.report(REPORT)
    [reported] = said(peer)
    assert other.report is None
    assert other.receive(message(reported)) == []
    assert other.report == REPORT
    other.detach()
    other.watched(False)
    assert said(other) == []
    other.attach(welcome())  # that nobody looks any more is nothing that was missed
    assert [type(each) for each in said(other)] == [m.Welcome]
    with pytest.raises(LocalProtocolError, match="report while idle"):
        ClientSession(client="test", incarnation=5).report(REPORT)


def test_of_a_report_a_bounded_part_is_kept() -> None:
    peer = engine()
    rescued = m.Rescued("n" * 2000, b"p" * 2000, "r" * 2000, 1, 2)

    peer.receive(message(m.Report("s" * 9000, "h" * 9000, b"p" * 9000, 1, 2, 3, 4, 5, 6, [rescued] * 12)))
    assert peer.report is not None
    assert len(peer.report.rescue) == m.MOST_RESCUED
    assert len(message(peer.report)) < 10_000


def test_ping_is_answered() -> None:
    for peer in (client(), engine()):
        assert peer.receive(message(m.Ping(4))) == []
        assert said(peer) == [m.Pong(4)]
        peer.ping(5)
        assert said(peer) == [m.Ping(5)]
        assert peer.receive(message(m.Pong(5))) == [PongReceived(5)]


@pytest.mark.parametrize(
    "data",
    [
        message(attr(1), m.Done(2)),  # a reply of the wrong type
        message(attr(1), welcome()),
        message(attr(1), mkdir(1)),
        message(attr(1), m.Ack([1])),
        message(attr(1), m.Cancel(1)),
        message(attr(1), m.Hello([1], "")),
        message(attr(1))[:-1],
        message(attr(1)) + b"\0",
    ],
)
def test_an_illegal_message_has_no_effect_on_the_client(data: bytes) -> None:
    peer = client()
    peer.submit(stat(1))
    peer.submit(mkdir(2))
    said(peer)
    with pytest.raises(RemoteProtocolError):
        peer.receive(data)
    assert peer.disconnected() == [1, 2]


# --- the engine's end ------------------------------------------------------------------------------


def test_engine_executes_once() -> None:
    peer = engine()
    assert peer.receive(message(mkdir(1), stat(2), mkdir(1), stat(2))) == [
        Requested(1, mkdir(1), b""),
        Requested(2, stat(2), b""),
    ]
    assert peer.executing == [1, 2]
    frame = peer.reply(attr(1))
    assert frame == message(attr(1))
    assert peer.reply(attr(2)) is None
    assert said(peer) == [attr(1), attr(2)]
    assert peer.receive(message(mkdir(1))) == []
    assert said(peer) == [attr(1)]
    assert peer.receive(message(stat(2))) == [Requested(2, stat(2), b"")]
    assert peer.remembered == 1
    assert peer.receive(message(m.Ack([1, 7]))) == [Acked([1])]
    assert peer.receive(message(m.Ack([1]))) == []
    assert peer.remembered == 0


def test_engine_forgets_what_need_not_be_kept() -> None:
    peer = EngineSession(
        "s1", window=8, window_bytes=9, remembered={seq: message(attr(seq)) for seq in (1, 2, 3)}
    )
    peer.attach()
    assert peer.receive(message(mkdir(9), m.Ack([3], [2, 5]))) == [Requested(9, mkdir(9), b""), Acked([3, 1])]
    assert peer.receive(message(mkdir(2))) == []
    assert said(peer) == [attr(2)]
    assert peer.executing == [9]


def test_engine_answers_each_request_once_and_rightly() -> None:
    peer = engine()
    peer.receive(message(stat(1), m.Read(2, 1, 0, 9)))
    with pytest.raises(LocalProtocolError, match="not being executed"):
        peer.reply(attr(3))
    with pytest.raises(LocalProtocolError, match="Done does not answer GetAttr"):
        peer.reply(m.Done(1))
    with pytest.raises(LocalProtocolError, match="payload"):
        peer.reply(attr(1), b"data")
    with pytest.raises(LocalProtocolError, match="payload"):
        peer.reply(m.DataReply(2), bytes(codec.DEFAULT_MAX_PAYLOAD + 1))
    assert peer.outgoing() == []
    peer.reply(m.DataReply(2), b"data")
    peer.reply(m.Error(1, "EIO", "x" * 1000))
    with pytest.raises(LocalProtocolError, match="not being executed"):
        peer.reply(attr(1))
    frames = codec.decode(peer.outgoing()[0])
    assert frames == [(m.DataReply(2), b"data"), (m.Error(1, "EIO", "x" * serving.ERROR_TEXT), b"")]


def test_what_is_remembered_is_small() -> None:
    big = 2**63 - 1
    attrs = m.Attr(*[big] * 14)
    for reply in (
        m.Error(big, "ENAMETOOLONG", "\U0001f4a5" * serving.ERROR_TEXT), m.OpenReply(big, big, attrs),
        m.RemovedReply(big, attrs, big, attrs), m.LockReply(big, m.Lock(big, big, big, "w", big), attrs),
    ):  # fmt: skip
        assert len(message(reply)) < 1400
    once = {m.REQUESTS[kind] for kind in m.REQUESTS if kind.once}
    assert once == {m.AttrReply, m.OpenReply, m.CountReply, m.RemovedReply, m.Done, m.LockReply}


def test_engine_bounds_the_requests() -> None:
    peer = engine(window=2)
    limit = 2 * serving.SHARES
    for seq in range(1, limit + 1):
        peer.receive(message(mkdir(seq)))
    peer.receive(message(mkdir(1)))
    for seq in range(1, limit):
        peer.reply(attr(seq))
    peer.receive(message(m.Ack([1])))
    assert len(peer.receive(message(mkdir(50)))) == 1
    with pytest.raises(LimitExceededError, match=f"more than {limit} requests"):
        peer.receive(message(mkdir(51)))
    assert peer.state is EngineState.CLOSED
    assert (peer.executing, peer.remembered) == ([], 0)
    assert peer.reply(attr(50)) is None
    peer.detach()


def test_engine_bounds_the_bytes() -> None:
    peer = engine(window=100)
    size = 1 << 20
    data = bytes(size)
    for seq in range(1, 5):
        peer.receive(codec.encode_frame(m.Write(seq, 1, 0), data))
    peer.reply(m.CountReply(1, size))
    peer.receive(message(m.Read(7, 1, 0, size)))
    peer.receive(message(m.Read(8, 1, 0, -5)))
    with pytest.raises(LimitExceededError, match="bytes unanswered"):
        peer.receive(message(m.Read(9, 1, 0, 2**60)))


def test_engine_between_connections() -> None:
    peer = engine()
    peer.receive(message(mkdir(1), stat(2), mkdir(3)))
    peer.notify(m.InvalidateAll("a"))
    peer.detach()
    assert peer.reply(attr(1)) is not None
    assert peer.reply(attr(2)) is None
    peer.notify(m.InvalidateAll("b"))
    assert peer.outgoing() == []
    with pytest.raises(LocalProtocolError, match="detached"):
        peer.receive(message(m.Ping(1)))
    with pytest.raises(LocalProtocolError, match="ping"):
        peer.ping(1)
    peer.attach(welcome(resumed=True))
    assert said(peer) == [welcome(resumed=True), m.InvalidateAll("reconnected")]
    assert peer.receive(message(mkdir(1), stat(2), mkdir(3))) == [Requested(2, stat(2), b"")]
    assert said(peer) == [attr(1)]
    peer.reply(m.Error(3, "EEXIST"))
    peer.attach(welcome())  # taken over: what was meant for the old connection is not said on the new one
    assert said(peer) == [welcome(), m.InvalidateAll("reconnected")]
    change = m.Changed([m.Change(ATTR.identity)])
    peer.notify(change)
    assert said(peer) == [change]


def test_engine_without_notifications_has_nothing_to_invalidate() -> None:
    peer = engine()
    peer.detach()
    peer.attach()
    assert peer.outgoing() == []


def test_engine_cancel_and_bye() -> None:
    peer = engine()
    peer.receive(message(lock(1)))
    assert peer.receive(message(m.Cancel(1), m.Cancel(2), m.Bye("enough"), mkdir(3))) == [
        Cancelled(1),
        PeerClosed("enough"),
    ]
    assert peer.state is EngineState.CLOSED
    assert peer.reply(m.Error(1, "EINTR")) is None
    assert peer.receive(message(mkdir(4))) == []


def test_engine_ends_the_session() -> None:
    peer = engine()
    peer.close("stopping")
    assert said(peer) == [m.Bye("stopping")]
    detached = EngineSession("s1", window=1, window_bytes=1)
    detached.close()
    assert detached.outgoing() == []


@pytest.mark.parametrize(
    "data",
    [
        message(m.Hello([1], "")),
        message(welcome()),
        message(attr(1)),
        message(m.Changed([])),
        message(mkdir(1), m.Refused("busy", "")),
        message(mkdir(1))[:-1],
        message(m.SetXattr(1, ROOT, b"n", bytes(codec.MAX_REQUEST_HEADER))),
    ],
)
def test_a_client_that_breaks_the_rules_is_over(data: bytes) -> None:
    peer = EngineSession("s1", window=1, window_bytes=1, remembered={9: message(attr(9))})
    peer.attach()
    with pytest.raises(RemoteProtocolError):
        peer.receive(data)
    assert peer.state is EngineState.CLOSED
    assert (peer.executing, peer.remembered) == ([], 0)
