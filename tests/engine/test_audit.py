"""The audit of one tenant: what is recorded, when it is on disk, and what happens when it cannot be written."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.auditlog import Filter, query, verify
from jupyter_wsfuse.engine import audit as module
from jupyter_wsfuse.engine.audit import TenantAudit
from jupyter_wsfuse.engine.tenants import AuditOptions
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Error, Ref
from tests.helpers.auditing import Log, Person
from tests.helpers.waiting import eventually

ANN = Person()
BEN = Person("fedcba9876543210" * 2, "ben", "192.0.2.8", "desktop", "token1")
NO_RIGHT = Error(1, "EACCES", "denied by t: deny write a")
CREATE = m.Create(1, Ref(b""), b"a", 0o644, 0)

Make = Callable[..., TenantAudit]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit")


@pytest.fixture
def make(log: Log, caplog: pytest.LogCaptureFixture) -> Iterator[Make]:
    made: list[TenantAudit] = []

    def maker(**options: Any) -> TenantAudit:
        more = {name: options.pop(name) for name in ("on_state", "retry") if name in options}
        made.append(
            TenantAudit("t", AuditOptions(**options), log.directory, log.key, clock=log.clock, **more)
        )
        return made[-1]

    yield maker
    for audit in made:
        audit.close()
        assert audit._closed


def record(audit: TenantAudit, request: m.Request, path: bytes = b"a", **more: Any) -> None:
    """As the dispatcher does."""
    error, rule = more.get("error"), more.get("rule", "")
    if audit.wants(type(request), error is not None, module.is_denied(error, rule)):
        paths = path, more.get("new_path", b"")
        audit.record(more.get("session", ANN), request, paths, error, rule, more.get("size", 0), 1_500_000)


def found(log: Log, **wanted: Any) -> list[dict[str, Any]]:
    own = ("start", "restart", "stop")
    return [entry for entry in query(log.directory, Filter(**wanted)) if entry["operation"] not in own][::-1]


def names(log: Log, **wanted: Any) -> list[str]:
    return [f"{entry['operation']} {entry.get('path', '')}".strip() for entry in found(log, **wanted)]


def test_who_did_what_when_from_where(make: Make, log: Log) -> None:
    audit = make()
    record(audit, m.Unlink(1, Ref(b"data"), b"\xff.csv"), b"data/\xff.csv", session=BEN)
    record(
        audit,
        m.Rename(2, Ref(b""), b"a", Ref(b""), b"b"),
        b"a",
        new_path=b"b",
        error=NO_RIGHT,
        rule="the rule",
    )
    assert audit.barrier()
    removed, denied = found(log)
    assert removed.pop("hash")
    assert removed.pop("time").startswith("2023-11-14T22:13:20.")
    assert removed == {
        "seq": 3,
        "session": "fedcba9876543210",
        "tenant": "t",
        "principal": "ben",
        "token": "token1",
        "operation": "Unlink",
        "path": "data/\udcff.csv",
        "success": True,
        "duration_us": 1500,
        "address": "192.0.2.8",
        "client": "desktop",
        "stream": 0,
    }
    assert (denied["path"], denied["new_path"], denied["success"]) == ("a", "b", False)
    assert (denied["errno"], denied["message"], denied["rule"]) == ("EACCES", NO_RIGHT.message, "the rule")
    assert (denied["session"], denied["principal"], denied["address"]) == (
        "0123456789abcdef",
        "ann",
        "192.0.2.7",
    )
    assert removed["session"] != BEN.id  # the whole of it is the client's secret


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("all", ["Lookup", "Open r", "Open w", "Open t", "Create", "Read", "Unlink failed", "Open denied"]),
        ("mutations", ["Open w", "Open t", "Create", "Unlink failed", "Open denied"]),
        ("denials", ["Open denied"]),
        ("off", []),
    ],
)
def test_what_is_recorded(make: Make, log: Log, what: str, expected: list[str]) -> None:
    audit = make(record=what)
    record(audit, m.Lookup(1, Ref(b""), b"a"), b"")
    record(audit, m.Open(1, Ref(b"a"), os.O_RDONLY), b"r")
    record(audit, m.Open(1, Ref(b"a"), os.O_RDWR), b"w")
    record(audit, m.Open(1, Ref(b"a"), os.O_TRUNC), b"t")
    record(audit, CREATE, b"")
    record(audit, m.Read(1, 5, 0, 1), b"")
    record(audit, m.Unlink(1, Ref(b""), b"a"), b"failed", error=Error(1, "ENOENT"))
    record(audit, m.Open(1, Ref(b"a"), os.O_RDONLY), b"denied", error=NO_RIGHT)
    assert audit.barrier()
    assert [name.removesuffix(" .").strip() for name in names(log)] == expected
    if what == "off":
        audit.close()
        assert not (log.directory / "t").exists()


@pytest.mark.parametrize("kind", m.REQUESTS, ids=lambda kind: kind.__name__)
def test_every_mutation_is_wanted(make: Make, kind: type[m.Request]) -> None:
    assert make(record="all").wants(kind, False, False)
    assert make().wants(kind, False, False) is (kind.mutating or kind in (m.Open, m.Reopen))
    assert make(record="denials").wants(kind, True, True)
    assert not make(record="denials").wants(kind, True, False)
    assert not make(record="off").wants(kind, True, True)


def test_reads_and_writes_of_a_handle_in_a_row_are_one_entry(make: Make, log: Log) -> None:
    audit = make(record="all")
    for number in range(10):
        record(audit, m.Write(1, 5 + number % 2, 0), b"%d" % (5 + number % 2), size=100)
        record(audit, m.Read(1, 5, 0, 1), b"5", size=7)
    record(audit, m.Write(1, 5, 0), b"5", error=Error(1, "EIO"))
    record(audit, m.Write(1, 5, 0), b"5", size=1)
    record(audit, m.Write(1, 5, 0), b"5", size=1, session=BEN)
    record(audit, m.Fsync(1, 5), b"5")
    record(audit, m.Write(1, 5, 0), b"5", size=2)
    assert audit.barrier()
    shown = [
        (entry["operation"], entry["path"], entry.get("count", 1), entry.get("bytes", 0))
        for entry in found(log)
    ]
    assert shown == [
        ("Write", "5", 5, 500),
        ("Read", "5", 10, 70),
        ("Write", "6", 5, 500),
        ("Write", "5", 1, 0),
        ("Write", "5", 1, 1),
        ("Write", "5", 1, 1),
        ("Fsync", "5", 1, 0),
        ("Write", "5", 1, 2),
    ]
    assert found(log)[0]["duration_us"] == 5 * 1500


def test_events(make: Make, log: Log) -> None:
    audit = make()
    audit.event("session-begin", BEN, transport="direct")
    audit.event("token-used", principal="ann", token="abc", address="192.0.2.9")
    audit.event("reload", success=False, message="line 3: no")
    audit.barrier()
    begun, used, reload = found(log)
    assert (begun["session"], begun["token"], begun["details"]) == (
        BEN.id[:16],
        "token1",
        {"transport": "direct"},
    )
    assert (used["principal"], used["token"], used["address"], used["success"]) == (
        "ann",
        "abc",
        "192.0.2.9",
        True,
    )
    assert (reload["success"], reload["message"]) == (False, "line 3: no")
    only_denials = make(record="denials")
    only_denials.event("session-begin", BEN)
    only_denials.event("denials", BEN, success=False, denied=True, count=3)
    only_denials.barrier()
    assert names(log, denied=True) == ["denials"]
    assert names(log, operation="session-begin") == ["session-begin"]


def test_it_is_written_soon_without_anyone_asking(make: Make, log: Log) -> None:
    audit = make()
    record(audit, CREATE)
    eventually(lambda: (log.directory / "t" / "0").exists() and names(log) == ["Create a"])
    eventually(lambda: next(iter(verify(log.directory))).notes == [])  # and signed
    record(audit, CREATE)
    eventually(lambda: len(names(log)) == 2)


def test_a_barrier_waits_for_everything_before_it(make: Make, log: Log) -> None:
    audit = make()
    problems: list[str] = []

    def work(name: bytes) -> None:
        for number in range(20):
            record(audit, CREATE, b"%s%d" % (name, number))
            if not audit.barrier() or (name + b"%d" % number).decode() not in [
                entry["path"] for entry in found(log)
            ]:
                problems.append(f"{name!r}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    audit.close()
    (proof,) = verify(log.directory)
    assert (proof.fault, proof.notes, proof.closed) == (None, [], True)


def test_a_barrier_with_nothing_to_write_wakes_nobody(make: Make) -> None:
    audit = make()
    assert audit.barrier()
    assert audit._thread is None
    record(audit, CREATE)
    assert audit.barrier()
    served = audit._served
    assert audit.barrier()
    assert audit._served == served


def test_a_barrier_is_about_the_disk(make: Make) -> None:
    audit = make()
    for _ in range(3):  # the first one signs, which needs the disk anyway
        record(audit, CREATE)
        assert audit.barrier()
        assert audit._files is not None
        assert not audit._files.dirty


def test_many_records_in_order(make: Make, log: Log) -> None:
    audit = make(segment_bytes=100_000)
    for number in range(3000):
        record(audit, CREATE, b"%d" % number)
    audit.close()
    assert [entry["path"] for entry in found(log)] == [str(number) for number in range(3000)]
    (proof,) = verify(log.directory)
    assert proof.fault is None
    assert proof.segments > 3


def test_options_change_while_it_runs(make: Make, log: Log) -> None:
    audit = make()
    record(audit, CREATE, b"1")
    audit.reconfigure(AuditOptions(record="off"))
    record(audit, CREATE, b"2")
    audit.reconfigure(AuditOptions(record="all", segment_bytes=1000))
    record(audit, m.Lookup(1, Ref(b""), b"3"), b"3")
    audit.close()
    assert names(log) == ["Create 1", "configured", "configured", "Lookup 3"]
    off, on = (entry["details"] for entry in found(log, operation="configured"))
    assert (off, on) == ({"record": "off", "before": "mutations"}, {"record": "all", "before": "off"})


# --- logs that cannot be written -------------------------------------------------------------------------------


class States:
    """What on_state was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def __call__(self, state: dict[str, Any]) -> None:
        self.told.append(state)

    @property
    def names(self) -> list[str]:
        return [state["state"] for state in self.told]


