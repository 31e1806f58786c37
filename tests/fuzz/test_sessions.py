"""Both session machines, with a peer that says anything at any time: it is refused, and costs a bounded amount."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.errors import LocalProtocolError, RemoteProtocolError
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.events import Cancelled, Replied, Requested, Welcomed
from jupyter_wsfuse.protocol.serving import SHARES
from jupyter_wsfuse.protocol.session import ClientSession, ClientState, EngineSession, EngineState
from tests.fuzz.anything import any_of, mangled, nothing_special
from tests.helpers.fake_link import ATTR
from tests.helpers.fuzzing import examples

WINDOW, WINDOW_BYTES = 4, 1000
few = st.one_of(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0, -1, 2**63, 2**63 - 1]))


def numbers(name: str, kind: Any) -> st.SearchStrategy[Any] | None:
    """Few sequence numbers, so that they meet."""
    if name in ("seq", "nonce", "seqs", "keep") and kind is int:
        return few
    if name == "size":
        return st.sampled_from([0, 100, 900, 1 << 20, 1 << 62, -1])
    return nothing_special(name, kind)


def welcome() -> m.Welcome:
    return m.Welcome(1, "session", 1, False, False, WINDOW, WINDOW_BYTES, 1 << 20, "default", ATTR, 0, 0)


@st.composite
def message(draw: st.DrawFn, kinds: list[type[m.Struct]]) -> bytes:
    frames = draw(st.lists(any_of(kinds, numbers), min_size=1, max_size=6))
    whole = b"".join(
        codec.encode_frame(each, b"d" * draw(st.integers(0, 300)) if type(each) in m.WITH_PAYLOAD else b"")
        for each in frames
    )
    return draw(mangled(whole)) if draw(st.integers(0, 9)) == 0 else whole


FROM_CLIENT = list(codec.FROM_CLIENT)
FROM_ENGINE = list(codec.FROM_ENGINE)


@examples(100)
@given(data=st.data())
def test_an_engine_s_session(data: st.DataObject) -> None:
    session = EngineSession("session", window=WINDOW, window_bytes=WINDOW_BYTES)
    session.attach(welcome())
    executing: dict[int, type[m.Request]] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        if session.state is EngineState.DETACHED:
            session.attach(welcome())
        try:
            events = session.receive(data.draw(message(FROM_CLIENT)))
        except RemoteProtocolError:
            assert session.state is EngineState.CLOSED
            assert not session.executing
            assert not session.remembered
            return
        for event in events:
            if isinstance(event, Requested):
                assert event.seq not in executing
                executing[event.seq] = type(event.request)
            elif isinstance(event, Cancelled):
                assert event.seq in executing
        if session.state is EngineState.CLOSED:
            return
        assert set(executing) == set(session.executing)
        assert len(session.executing) + session.remembered <= SHARES * WINDOW
        for seq in data.draw(st.sets(st.sampled_from(sorted(executing)))) if executing else ():
            session.reply(m.Error(seq, "EIO", "x" * 10_000))
            del executing[seq]
        for each in session.outgoing():
            codec.client_decoder.decode(bytes(each))
        if data.draw(st.integers(0, 5)) == 0:
            session.detach()


@examples(100)
@given(data=st.data())
def test_a_client_s_session(data: st.DataObject) -> None:
    """A server that is not to be trusted: at worst the connection is closed."""
    session = ClientSession(client="c", incarnation=1)
    asked: set[int] = set()
    answered: set[int] = set()
    for _ in range(data.draw(st.integers(1, 12))):
        if session.state in (ClientState.IDLE, ClientState.LOST):
            session.connected("ticket")
        if data.draw(st.booleans()):
            seq = data.draw(st.integers(1, 12))
            if seq not in asked:
                session.submit(
                    data.draw(
                        st.sampled_from([m.GetAttr(seq, m.Ref(b"")), m.MkDir(seq, m.Ref(b""), b"d", 0)])
                    )
                )
                asked.add(seq)
        for each in session.outgoing():
            codec.decode(bytes(each))
        greeting = session.state is ClientState.GREETING and data.draw(st.integers(0, 3))
        said = codec.encode_frame(welcome()) if greeting else data.draw(message(FROM_ENGINE))
        try:
            events = session.receive(said)
        except RemoteProtocolError:
            session.disconnected()
            continue
        except LocalProtocolError:  # we are at fault: nobody is connected
            assert session.state in (ClientState.LOST, ClientState.CLOSED)
            continue
        for event in events:
            if isinstance(event, Replied):
                assert event.seq in asked
                assert event.seq not in answered
                answered.add(event.seq)
            elif isinstance(event, Welcomed):
                assert event.welcome.window >= 1
        if session.state is ClientState.RECOVERING:
            session.recovered()
        assert session.unanswered == len(asked - answered)
        for seq in data.draw(st.sets(st.sampled_from(sorted(answered)))) if answered else ():
            session.done(seq)


@examples(200)
@given(data=st.lists(st.binary(max_size=200), max_size=4))
def test_bytes_that_are_no_messages(data: list[bytes]) -> None:
    engine = EngineSession("session", window=WINDOW, window_bytes=WINDOW_BYTES)
    engine.attach(welcome())
    client = ClientSession(client="c", incarnation=1)
    for each in data:
        if client.state in (ClientState.IDLE, ClientState.LOST):
            client.connected("ticket")
        for peer in (engine, client):
            try:
                peer.receive(each)
            except RemoteProtocolError:
                if peer is client:
                    client.disconnected()
