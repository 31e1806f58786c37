"""The audit log as files: nothing in it can be changed unnoticed, and what is looked for is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse import auditlog
from jupyter_wsfuse.auditlog import Filter, Proof, entries, glob, parse_time, query, search, stamp, verify
from tests.helpers.auditing import START, Log, edit


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit")


def proof(log: Log, **options: Any) -> Proof:
    (found,) = verify(log.directory, **options)
    return found


def fault(log: Log, **options: Any) -> str:
    found = proof(log, **options)
    assert found.fault is not None, "nothing was noticed"
    return str(found.fault)


# --- what is proven --------------------------------------------------------------------------------------------


def test_a_whole_log(log: Log) -> None:
    log.write(3, 2)
    found = proof(log)
    assert found.fault is None
    assert found.notes == []
    # two segments begun and one sealed, started and stopped
    assert (found.entries, found.first, found.last, found.signed) == (10, 1, 10, 10)
    assert (found.segments, found.expired, found.closed) == (2, 0, True)
    assert found.since < found.until
    assert found.keys == [log.key.name]
    assert found.hash == json.loads(log.segment(2).read_bytes().splitlines()[-1])["hash"]
    assert json.loads(json.dumps(found.as_dict()))["fault"] is None


def test_the_chain_can_be_followed_with_other_tools(log: Log) -> None:
    log.write(2)
    previous = b"0" * 64
    for line in log.segment(1).read_bytes().splitlines():
        body = line[: line.index(b',"hash":"')]
        out = subprocess.run(["sha256sum"], input=previous + body, capture_output=True, check=True).stdout
        assert out[:64].decode() == json.loads(line)["hash"]
        previous = out[:64]


def test_every_byte_flipped_is_noticed(log: Log) -> None:
    log.write(2, 1)
    files = [log.segment(1), log.segment(2), log.stream() / "head.json"]
    flipped = 0
    for path in files:
        data = bytearray(path.read_bytes())
        for index in range(len(data)):
            # 0x20: another case of a letter, which hexadecimal digits may not have either.
            near_the_end = index > len(data) - 300
            for bit in (1 << index % 8, 0x20) if near_the_end else (1 << index % 8,):
                data[index] ^= bit
                path.write_bytes(data)
                found = proof(log)
                assert found.fault is not None, (path.name, index, bit)
                if path.suffix == ".jsonl":
                    assert found.fault.file in (path.name, "head.json")
                data[index] ^= bit
                flipped += 1
        path.write_bytes(data)
    assert proof(log).fault is None
    assert flipped > 3000


def test_lines_removed_added_or_in_another_order(log: Log) -> None:
    log.write(4, 4)
    for number in (1, 2):
        path = log.segment(number)
        whole = path.read_bytes()
        count = len(whole.splitlines())
        for index in range(count):
            edit(path, lambda lines, at=index: lines[:at] + lines[at + 1 :])  # type: ignore[misc]
            fault(log)
            path.write_bytes(whole)
            edit(path, lambda lines, at=index: [*lines[:at], lines[at], *lines[at:]])  # type: ignore[misc]
            fault(log)
            path.write_bytes(whole)
            edit(path, lambda lines, at=index: lines[:at])  # type: ignore[misc]
            fault(log)
            path.write_bytes(whole)
        for index in range(count - 1):
            edit(path, lambda lines, at=index: [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])  # type: ignore[misc]
            fault(log)
            path.write_bytes(whole)
    assert proof(log).fault is None


def test_the_place_of_a_fault(log: Log) -> None:
    log.write(3, 1)
    edit(log.segment(1), lambda lines: [*lines[:3], lines[3].replace(b"0-1.csv", b"0-7.csv"), *lines[4:]])
    assert fault(log).startswith("00000001.jsonl, line 4: its hash is wrong")


@pytest.mark.parametrize("gone", [[1], [2], [3], [1, 2], [2, 3], [1, 2, 3]])
def test_segments_removed(log: Log, gone: list[int]) -> None:
    log.write(1, 1, 1)
    for number in gone:
        log.segment(number).unlink()
    assert "missing" in fault(log) or "cut off" in fault(log)


def test_segments_renumbered(log: Log) -> None:
    log.write(1, 1, 1)
    log.segment(1).unlink()
    log.segment(2).rename(log.segment(1))
    log.segment(3).rename(log.segment(2))
    fault(log)


def test_the_tail_cut_off(log: Log) -> None:
    log.write(3)
    whole = log.segment(1).read_bytes()
    for size in range(0, len(whole), 7):
        log.segment(1).write_bytes(whole[:size])
        fault(log)
    log.segment(1).unlink()
    assert "cut off" in fault(log)


def test_the_head_removed(log: Log) -> None:
    log.write(1)
    (log.stream() / "head.json").unlink()
    assert fault(log) == "head.json: missing"


def test_appended_to_a_closed_log(log: Log) -> None:
    log.write(2)
    body = b'{"time":"2030-01-01T00:00:00.000000000Z","seq":7,"operation":"Create","success":true'
    last = proof(log).hash.encode()
    body = body.replace(b'"seq":7', b'"seq":%d' % (proof(log).last + 1))
    with open(log.segment(1), "ab") as file:
        file.write(body + entries.HASH_KEY + entries.link(last, body) + entries.END)
    assert "appended after the log had been closed" in fault(log)


def test_logs_of_other_tenants_streams_and_places(log: Log) -> None:
    log.write(1)
    log.write(1, tenant="u")
    shutil.copytree(log.stream("t"), log.stream("t", 1))
    of_t, copied, of_u = verify(log.directory)
    assert (of_t.fault, of_u.fault) == (None, None)
    assert "belongs to another log" in str(copied.fault)
    shutil.rmtree(log.stream("t", 1))
    shutil.rmtree(log.stream("u"))
    shutil.copytree(log.stream("t"), log.stream("u"))
    assert [found.fault is None for found in verify(log.directory)] == [True, False]
    # and with the head that belongs there
    shutil.rmtree(log.directory / "u")
    log.write(1, tenant="u")
    shutil.copy(log.segment(1), log.segment(1, tenant="u"))
    assert [found.fault is None for found in verify(log.directory)] == [True, False]


def test_other_keys(log: Log, tmp_path: Path) -> None:
    log.write(1, 1)
    ours = (log.directory / "key.pub").read_bytes()
    other = Log(tmp_path / "other" / "audit")
    other.write(1)
    theirs = (other.directory / "key.pub").read_bytes()
    assert "not among the public keys" in fault(log, keys=theirs)
    assert proof(log, keys=ours + theirs).fault is None
    with pytest.raises(ValueError, match="no public key"):
        proof(log, keys=b"")
    # A forger without the key can make a whole log of his own, but not with this one's signature.
    shutil.rmtree(log.directory / "t")
    shutil.copytree(other.stream(), log.stream())
    assert "not among the public keys" in fault(log)


def test_an_expected_head(log: Log) -> None:
    log.write(2)
    noted = proof(log).hash
    log.open().close()  # and so on
    later = proof(log)
    assert later.hash != noted
    assert proof(log, expected={noted}).found == [noted]
    assert proof(log, expected={"0" * 63 + "1"}).found == []


def test_openssl_agrees_about_a_seal(log: Log, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    log.write(1, 1)
    before, seal = log.segment(1).read_bytes().splitlines()[-2:]
    signed, rest = seal.split(b',"signature":"')
    (tmp_path / "sig").write_bytes(bytes.fromhex(rest[:128].decode()))
    hash = json.loads(before)["hash"].encode()
    (tmp_path / "message").write_bytes(b"wsfuse audit seal 1\0" + hash + signed)
    command = f"openssl pkeyutl -verify -rawin -pubin -inkey {log.directory}/key.pub -in message -sigfile sig"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)


def test_a_log_that_is_being_written(log: Log) -> None:
    files = log.open()
    files.append([log.entry(), log.entry()])
    found = proof(log)
    assert found.fault is None
    assert found.last == found.signed + 2
    assert "the last 2 entries are not signed yet" in found.notes[0]
    with open(log.segment(1), "ab") as file:
        file.write(b'{"time":"20')
    found = proof(log)
    assert found.fault is None
    assert "not finished" in found.notes[0]
    os.truncate(log.segment(1), log.segment(1).stat().st_size - 11)
    files.close()
    assert proof(log).notes == []


# --- names and times -------------------------------------------------------------------------------------------


@given(st.text(min_size=1))
def test_any_tenant_has_a_folder_of_its_own(tenant: str) -> None:
    try:
        os.fsencode(tenant)
    except UnicodeEncodeError:
        return
    name = auditlog.escape(tenant)
    assert name.isascii()
    assert not set(name) & set("/.\0")
    assert entries.unescape(name) == tenant


def test_times() -> None:
    assert stamp(START + 1) == "2023-11-14T22:13:20.000000001Z"
    now = START / 1e9
    assert parse_time("2h", now) == "2023-11-14T20:13:20.000000000Z"
    assert parse_time("2023-01-02T03:04:05+02:00", now) == "2023-01-02T01:04:05.000000000Z"
    assert parse_time("2023-01-02T03:04:05.5Z", now) == "2023-01-02T03:04:05.500000000Z"
    assert parse_time("2023-01-02", now).startswith("2023-01-0")
    assert parse_time("9999999999999d", now) == "1970-01-01T00:00:00.000000000Z"
    assert parse_time("0700-01-01T00:00:00Z", now).startswith("0700-")
    assert parse_time("20230102", now) == parse_time("2023-01-02", now)
    for wrong in ("2023", "yesterday", "2023-13-01", "", "-1h"):
        with pytest.raises(ValueError, match="is no time"):
            parse_time(wrong, now)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.csv", ["a.csv", "x/y/a.csv", "x.csv/in it", "a\n.csv"], ["a.csvx", "csv", "acsv"]),
        ("data/*.csv", ["data/a.csv"], ["data/x/a.csv", "x/data/a.csv", "data/.csvx"]),
        ("/a", ["a", "a/b"], ["x/a"]),
        ("data/", ["data", "data/x", "x/data/y"], ["datax", "xdata"]),
        ("data/**", ["data/x", "data/x/y"], ["dat/x"]),
        ("**/b/?", ["b/c", "a/b/c", "a/a/b/c/d"], ["b/cc", "ab/c"]),
        ("[a-c]x", ["ax", "y/cx"], ["dx", "/x"]),
        ("[!a]x", ["bx"], ["ax", "a/x"]),
        ("a[", ["a["], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    matches = glob(pattern)
    assert [path for path in matching if not matches(path)] == []
    assert [path for path in others if matches(path)] == []


# --- what is found ---------------------------------------------------------------------------------------------


def paths(log: Log, **wanted: Any) -> list[str]:
    return [entry["path"] for entry in query(log.directory, Filter(**wanted)) if "path" in entry]


def test_the_newest_first_over_segments_streams_and_tenants(log: Log) -> None:
    one, two, other = log.open(), log.open(), log.open("u")
    for number in range(30):
        files = (one, two, other)[number % 3]
        files.append([log.entry(path=f"{number:02d}")])
        if number % 7 == 6:
            files.rotate()
    assert paths(log) == [f"{number:02d}" for number in reversed(range(30))]
    assert paths(log, limit=3) == ["29", "28", "27"]
    assert paths(log, tenant="u") == [f"{number:02d}" for number in range(29, -1, -3)]
    assert paths(log, tenant="nobody") == []
    entry = next(query(log.directory, Filter(path="28")))
    assert (entry["stream"], entry["tenant"], entry["path"]) == (1, "t", "28")
    for files in (one, two, other):
        files.close()


def test_filters(log: Log) -> None:
    files = log.open()
    files.append(
        [
            log.entry("Create", "data/a.csv"),
            log.entry("Unlink", "data/a.csv", principal="ben", session="fedcba9876543210"),
            log.entry("Rename", "x", new_path="data/b.csv"),
            log.entry("Unlink", "data/c", success=False, errno="ENOENT"),
            log.entry("Open", "secret", success=False, errno="EACCES", rule="t: deny read secret"),
            log.entry("Write", "read only", success=False, errno="EROFS"),
            log.entry("Mkdir", 'quo"te', principal='q"\\'),
        ]
    )
    files.close()
    assert paths(log, operation="Unlink") == ["data/c", "data/a.csv"]
    assert paths(log, operation="Unlink", success=True) == ["data/a.csv"]
    assert paths(log, success=False) == ["read only", "secret", "data/c"]
    assert paths(log, denied=True) == ["read only", "secret"]
    assert paths(log, principal="ben") == ["data/a.csv"]
    assert paths(log, principal='q"\\') == ['quo"te']
    assert paths(log, session="fedc") == ["data/a.csv"]
    assert paths(log, path="*.csv") == ["x", "data/a.csv", "data/a.csv"]
    times = [entry["time"] for entry in query(log.directory, Filter(path="*.csv"))]
    assert paths(log, since=times[0], path="*.csv") == ["x"]
    assert paths(log, until=times[0], path="*.csv") == ["data/a.csv", "data/a.csv"]


def test_filters_as_texts() -> None:
    given = {"since": "1h", "success": "false", "denied": "true", "limit": "5", "path": "*.csv"}
    wanted = Filter.parse(given, START / 1e9)
    assert wanted == Filter(
        since="2023-11-14T21:13:20.000000000Z", success=False, denied=True, limit=5, path="*.csv"
    )
    for wrong in (
        {"limit": "-1"},
        {"limit": "x"},
        {"success": "maybe"},
        {"denied": "1"},
        {"since": "then"},
        {"path": "[z-a]"},
        {"who": "me"},
    ):
        with pytest.raises(ValueError):
            Filter.parse(wrong, 0)


def test_an_old_segment_is_not_read_for_what_is_new(log: Log) -> None:
    log.write(1)
    log.clock.forward(3600)
    since = stamp(log.clock())
    files = log.open()
    files.rotate()
    files.append([log.entry(path="new")])
    files.rotate()
    files.close()
    log.segment(1).write_bytes(b"not even JSON\n" * 3)
    assert paths(log, since=since) == ["new"]
    assert paths(log) == ["new"]  # a damaged segment hides no other


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_reading_backwards(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_BLOCK", block)
    path = tmp_path / "lines"
    for data in (
        b"",
        b"\n",
        b"a\n",
        b"a\nbb\n",
        b"a\nbb\nunfinished",
        b"unfinished",
        b"\n\nx\n",
        b"a" * 300 + b"\nb\n",
    ):
        path.write_bytes(data)
        whole = data[: data.rfind(b"\n") + 1]
        assert list(search._backwards(path)) == whole.split(b"\n")[:-1][::-1]


def test_reading_takes_bounded_memory(log: Log) -> None:
    log.write(1)
    with open(log.segment(1), "ab") as file:
        file.write(b"x" * (3 * entries.MAX_LINE) + b"\n")
        file.truncate(1 << 32)  # a hole: four gigabytes of zeros
    assert paths(log) == []
    fault(log)


def test_names_that_are_not_utf8_come_back(log: Log) -> None:
    files = log.open()
    name = os.fsdecode(b'\xff\xfe/caf\xc3\xa9\n\x00"\\ud800')
    files.append([log.entry(path=name), log.entry(path="pl\u00e4in")])
    files.close()
    assert paths(log) == ["pl\u00e4in", name]
    assert [os.fsencode(path) for path in paths(log, path="*ud800")] == [
        b'\xff\xfe/caf\xc3\xa9\n\x00"\\ud800'
    ]
    assert proof(log).fault is None