def in_the_way(log: Log) -> Path:
    log.directory.mkdir(parents=True, exist_ok=True)
    path = log.directory / "t"
    path.write_text("a file where the log's folder should be")
    return path


def test_refusing(make: Make, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    obstacle, states = in_the_way(log), States()
    audit = make(on_failure="refuse", on_state=states, retry=0.01)
    eventually(lambda: audit.refusing)  # before anything was recorded
    state = audit.state()
    assert (state["state"], state["refusing"]) == ("failing", True)
    assert "FileExistsError" in state["error"]
    record(audit, CREATE, error=Error(1, "EROFS"))
    assert not audit.barrier()
    obstacle.unlink()
    eventually(lambda: not audit.refusing)
    assert audit.barrier()
    assert states.names == ["failing", "ok"]
    assert names(log) == ["Create a"]  # not even what was refused is lost
    warned = [entry.message for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert "refused until it can" in warned[0]


def test_going_on(
    make: Make, log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "QUEUE", 100)
    obstacle, states = in_the_way(log), States()
    audit = make(on_state=states, retry=0.01)
    record(audit, CREATE, b"first")
    eventually(lambda: audit.state()["state"] == "failing")
    assert not audit.refusing
    for number in range(150):
        record(audit, CREATE, b"%d" % number)
    lost = audit.state()["lost"]
    assert lost == 51
    obstacle.unlink()
    assert audit.barrier()
    assert states.names == ["failing", "ok"]
    entries = found(log)
    assert [entry.get("path") for entry in entries[: 151 - lost]] == ["first", *map(str, range(150 - lost))]
    (gap,) = entries[151 - lost :]
    assert (gap["operation"], gap["success"], gap["details"]) == ("gap", False, {"lost": lost})
    assert "FileExistsError" in gap["message"]
    assert "may be lost" in caplog.text


def test_a_disk_that_is_full_for_a_while(make: Make, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    audit = make(retry=0.01)
    record(audit, CREATE, b"before")
    assert audit.barrier()
    assert audit._files is not None
    fd = audit._files._fd
    kept, full = os.dup(fd), os.open("/dev/full", os.O_RDWR)
    os.dup2(full, fd)
    record(audit, CREATE, b"meanwhile")
    assert not audit.barrier()
    assert "No space left" in audit.state()["error"]
    assert audit.state()["lag"] >= 0
    os.dup2(kept, fd)
    os.close(kept)
    os.close(full)
    record(audit, CREATE, b"after")
    assert audit.barrier()
    audit.close()
    assert names(log) == ["Create before", "Create meanwhile", "Create after"]
    assert next(iter(verify(log.directory))).fault is None


# --- the process dies ------------------------------------------------------------------------------------------

_CHILD = """
import sys
from pathlib import Path
from jupyter_wsfuse.engine.audit import TenantAudit
from jupyter_wsfuse.engine.auditkeys import load_key
from jupyter_wsfuse.engine.tenants import AuditOptions
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.auditing import Person

folder = Path(sys.argv[1])
audit = TenantAudit("t", AuditOptions(segment_bytes=50_000), folder, load_key(folder.parent / "audit.key", folder))
number = 0
while True:
    number += 1
    audit.record(Person(), m.MkDir(1, m.Ref(b""), b"a", 0), (b"%d" % number, b""), None, "", 0, 1)
    if not number % 100:
        audit.barrier()
        print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 3, 10])
def test_killed(log: Log, after: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(log.directory)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    promised = 0
    for _ in range(after):
        promised = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    for line in child.stdout:
        promised = int(line)
    child.stdout.close()
    child.wait()
    log.clock.now += 10**18
    log.open().close()
    (proof,) = verify(log.directory)
    assert proof.fault is None
    written = [int(entry["path"]) for entry in found(log)]
    assert written == list(range(1, len(written) + 1))
    assert len(written) >= promised
    assert len(list(query(log.directory, Filter(operation="restart")))) == 1


def test_state_is_json(make: Make) -> None:
    audit = make()
    record(audit, CREATE)
    audit.barrier()
    state = json.loads(json.dumps(audit.state()))
    assert (state["state"], state["entries"], state["lost"], state["pending"]) == ("ok", 3, 0, 0)
    assert len(state["hash"]) == 64
