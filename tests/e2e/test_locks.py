"""flock and POSIX locks hold between processes on one mount, on two mounts, and with the server's own processes."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.live import Mount

pytestmark = pytest.mark.mount

DEADLINE = 60.0  # seconds

# A process that executes one lock call a line, so that a test decides the order.
AGENT = """
import errno, fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("ready", flush=True)
for line in sys.stdin:
    call, *numbers = line.split()
    try:
        n = [int(x) for x in numbers]
        if call == "flock":
            fcntl.flock(fd, n[0])
        elif call == "lockf":
            fcntl.lockf(fd, *n)
        elif call == "get":
            packed = struct.pack("hhqqi4x", n[0], 0, n[1], n[2], 0)
            got = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, packed))
            print("ok", got[0], got[2], got[3], got[4], flush=True)
            continue
        elif call == "reopen":
            os.close(os.open(sys.argv[1], os.O_RDWR))
        elif call == "write":
            os.pwrite(fd, b"%d" % n[0], 0)
        elif call == "read":
            print("ok", os.pread(fd, 100, 0).decode(), flush=True)
            continue
        print("ok", flush=True)
    except OSError as problem:
        print({errno.EDEADLK: "EDEADLK"}.get(problem.errno, errno.errorcode[problem.errno]), flush=True)
"""


class Agent:
    """A process with *path* open. ``ask`` waits for the answer, ``start`` does not."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.answer() == "ready"

    def start(self, *words: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(" ".join(map(str, words)) + "\n")

    def answer(self) -> str:
        assert first_to_answer(self) is self
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, *words: object) -> str:
        self.start(*words)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


def first_to_answer(*agents: Agent) -> Agent:
    """Which of them has something to say. They say one line for each that they were asked, so nothing is buffered."""
    ready, _, _ = select.select([agent.process.stdout for agent in agents], [], [], DEADLINE)
    assert ready, "nobody answers"
    return next(agent for agent in agents if agent.process.stdout in ready)


Pair = tuple[Agent, Agent]


@pytest.fixture(params=["one mount", "two mounts", "mount and server"])
def agents(request: pytest.FixtureRequest, live_mount: Mount, second_mount: Mount) -> Iterator[Pair]:
    (live_mount.source / "locked").touch()
    other = {
        "one mount": live_mount.path,
        "two mounts": second_mount.path,
        "mount and server": live_mount.source,
    }
    pair = Agent(live_mount.path / "locked"), Agent(other[request.param] / "locked")
    yield pair
    for agent in pair:
        agent.end()


EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_exclusive_excludes_and_shared_shares(agents: Pair, call: str) -> None:
    one, two = agents
    assert one.ask(call, EX | NB) == "ok"
    assert two.ask(call, EX | NB) == "EAGAIN"
    assert two.ask(call, SH | NB) == "EAGAIN"
    assert one.ask(call, SH | NB) == "ok"
    assert two.ask(call, SH | NB) == "ok"
    assert one.ask(call, EX | NB) == "EAGAIN"
    assert two.ask(call, UN) == "ok"
    assert one.ask(call, EX | NB) == "ok"


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_waiter_gets_the_lock_when_it_is_given_back(agents: Pair, call: str) -> None:
    one, two = agents
    assert one.ask(call, EX) == "ok"
    two.start(call, EX)
    assert one.ask("write", 42) == "ok"
    assert one.ask(call, UN) == "ok"
    assert two.answer() == "ok"
    assert two.ask("read") == "ok 42"
    assert one.ask(call, EX | NB) == "EAGAIN"


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_lock_ends_with_its_process(agents: Pair, call: str) -> None:
    one, two = agents
    assert one.ask(call, EX) == "ok"
    two.start(call, EX)
    one.process.kill()
    assert two.answer() == "ok"


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_killed_waiter_leaves_no_lock_behind(agents: Pair, call: str) -> None:
    one, two = agents
    assert one.ask(call, EX) == "ok"
    two.start(call, EX)
    two.process.send_signal(signal.SIGKILL)
    two.process.wait(30)
    assert one.ask(call, UN) == "ok"
    assert one.ask(call, EX | NB) == "ok"


