"""A conversation that is cut at every byte, in each direction, and taken up again in every way."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.session import ClientSession, ClientState, EngineState
from tests.helpers.fake_link import ROOT, ClientModel, EngineModel, World

LOCK = m.Lock(1, 0, 9, "w", 1)
SCRIPT = [
    [m.MkDir(2, ROOT, b"a", 0o755), m.GetAttr(101, ROOT)],
    [m.Open(4, ROOT, 0), m.Write(6, 9, 0)],
    [m.SetLock(8, 9, LOCK, True)],
    [],
    [m.Read(103, 9, 0, 5), m.Unlink(10, ROOT, b"a")],
    [m.Rename(12, ROOT, b"a", ROOT, b"b"), m.Close(105, 9)],
]


def converse(up: int | None, down: int | None, then: str, *, deliver_rest: bool, window: int) -> World:
    client, engine = ClientModel(), EngineModel(window=window)
    world = World(client, engine, up, down)
    script = list(SCRIPT)
    quiet = pinged = False
    while True:
        if world.up.broken or world.down.broken:
            if deliver_rest:  # the two ends notice at different moments
                world.turn()
            world.disconnect()
            match then:
                case "die":
                    engine.die()
                case "die halfway":
                    if engine.jobs:
                        engine.execute(die_before_reply=True)
                    engine.die()
                case "lose":
                    engine.lose()
                case "answer meanwhile":
                    while engine.jobs:
                        engine.execute()
            world.connect()
            quiet = False
        if script:
            for request in script.pop(0):
                client.submit(request, b"data" if isinstance(request, m.Write) else b"")
        elif quiet and pinged:
            return world
        elif quiet:
            client.session.ping(1)  # carries the acknowledgements
            pinged = True
        before = (world.up.sent, world.down.sent)
        world.turn()
        quiet = before == (world.up.sent, world.down.sent) and not engine.jobs


def check(world: World, *, lost: bool) -> None:
    client, engine = world.client, world.engine
    for seq, request in client.submitted.items():
        assert len(client.answers[seq]) == 1, request
        (reply,) = client.answers[seq]
        if lost and request.once and isinstance(reply, m.Error):
            assert reply.errno == "EIO"
            assert engine.effects[seq] <= 1
        else:
            assert isinstance(reply, m.REQUESTS[type(request)])
            assert engine.effects[seq] == 1 if request.once else engine.effects[seq] >= 1
    assert client.session.unanswered == client.session.held == 0
    assert engine.session is not None
    assert engine.session.remembered == 0
    assert engine.session.executing == []
    assert engine.record == {}


@pytest.mark.parametrize("then", ["resume", "answer meanwhile", "die", "die halfway", "lose"])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("deliver_rest", [False, True], ids=["at once", "one end first"])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_cut_at_every_byte(direction: str, then: str, deliver_rest: bool, window: int) -> None:
    whole = converse(None, None, "", deliver_rest=False, window=window)
    check(whole, lost=False)
    length = getattr(whole, direction).sent
    assert length > 250
    kinds = set()
    for cut in range(length):
        up, down = (cut, None) if direction == "up" else (None, cut)
        world = converse(up, down, then, deliver_rest=deliver_rest, window=window)
        check(world, lost=then == "lose")
        kinds.update(world.client.kinds)
    expected = {"die": "recovered", "die halfway": "recovered", "lose": "lost"}.get(then, "resumed")
    assert kinds == {"new", expected}


class Sessions(RuleBasedStateMachine):
    """Requests, losses and replacements in any order; the world's bookkeeping is the specification."""

    @initialize(window=st.integers(1, 5), window_bytes=st.integers(1, 40))
    def begin(self, window: int, window_bytes: int) -> None:
        self.client = ClientModel()
        self.engine = EngineModel(window, window_bytes)
        self.world = World(self.client, self.engine)
        self.lost = False
        self.connected = True
        self.number = 0
        self.dropped: set[int] = set()
        self.up: list[bytes] = []
        self.down: list[bytes] = []

    # The link, message by message: what is under way when it breaks is lost.

    @rule()
    def client_sends(self) -> None:
        if self.connected:
            self.up += self.client.session.outgoing()

    @rule(count=st.integers(1, 3))
    def arrives_up(self, count: int) -> None:
        for _ in range(min(count, len(self.up))):
            self.engine.receive(self.up.pop(0))

    @rule()
    def engine_sends(self) -> None:
        if self.connected and self.engine.session:
            self.down += self.engine.session.outgoing()

    @rule(count=st.integers(1, 3))
    def arrives_down(self, count: int) -> None:
        for _ in range(min(count, len(self.down))):
            self.client.receive(self.down.pop(0))

    @precondition(lambda self: self.connected)
    @rule()
    def link_breaks(self) -> None:
        self.up.clear()
        self.down.clear()
        self.world.disconnect()
        self.connected = False

    @precondition(lambda self: not self.connected)
    @rule()
    def reconnects(self) -> None:
        self.world.connect()
        self.connected = True

    # The engine.

    @precondition(lambda self: self.engine.jobs)
    @rule(data=st.data())
    def executes(self, data: st.DataObject) -> None:
        self.engine.execute(data.draw(st.integers(0, len(self.engine.jobs) - 1)))

    @precondition(lambda self: not self.connected)
    @rule(halfway=st.booleans())
    def engine_is_replaced(self, halfway: bool) -> None:
        if halfway and self.engine.jobs:
            self.engine.execute(die_before_reply=True)
        self.engine.die()

    @precondition(lambda self: not self.connected)
    @rule()
    def session_is_lost(self) -> None:
        self.engine.lose()
        self.lost = True

    @rule()
    def engine_notifies(self) -> None:
        if self.engine.session and self.engine.session.state is EngineState.ATTACHED:
            self.engine.session.notify(m.InvalidateAll())

    # The client.

    @rule(kind=st.sampled_from(["write", "read", "mkdir", "lock", "reopen", "stat"]), size=st.integers(0, 50))
    def submits(self, kind: str, size: int) -> None:
        self.number += 1
        seq = self.number
        if kind == "write":
            self.client.submit(m.Write(seq, 1, 0), bytes(size))
        elif kind == "read":
            self.client.submit(m.Read(seq, 1, 0, size))
        elif kind == "mkdir":
            self.client.submit(m.MkDir(seq, ROOT, b"d", 0o755))
        elif kind == "lock":
            self.client.submit(m.SetLock(seq, 1, LOCK, True))
        elif kind == "reopen":
            self.client.submit(m.Reopen(seq, ROOT, 1, 0), recovery=True)
        else:
            self.client.submit(m.GetAttr(seq, ROOT))

    @precondition(lambda self: self.client.session.state is ClientState.RECOVERING)
    @rule()
    def recovers(self) -> None:
        self.client.session.recovered()

    @precondition(lambda self: self.client.undone)
    @rule(data=st.data())
    def acknowledges(self, data: st.DataObject) -> None:
        self.client.session.done(
            self.client.undone.pop(data.draw(st.integers(0, len(self.client.undone) - 1)))
        )

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def cancels(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(1, self.number))
        if self.client.session.cancel(seq):
            self.dropped.add(seq)

    @rule()
    def pings(self) -> None:
        if self.client.session.state in (ClientState.OPEN, ClientState.RECOVERING):
            self.client.session.ping(1)

    @invariant()
    def at_most_once(self) -> None:
        for seq, request in getattr(self, "client", ClientModel()).submitted.items():
            assert len(self.client.answers[seq]) <= 1
            assert not request.once or self.engine.effects[seq] <= 1
            assert seq not in self.dropped or not self.engine.effects[seq]

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        if self.connected:
            self.link_breaks()
        self.world.connect()
        self.world.drain()
        self.client.session.ping(1)
        self.world.drain()
        for seq in self.dropped:
            assert self.client.answers.pop(seq) == []
            del self.client.submitted[seq]
        check(self.world, lost=self.lost)


