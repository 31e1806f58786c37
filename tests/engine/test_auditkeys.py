"""The key of the audit logs: made once, private, and never guessed at."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from jupyter_wsfuse.auditlog import Keys
from jupyter_wsfuse.engine.auditkeys import load_key


def test_made_once(tmp_path: Path) -> None:
    file, folder = tmp_path / "new" / "audit.key", tmp_path / "audit"
    one, two = load_key(file, folder), load_key(file, folder)
    assert one.name == two.name
    assert file.stat().st_mode & 0o777 == 0o600
    assert one.sign(b"x") == two.sign(b"x")
    keys = Keys((folder / "key.pub").read_bytes())
    assert list(keys) == [one.name]
    assert keys.valid(one.name, bytes.fromhex(one.sign(b"x").decode()), b"x")
    assert not keys.valid(one.name, bytes.fromhex(one.sign(b"y").decode()), b"x")
    assert list((tmp_path / "new").iterdir()) == [file]


def test_a_new_key_is_added(tmp_path: Path) -> None:
    one = load_key(tmp_path / "key", tmp_path / "audit")
    (tmp_path / "key").unlink()
    two = load_key(tmp_path / "key", tmp_path / "audit")
    assert set(Keys((tmp_path / "audit" / "key.pub").read_bytes())) == {one.name, two.name}


def _name(path: Path) -> str:
    return load_key(path / "key", path / "audit").name


def test_made_by_several_processes_at_once(tmp_path: Path) -> None:
    # Its processes are told to end, where those of a Pool are killed, maybe while they start.
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        names = list(pool.map(_name, [tmp_path] * 8))
    assert len(set(names)) == 1
    assert list(Keys((tmp_path / "audit" / "key.pub").read_bytes())) == [names[0]]


def test_what_is_no_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("nonsense")
    file.chmod(0o600)
    with pytest.raises(ValueError, match="not the private key"):
        load_key(file, tmp_path / "audit")
    file.unlink()
    load_key(file, tmp_path / "audit")
    file.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        load_key(file, tmp_path / "audit")