def test_ranges(agents: Pair) -> None:
    one, two = agents
    assert one.ask("lockf", EX, 100, 0) == "ok"
    assert two.ask("lockf", EX | NB, 100, 100) == "ok"
    assert two.ask("lockf", EX | NB, 1, 99) == "EAGAIN"
    assert one.ask("lockf", UN, 50, 25) == "ok"
    assert two.ask("lockf", EX | NB, 50, 25) == "ok"
    assert one.ask("lockf", EX | NB, 0, 0) == "EAGAIN"
    assert two.ask("lockf", EX | NB, 25, 0) == "EAGAIN"
    assert two.ask("lockf", UN, 0, 0) == "ok"
    assert one.ask("lockf", EX | NB, 0, 0) == "ok"


def test_getlk_names_the_conflict(agents: Pair) -> None:
    one, two = agents
    assert one.ask("lockf", EX, 100, 50) == "ok"
    words = two.ask("get", fcntl.F_WRLCK, 0, 0).split()
    assert words[:4] == ["ok", str(fcntl.F_WRLCK), "50", "100"]
    assert two.ask("get", fcntl.F_WRLCK, 0, 50).split()[1] == str(fcntl.F_UNLCK)


def test_getlk_names_the_process_on_one_mount(live_mount: Mount) -> None:
    (live_mount.source / "locked").touch()
    one, two = Agent(live_mount.path / "locked"), Agent(live_mount.path / "locked")
    try:
        assert one.ask("lockf", EX, 10, 0) == "ok"
        assert two.ask("get", fcntl.F_RDLCK, 0, 0).split()[4] == str(one.process.pid)
    finally:
        one.end()
        two.end()


def test_closing_any_descriptor_drops_posix_locks(agents: Pair) -> None:
    one, two = agents
    assert one.ask("lockf", EX) == "ok"
    assert one.ask("reopen") == "ok"
    assert two.ask("lockf", EX | NB) == "ok"


def test_two_waiting_for_each_other_is_deadlock(live_mount: Mount, second_mount: Mount) -> None:
    (live_mount.source / "locked").touch()
    one, two = Agent(live_mount.path / "locked"), Agent(second_mount.path / "locked")
    try:
        assert one.ask("lockf", EX, 1, 0) == "ok"
        assert two.ask("lockf", EX, 1, 1) == "ok"
        one.start("lockf", EX, 1, 1)
        two.start("lockf", EX, 1, 0)
        # Whichever request closes the circle is the one refused; the other goes on waiting.
        refused = first_to_answer(one, two)
        assert refused.answer() == "EDEADLK"
        waiting, held = (one, 1) if refused is two else (two, 0)
        assert refused.ask("lockf", UN, 1, held) == "ok"
        assert waiting.answer() == "ok"
    finally:
        one.end()
        two.end()


def test_counter_under_lock_is_exact(live_mount: Mount, second_mount: Mount) -> None:
    counter = live_mount.source / "counter"
    counter.write_text("0")
    script = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(50):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    value = int(os.pread(fd, 20, 0))
    os.pwrite(fd, b"%d" % (value + 1), 0)
    fcntl.lockf(fd, fcntl.LOCK_UN)
"""
    places = [live_mount.path, second_mount.path, live_mount.source, live_mount.path]
    running = [subprocess.Popen([sys.executable, "-c", script, place / "counter"]) for place in places]
    for process in running:
        assert process.wait(60) == 0
    assert counter.read_text() == "200"


def test_open_file_description_locks(live_mount: Mount, second_mount: Mount) -> None:
    (live_mount.source / "locked").touch()

    def set_lock(fd: int, kind: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))

    one = os.open(live_mount.path / "locked", os.O_RDWR)
    others: list[Callable[[], int]] = [
        lambda: os.open(live_mount.path / "locked", os.O_RDWR),
        lambda: os.open(second_mount.path / "locked", os.O_RDWR),
    ]
    try:
        set_lock(one, fcntl.F_WRLCK)
        for make in others:
            fd = make()
            with pytest.raises(BlockingIOError):
                set_lock(fd, fcntl.F_WRLCK)
            os.close(fd)
        set_lock(one, fcntl.F_UNLCK)
        fd = others[1]()
        set_lock(fd, fcntl.F_WRLCK)
        os.close(fd)
    finally:
        os.close(one)