Sessions.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSessions = Sessions.TestCase


def test_a_successor_takes_the_session_over() -> None:
    """The kernel repeats to a new process what the old one had asked for, with the same numbers."""
    engine = EngineModel()
    old = ClientModel()
    world = World(old, engine)
    world.turn()
    write, mkdir, done, read = (
        m.Write(2, 1, 0), m.MkDir(4, ROOT, b"d", 0o755), m.MkDir(6, ROOT, b"e", 0o755), m.Read(8, 1, 0, 5),
    )  # fmt: skip
    for request in (write, mkdir, done, read):
        old.submit(request)
    world.turn(executes=False)
    engine.execute(0)
    engine.execute(1)  # the engine has done `write` and `done`; the old process knew of neither
    world.disconnect()

    new = ClientModel(ClientSession(client="new", incarnation=6, session=old.session.session, epoch=1))
    world = World(new, engine)
    new.submit(write, repeated=True)
    world.turn(executes=False)
    engine.execute(0)  # its answer arrives before the kernel has repeated the request
    world.turn(executes=False)
    new.submit(mkdir, repeated=True)
    new.submit(read, repeated=True)
    world.drain()
    new.session.ping(1)
    world.drain()
    assert new.kinds == ["resumed"]
    assert [len(new.answers[seq]) for seq in (2, 4, 8)] == [1, 1, 1]
    assert [engine.effects[seq] for seq in (2, 4, 6)] == [1, 1, 1]
    assert list(engine.record) == [6]
    new.session.forget_others()
    world.drain()
    assert engine.record == {}
    with pytest.raises(OSError, match="unknown"):
        new.submit(m.MkDir(10, ROOT, b"d", 0o755), repeated=True)


def test_a_successor_finds_the_session_lost() -> None:
    new = ClientModel(ClientSession(client="new", incarnation=6, session="gone", epoch=1))
    engine = EngineModel()
    new.submit(m.MkDir(2, ROOT, b"d", 0o755), repeated=True)
    new.submit(m.GetAttr(4, ROOT), repeated=True)
    new.submit(m.MkDir(6, ROOT, b"e", 0o755))
    world = World(new, engine)
    world.drain()
    assert new.kinds == ["lost"]
    assert engine.effects == {4: 1, 6: 1}
    (reply,) = new.answers[2]
    assert isinstance(reply, m.Error)
    assert reply.errno == "EIO"
