"""The record of a session that a new engine reads: what is written is found again, whatever cuts it short."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from jupyter_wsfuse.engine import replay
from jupyter_wsfuse.engine.locks import Hold, Key
from jupyter_wsfuse.engine.replay import Meta, ReplayLog, StateDir, StateError, boot_id
from jupyter_wsfuse.protocol.messages import Identity

ID = "0123456789abcdef" * 2


def meta(session: str = ID) -> Meta:
    return Meta(session, "default", "ann", "test", "keep", 1.5, boot_id())


@pytest.fixture
def log(tmp_path: Path) -> ReplayLog:
    return ReplayLog.create(tmp_path / f"{ID}.record", meta())


def again(log: ReplayLog) -> ReplayLog:
    """What a successor makes of the file as it is now."""
    other = ReplayLog.recover(log.path)
    assert other is not None
    return other


def test_intents_replies_acks_and_locks_are_found_again(log: ReplayLog) -> None:
    log.intend(1, {"free": True})
    log.answer(1, b"one")
    log.intend(2, {"victim": [1, 2]})
    log.answer(3, b"three")
    hold = Hold(Identity(1, 2, 3), Key(ID, True, 99))
    gone = Hold(Identity(1, 2, 3), Key(ID, False, 5))
    log.hold(hold, True)
    log.hold(gone, True)
    log.hold(gone, False)
    log.acked([3, 17])
    log.answer(4, b"four")  # carries the acknowledgement
    found = again(log)
    assert found.meta == meta()
    assert found.replies == {1: b"one", 4: b"four"}
    assert found.intents == {2: {"victim": [1, 2]}}
    assert found.holds == [hold]


def test_a_successors_successor_finds_both(log: ReplayLog) -> None:
    log.answer(1, b"one")
    log.intend(2, {"a": 1})
    log.close()
    second = again(log)
    second.intend(2, {"b": 2})
    second.answer(5, b"five")
    second.acked([1])
    second.answer(6, b"six")
    third = again(second)
    assert third.replies == {5: b"five", 6: b"six"}
    assert third.intents == {2: {"b": 2}}


def test_cut_at_every_byte(log: ReplayLog) -> None:
    ends = [log.path.stat().st_size]
    for seq in range(1, 6):
        log.answer(seq, b"reply %d" % seq)
        ends.append(log.path.stat().st_size)
    log.close()
    whole = log.path.read_bytes()
    for size in range(len(whole)):
        log.path.write_bytes(whole[:size])
        found = ReplayLog.recover(log.path)
        count = sum(end <= size for end in ends) - 1
        if count < 0:
            assert found is None
            continue
        assert found is not None
        assert list(found.replies) == list(range(1, count + 1))
        # It goes on behind the last whole record.
        found.answer(77, b"new")
        found.close()
        assert again(found).replies[77] == b"new"
        assert list(again(found).replies) == [*range(1, count + 1), 77]


def test_a_damaged_byte_ends_what_is_believed(log: ReplayLog) -> None:
    log.answer(1, b"first")
    size = log.path.stat().st_size
    log.answer(2, b"second")
    log.answer(3, b"third")
    whole = bytearray(log.path.read_bytes())
    for position in (size, size + 5, size + 12):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        log.path.write_bytes(damaged)
        assert again(log).replies == {1: b"first"}


def test_a_record_of_another_version_ends_what_is_believed(log: ReplayLog) -> None:
    log.answer(1, b"first")
    body = replay._encode(["surprise", 1])
    with open(log.path, "ab") as file:
        file.write(replay._PREFIX.pack(len(body), replay.zlib.crc32(body)) + body)
    assert again(log).replies == {1: b"first"}


def test_a_file_that_does_not_start_with_whose_it_is(log: ReplayLog) -> None:
    log.path.write_bytes(replay._pack(replay.Acked([1])))
    assert ReplayLog.recover(log.path) is None
    log.path.write_bytes(b"")
    assert ReplayLog.recover(log.path) is None


def test_a_second_owner_in_the_middle_changes_nothing(log: ReplayLog) -> None:
    with open(log.path, "ab") as file:
        file.write(replay._pack(meta("f" * 32)))
    assert again(log).meta == meta()


def test_it_stays_small_when_everything_is_acknowledged(log: ReplayLog) -> None:
    hold = Hold(Identity(1, 2, 3), Key(ID, True, 99))
    log.hold(hold, True)
    for seq in range(1, 4000):
        log.intend(seq, {"free": True})
        log.answer(seq, bytes(200))
        log.acked([seq])
    assert log.path.stat().st_size < replay.COMPACT + 1000
    found = again(log)
    assert found.holds == [hold]
    assert set(found.replies) <= {3999}
    assert found.intents == {}
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_what_is_not_acknowledged_survives_being_written_anew(log: ReplayLog) -> None:
    for seq in range(1, 3000):
        log.answer(seq, b"%d" % seq * 50)
        if seq % 100:
            log.acked([seq])
    log.answer(5000, b"last")
    assert {seq: frame for seq, frame in again(log).replies.items() if seq != 5000} == {
        seq: b"%d" % seq * 50 for seq in range(100, 3000, 100)
    }


def test_many_threads_write_at_once(log: ReplayLog) -> None:
    def write(base: int) -> None:
        for number in range(200):
            log.intend(base + number, {"n": number})
            log.answer(base + number, b"%d" % (base + number))

    threads = [threading.Thread(target=write, args=(1000 * n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert again(log).replies == {
        1000 * n + i: b"%d" % (1000 * n + i) for n in range(1, 9) for i in range(200)
    }


def test_a_full_disk_leaves_what_was_there(log: ReplayLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.answer(1, b"one")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:5], offset))
    with pytest.raises(OSError, match="no space left"):
        log.answer(2, b"two")
    monkeypatch.undo()
    assert again(log).replies == {1: b"one"}
    log.answer(3, b"three")
    assert again(log).replies == {1: b"one", 3: b"three"}


def test_writing_anew_that_fails_is_an_error_and_no_loss(
    log: ReplayLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.answer(1, b"one")

    def fail(source: object, target: object) -> None:
        raise OSError(5, "nothing works")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="nothing works"):
        log._rewrite()
    monkeypatch.undo()
    log.answer(2, b"two")
    assert again(log).replies == {1: b"one", 2: b"two"}


def test_the_end_of_a_session_removes_its_record(log: ReplayLog) -> None:
    log.answer(1, b"one")
    log.remove()
    assert not log.path.exists()
    log.answer(2, b"a worker that was late")
    log.acked([1])
    log.answer(3, b"x")
    log.remove()
    log.close()
    assert not log.path.exists()


# --- the folder


def test_the_folder_is_private_and_for_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    path.mkdir(parents=True, mode=0o755)
    state = StateDir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    naps: list[float] = []
    with pytest.raises(StateError, match="in use"):
        StateDir(path, wait=0.0)
    with pytest.raises(StateError, match="in use"):
        StateDir(path, wait=0.05, sleep=naps.append)
    assert naps
    state.close()
    StateDir(path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(StateError, match="somebody else"):
        StateDir(tmp_path)


def test_sessions_of_a_dead_engine_within_their_grace(tmp_path: Path) -> None:
    now = [1000.0]
    state = StateDir(tmp_path, clock=lambda: now[0])
    log = state.create(meta())
    log.answer(1, b"one")
    (tmp_path / ("e" * 32 + ".new")).write_bytes(b"half written")
    (tmp_path / "unrelated.txt").write_text("stays")
    other = Meta("a" * 32, "default", "ann", "test", "keep", 1.5, "another boot")
    ReplayLog.create(tmp_path / ("a" * 32 + ".record"), other).close()
    ReplayLog.create(tmp_path / ("b" * 32 + ".record"), meta()).close()  # says it is another's
    (tmp_path / ("c" * 32 + ".record")).write_bytes(b"rubbish")
    now[0] = 1050.0
    state.alive()
    state.close()
    now[0] = 1100.0
    state = StateDir(tmp_path, clock=lambda: now[0])
    assert state.silence == 50.0
    assert [found.replies for found in state.recover(60.0)] == [{1: b"one"}]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{ID}.record",
        "engine.lock",
        "unrelated.txt",
    ]
    state.close()
    now[0] = 1200.0
    state = StateDir(tmp_path, clock=lambda: now[0])
    assert state.recover(60.0) == []
    assert not log.path.exists()
    state.close()
