"""``wsfuse audit``: questions to a log in a folder, and what they look like. Through a server: test_audit_api."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine.auditfiles import LogFiles
from jupyter_wsfuse.ui import audit, cli
from jupyter_wsfuse.ui.cli import Code, main
from jupyter_wsfuse.ui.magic import CommandError, wsfuse
from tests.helpers.auditing import Log, edit


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit")


@pytest.fixture
def files(log: Log) -> Iterator[LogFiles]:
    files = log.open()
    files.append(
        [
            log.entry("Create", "data/a.csv", bytes=5, client="laptop"),
            log.entry("Rename", "data/a.csv", new_path="b.csv"),
            log.entry("Write", "x", count=7),
            log.entry("Open", "secret", success=False, errno="EACCES", message="denied by r", rule="r"),
            log.entry(
                "Unlink",
                "b.csv",
                principal="ben",
                session="fedcba9876543210",
                address="192.0.2.8",
                token="t1",
            ),
        ]
    )
    files.sign()
    yield files
    if files._fd >= 0:
        files.close()


def run(*arguments: str, log: Log) -> int:
    return main(["audit", *arguments, "--dir", str(log.directory)])


def test_who_deleted_that_file(files: LogFiles, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("query", "--operation", "Unlink", "--path", "b.csv", log=log) == 0
    (line,) = capsys.readouterr().out.splitlines()
    time, tenant, who, address, session, operation, path, result = line.split("  ")
    assert time.startswith("2023-11-14 22:13:20.")
    assert (tenant, who, address, session) == ("t", "ben (token t1)", "192.0.2.8", "fedcba98")
    assert (operation, path, result) == ("Unlink", "b.csv", "ok")


def test_newest_first(files: LogFiles, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("query", log=log) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[5] for line in lines] == [
        "Unlink",
        "Open",
        "Write x7",
        "Rename",
        "Create",
        "start",
    ]
    assert "data/a.csv -> b.csv" in lines[3]
    assert lines[1].endswith("secret  EACCES: denied by r")
    assert run("query", "--limit", "2", log=log) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "--limit 20" in said.err
    assert run("query", "--limit", "0", "--denied", "--json", log=log) == 0
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == ["secret"]
    assert run("query", "--failed", "--principal", "ben", log=log) == 0
    assert capsys.readouterr().out == ""


def test_times(files: LogFiles, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("query", "--since", "2023-11-14T22:13:21Z", log=log) == 0
    assert capsys.readouterr().out == ""
    assert run("query", "--until", "2023-11-14T22:13:21Z", "--since", "2023-11-01", log=log) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert run("query", "--since", "9000000h", "--operation", "Unlink", log=log) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert run("query", "--since", "soon", log=log) == Code.USAGE
    assert "'soon' is no time" in capsys.readouterr().err


def test_the_last_at_the_end(files: LogFiles, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tail", "-n", "2", log=log) == 0
    assert [line.split("  ")[5] for line in capsys.readouterr().out.splitlines()] == ["Open", "Unlink"]


def test_following(files: LogFiles, log: Log) -> None:
    source = audit._source(cli.Front(), None, None, log.directory)
    more = audit.following(source, {}, list(source({"limit": "1"})))
    assert next(more) == []
    files.append([log.entry("Later", "1"), log.entry("Later", "2")])
    assert [entry["path"] for entry in next(more)] == ["1", "2"]
    assert next(more) == []
    other = log.open()  # another engine
    other.append([log.entry("Later", "3")])
    assert [entry["operation"] for entry in next(more)] == ["start", "Later"]
    other.close()


def test_following_from_nothing(files: LogFiles, log: Log) -> None:
    source = audit._source(cli.Front(), None, None, log.directory)
    more = audit.following(source, {"operation": "Later"}, [])
    assert next(more) == []
    files.append([log.entry("Later", "1")])
    assert [entry["path"] for entry in next(more)] == ["1"]
    assert next(more) == []


def test_verified(files: LogFiles, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    files.close()
    assert run("verify", log=log) == 0
    said = capsys.readouterr().out
    assert "t: 8 entries from 2023-11-14 22:13:20." in said
    assert "none is missing" in said
    assert run("verify", "--json", log=log) == 0
    (proof,) = json.loads(capsys.readouterr().out)["proofs"]
    assert proof["hash"] in said
    log.open().close()
    assert run("verify", "--expect", proof["hash"], log=log) == 0
    capsys.readouterr()
    assert run("verify", "--expect", "f" * 64, log=log) == Code.FAILED
    assert "expected, but in none" in capsys.readouterr().out


def test_a_fault_is_named(files: LogFiles, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    files.close()
    edit(log.segment(1), lambda lines: [*lines[:6], *lines[7:]])
    assert run("verify", log=log) == Code.FAILED
    said = capsys.readouterr().out
    assert "t: 00000001.jsonl, line 7: " in said
    assert "6 entries are as they were written" in said


def test_other_keys(files: LogFiles, log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Log(tmp_path / "other" / "audit")
    other.write(1)
    assert run("verify", "--key", str(other.directory / "key.pub"), log=log) == Code.FAILED
    assert "not among the public keys" in capsys.readouterr().out
    assert run("verify", "--key", str(log.directory / "key.pub"), log=log) == 0
    (tmp_path / "no key").write_text("")
    assert run("verify", "--key", str(tmp_path / "no key"), log=log) == Code.FAILED
    assert "no public key" in capsys.readouterr().err
    assert main(["audit", "verify", "--dir", str(tmp_path / "other" / "audit" / "t")]) == Code.FAILED
    assert "not the folder of an audit log" in capsys.readouterr().err


def test_wrong_usage(log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    key.touch()
    log.directory.mkdir()
    assert run("query", "http://h/", log=log) == Code.USAGE
    assert run("verify", "http://h/", log=log) == Code.USAGE
    assert main(["audit", "verify", "--key", str(key)]) == Code.USAGE
    assert run("query", "--path", "[z-a]", log=log) == Code.USAGE
    capsys.readouterr()
    assert run("query", log=log) == 0  # nothing was recorded yet


def test_in_a_notebook(files: LogFiles, log: Log) -> None:
    result = wsfuse(f"audit query --operation Unlink --dir {log.directory}")
    assert "ben (token t1)" in str(result)
    assert "<table>" in result._repr_html_()
    assert result.data[0]["path"] == "b.csv"
    found = wsfuse(f"audit tail -n 1 --json --dir {log.directory}")
    assert [entry["operation"] for entry in found] == ["Unlink"]
    assert str(wsfuse(f"audit query --operation None --dir {log.directory}")) == "No such entry."
    with pytest.raises(CommandError, match="for a terminal"):
        wsfuse(f"audit tail -f --dir {log.directory}")
    assert wsfuse(f"audit verify --dir {log.directory}").ok


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain \u00e4\u20ac", "plain \u00e4\u20ac"),
        ("\x1b[2J\n", "\\x1b[2J\\n"),
        ("a\udcffb", "a\\xffb"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
    ],
)
def test_a_name_does_nothing_to_a_terminal(name: str, text: str) -> None:
    assert audit.shown(name) == text
    entry: dict[str, Any] = {"path": name, "message": name, "success": False, "details": {"x": name}}
    assert all(cell.isprintable() for cell in audit.row(entry))
