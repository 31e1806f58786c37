"""Following the audit log: everything that comes is read once, in bounded portions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.extension import audittail
from jupyter_wsfuse.extension.audittail import AuditTail
from tests.helpers.auditing import Log


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit")


def paths(tail: AuditTail) -> list[str]:
    return [entry["path"] for entry in tail.read()[0] if entry["operation"] == "Create"]


def test_only_what_comes_is_read_and_only_once(log: Log) -> None:
    files = log.open()
    files.append([log.entry(path="before")])
    tail = AuditTail(log.directory)
    assert tail.read() == ([], 0)
    files.append([log.entry(path="one"), log.entry(path="two")])
    found, skipped = tail.read()
    assert [(entry["path"], entry["tenant"], entry["stream"]) for entry in found] == [
        ("one", "t", 0),
        ("two", "t", 0),
    ]
    assert skipped == 0
    assert tail.read() == ([], 0)
    files.append([log.entry(path="three")])
    assert paths(tail) == ["three"]
    files.close()


def test_a_log_that_begins_later(log: Log) -> None:
    tail = AuditTail(log.directory)
    assert tail.read() == ([], 0)
    files = log.open()
    files.append([log.entry(path="first")])
    assert paths(tail) == ["first"]
    other = log.open("other")
    other.append([log.entry(path="theirs", tenant="other")])
    assert paths(tail) == ["theirs"]
    for one in (files, other):
        one.close()


def test_segments_one_after_another(log: Log) -> None:
    files = log.open()
    tail = AuditTail(log.directory)
    files.append([log.entry(path="1")])
    files.rotate()
    files.append([log.entry(path="2")])
    files.rotate()
    files.append([log.entry(path="3")])
    assert paths(tail) == ["1", "2", "3"]
    files.append([log.entry(path="4")])
    assert paths(tail) == ["4"]
    files.close()


def test_a_line_that_is_not_finished_waits(log: Log) -> None:
    files = log.open()
    tail = AuditTail(log.directory)
    files.append([log.entry(path="whole")])
    segment = log.segment(files.segment)
    data = segment.read_bytes()
    segment.write_bytes(data[:-10])
    assert paths(tail) == []
    segment.write_bytes(data)
    assert paths(tail) == ["whole"]
    with open(segment, "ab") as file:
        file.write(b"not an entry\n")
    assert tail.read() == ([], 0)
    files.close()


def test_too_much_is_skipped_and_counted(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audittail, "MOST", 4096)
    files = log.open()
    tail = AuditTail(log.directory)
    tail.read()
    files.append([log.entry(path=f"{number}") for number in range(500)])
    found, skipped = tail.read()
    assert found[-1]["path"] == "499"
    assert 0 < len(found) < 30
    assert 498 <= skipped + len(found) <= 500  # of the line that was cut, either half is nothing
    files.append([log.entry(path="next")])
    assert paths(tail) == ["next"]
    files.close()


def test_entries_of_several_streams_come_in_the_order_of_time(log: Log) -> None:
    one, two = log.open(), log.open("u")
    tail = AuditTail(log.directory)
    tail.read()
    for number in range(4):
        files: Any = (one, two)[number % 2]
        files.append([log.entry(path=f"{number}", tenant=files.tenant)])
    assert paths(tail) == ["0", "1", "2", "3"]
    one.close()
    two.close()


def test_a_log_that_is_removed(log: Log) -> None:
    files = log.open()
    files.append([log.entry()])
    tail = AuditTail(log.directory)
    files.close()
    shutil.rmtree(log.directory)
    assert tail.read() == ([], 0)
    again = log.open()
    again.append([log.entry(path="again")])
    assert paths(tail) == ["again"]
    again.close()
