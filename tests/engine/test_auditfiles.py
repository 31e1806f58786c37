"""The files of an audit log: rotation, retention, recovery, failing disks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jupyter_wsfuse.auditlog import Filter, Proof, query, verify
from jupyter_wsfuse.engine import auditfiles
from jupyter_wsfuse.engine.auditfiles import Entry, LogFiles, encode
from tests.helpers.auditing import Log, edit


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit")


def proof(log: Log) -> Proof:
    (found,) = verify(log.directory)
    return found


def operations(log: Log, operation: str = "") -> list[str]:
    found = query(log.directory, Filter(operation=operation))
    return [f"{entry['operation']} {entry.get('path', '')}".strip() for entry in found][::-1]


def kill(files: LogFiles) -> None:
    """As if the process had been killed: its descriptors are closed, nothing else happens."""
    files._release()


@contextmanager
def full_disk(files: LogFiles) -> Iterator[None]:
    """The segment is on a device that is full."""
    kept, full = os.dup(files._fd), os.open("/dev/full", os.O_RDWR)
    os.dup2(full, files._fd)
    try:
        yield
    finally:
        os.dup2(kept, files._fd)
        os.close(kept)
        os.close(full)


def test_private(log: Log) -> None:
    log.write(1, 1)
    for folder, folders, files in os.walk(log.directory):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert [name for name in files if os.stat(f"{folder}/{name}").st_mode & 0o077] == []
        assert folders or files


def test_entries_hold_what_is_not_the_default() -> None:
    entry = Entry(time="T", operation="Create", success=True, path="a\nb")
    assert json.loads(encode(entry) + b"}") == {
        "time": "T",
        "operation": "Create",
        "path": "a\nb",
        "success": True,
    }
    entry.path = os.fsdecode(b"\xff")
    assert encode(entry) == b'{"time":"T","operation":"Create","path":"\\udcff","success":true'
    assert b"\n" not in encode(Entry(time="T", operation="x", success=False, path="a\nb\r\u2028"))


def test_two_engines_write_beside_each_other(log: Log) -> None:
    one, two = log.open(), log.open()
    assert (one.stream, two.stream) == (0, 1)
    one.append([log.entry(path="one")])
    two.append([log.entry(path="two")])
    one.close()
    three = log.open()
    assert three.stream == 0
    for files in (two, three):
        files.close()
    assert [found.fault for found in verify(log.directory)] == [None, None]
    assert sorted(operations(log, "Create")) == ["Create one", "Create two"]


def test_a_segment_is_sealed_when_it_is_large(log: Log) -> None:
    files = log.open(segment_bytes=2000)
    for _ in range(30):
        files.maintain()
        files.append([log.entry()])
    files.close()
    found = proof(log)
    assert found.fault is None
    assert found.segments > 3
    assert all(path.stat().st_size < 3000 for path in log.stream().glob("*.jsonl"))


def test_a_segment_is_sealed_when_it_is_old(log: Log) -> None:
    files = log.open(segment_age=3600)
    assert 3590 < files.due() <= 3600
    files.maintain()
    assert files.segment == 1
    files.close()
    log.clock.forward(1800)
    files = log.open(segment_age=3600)  # its age is that of the segment, not of the engine
    assert files.due() < 1800
    log.clock.forward(1900)
    files.maintain()
    assert files.segment == 2
    files.close()
    assert proof(log).fault is None


def test_retention(log: Log) -> None:
    files = log.open(retention=1000)
    for number in range(4):
        files.append([log.entry(path=str(number))])
        files.rotate()
        log.clock.forward(400)
    files.expire()
    assert operations(log, "Create") == ["Create 2", "Create 3"]
    files.close()
    found = proof(log)
    assert found.fault is None
    assert (found.expired, found.segments) == (2, 3)
    # what expired is not missed, what did not is
    log.segment(3).unlink()
    assert "segment 3 before it is missing, and no entry says" in str(proof(log).fault)


def test_the_oldest_go_when_the_log_is_too_large(log: Log) -> None:
    files = log.open(segment_bytes=1000, max_bytes=5000)
    for number in range(60):
        files.maintain()
        files.append([log.entry(path=str(number))])
    files.close()
    assert sum(path.stat().st_size for path in log.stream().glob("*.jsonl")) < 8000
    found = proof(log)
    assert found.fault is None
    assert found.expired > 3
    assert operations(log, "Create")[-1] == "Create 59"


def test_a_claim_that_something_expired_has_to_be_signed(log: Log) -> None:
    files = log.open()
    files.append([log.entry()])
    files.rotate()
    last = json.loads(log.segment(1).read_bytes().splitlines()[-1])
    files.append([files.own("expired", segment=1, hash=last["hash"], seq=last["seq"])])
    log.segment(1).unlink()
    assert "no entry says" in str(proof(log).fault)
    files.sign()
    assert proof(log).fault is None
    files.close()


# --- ends that were not in order -------------------------------------------------------------------------------


def test_killed(log: Log) -> None:
    files = log.open()
    files.append([log.entry(path="a")])
    kill(files)
    files = log.open()
    files.append([log.entry(path="b")])
    files.close()
    assert operations(log) == ["start", "Create a", "restart", "Create b", "stop"]
    (restart,) = query(log.directory, Filter(operation="restart"))
    assert restart["details"] == {"unsigned": 1, "torn_bytes": 0}
    found = proof(log)
    assert (found.fault, found.notes, found.segments) == (None, [], 1)


def test_killed_at_any_byte_of_a_write(log: Log, tmp_path: Path) -> None:
    files = log.open()
    before = log.segment(1).stat().st_size
    files.append([log.entry(path="a"), log.entry(path="b")])
    kill(files)
    whole = log.segment(1).read_bytes()
    head = (log.stream() / "head.json").read_bytes()
    for size in (*range(before, before + 40), *range(before + 40, len(whole), 9), len(whole)):
        log.segment(1).write_bytes(whole[:size])
        (log.stream() / "head.json").write_bytes(head)
        files = log.open()
        kill(files)
        found = proof(log)
        assert found.fault is None, size
        torn = whole[:size].rpartition(b"\n")[2]
        aside = log.stream() / "00000001.torn"
        assert (aside.read_bytes() == torn + b"\n") if torn else not aside.exists()
        aside.unlink(missing_ok=True)


def test_a_torn_line_longer_than_what_comes_next(log: Log) -> None:
    kill(log.open())
    with open(log.segment(1), "ab") as file:
        file.write(b"{" + b"x" * 5000)
    kill(log.open())
    found = proof(log)
    assert (found.fault, found.notes) == (None, [])
    assert (log.stream() / "00000001.torn").stat().st_size == 5002


@pytest.mark.parametrize("size", [0, 1, 100])
def test_killed_while_a_segment_was_begun(log: Log, size: int) -> None:
    files = log.open()
    first_line = log.segment(1).read_bytes().splitlines()[0]
    files._seal()
    kill(files)
    log.segment(2).write_bytes(first_line[:size])
    files = log.open()
    files.append([log.entry(path="later")])
    files.close()
    found = proof(log)
    assert (found.fault, found.segments) == (None, 2)
    assert operations(log)[-3:] == ["restart", "Create later", "stop"]


def test_killed_between_seal_and_segment(log: Log) -> None:
    files = log.open()
    files._seal()
    kill(files)
    files = log.open()
    assert files.segment == 2
    files.close()
    assert proof(log).fault is None


def test_killed_before_the_first_segment(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LogFiles, "_begin", lambda files: kill(files))
        with pytest.raises(OSError):  # nothing can be written to a descriptor that is closed
            log.open()
    assert (log.stream() / "head.json").exists()
    assert not log.segment(1).exists()
    log.open().close()
    found = proof(log)
    assert (found.fault, found.last) == (None, 3)


@pytest.mark.parametrize("what", ["changed", "cut", "head gone", "head changed", "segments gone", "appended"])
def test_what_was_tampered_with_is_kept_and_said(log: Log, what: str) -> None:
    log.write(2, 2)
    path, head = log.segment(2), log.stream() / "head.json"
    if what == "changed":
        edit(path, lambda lines: [*lines[:1], lines[1].replace(b"1-0.csv", b"1-9.csv"), *lines[2:]])
    elif what == "cut":
        edit(path, lambda lines: lines[:-1])
    elif what == "head gone":
        head.unlink()
    elif what == "head changed":
        head.write_bytes(head.read_bytes().replace(b'"closed":true', b'"closed":false'))
    elif what == "segments gone":
        path.unlink()
        log.segment(1).unlink()
    else:
        edit(path, lambda lines: [*lines, lines[-1]])
    before = path.read_bytes() if path.exists() else b""
    files = log.open()
    files.append([log.entry(path="later")])
    files.close()
    if before:
        assert path.read_bytes() == before
        assert files.segment == 3
    begun = [
        entry for entry in query(log.directory, Filter(operation="segment")) if entry["details"].get("fault")
    ]
    assert len(begun) == 1
    assert proof(log).fault is not None
    log.open().close()  # and it stays so
    assert proof(log).fault is not None
    assert "Create later" in operations(log)


# --- disks that fail -------------------------------------------------------------------------------------------


def test_a_full_disk(log: Log) -> None:
    files = log.open()
    files.append([log.entry(path="a")])
    with full_disk(files):
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                files.append([log.entry(path="b")])
            assert caught.value.errno == errno.ENOSPC
    files.append([log.entry(path="c")])
    files.close()
    assert operations(log, "Create") == ["Create a", "Create c"]
    assert proof(log).fault is None


def test_a_rotation_that_fails_half_way(log: Log) -> None:
    files = log.open()
    log.segment(2).mkdir()  # in the way
    with pytest.raises(OSError):
        files.rotate()
    with pytest.raises(OSError):
        files.append([log.entry(path="a")])
    log.segment(2).rmdir()
    files.maintain()
    files.append([log.entry(path="b")])
    files.close()
    found = proof(log)
    assert (found.fault, found.segments) == (None, 2)
    assert operations(log, "Create") == ["Create b"]


def test_a_folder_that_cannot_be_made(log: Log) -> None:
    key = log.key
    (log.directory / "t").write_text("in the way")
    with pytest.raises(FileExistsError):
        LogFiles("t", log.directory, key, auditfiles.AuditOptions(), log.clock)
    (log.directory / "t").unlink()
    log.open().close()
    assert proof(log).fault is None


def test_no_link_is_followed(log: Log, tmp_path: Path) -> None:
    log.open().close()
    (tmp_path / "elsewhere").write_bytes(log.segment(1).read_bytes())
    log.segment(1).unlink()
    log.segment(1).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError) as caught:
        log.open()
    assert caught.value.errno == errno.ELOOP
