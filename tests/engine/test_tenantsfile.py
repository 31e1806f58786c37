"""The file of tenants: read again when it changes, and nothing is lost if it is wrong."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jupyter_wsfuse.engine.tenants import ConfigurationError, Tenants
from jupyter_wsfuse.engine.tenantsfile import TenantsFile
from tests.helpers.waiting import eventually_async

ONE = "tenants: {one: {root: /1, users: ['*']}}\n"
TWO = "tenants: {two: {root: /2, users: ['*']}}\n"


def overwrite(path: Path, text: str) -> None:
    """In place and in one step: the file is never seen empty or half written."""
    with path.open("r+b", buffering=0) as file:
        file.write(text.encode().ljust(100))


class Watched:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text(ONE)
        self.file = TenantsFile(str(path), interval=0.005)
        self.tenants = self.file.load()
        self.told: list[Tenants | ConfigurationError] = []
        self.file.watch(self.told.append)

    async def next(self) -> Tenants | ConfigurationError:
        await eventually_async(lambda: self.told)
        return self.told.pop(0)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    watched = Watched(tmp_path / "tenants.yaml")
    yield watched
    watched.file.close()
    assert not watched.told


def name_of(found: Tenants | ConfigurationError) -> str:
    assert isinstance(found, Tenants)
    return found.assign("ann", []).name


async def test_a_change_is_told(watched: Watched) -> None:
    assert name_of(watched.tenants) == "one"
    overwrite(watched.path, TWO)
    assert name_of(await watched.next()) == "two"
    assert watched.file.describe()["error"] == ""


async def test_a_file_put_in_its_place_is_told(watched: Watched) -> None:
    """As editors and deployments do it; the same size, and a time that was set back."""
    new = watched.path.with_name("new")
    new.write_text(TWO)
    os.utime(new, ns=(0, watched.path.stat().st_mtime_ns))
    os.rename(new, watched.path)
    assert name_of(await watched.next()) == "two"


async def test_a_link_that_is_turned_is_told(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(ONE)
    (tmp_path / "two").write_text(TWO)
    (tmp_path / "link").symlink_to("one")
    file = TenantsFile(str(tmp_path / "link"), interval=0.005)
    told: list[Tenants | ConfigurationError] = []
    assert name_of(file.load()) == "one"
    file.watch(told.append)
    (tmp_path / "next").symlink_to("two")
    os.rename(tmp_path / "next", tmp_path / "link")
    await eventually_async(lambda: told)
    assert name_of(told[0]) == "two"
    file.close()


async def test_a_mistake_is_told_once_and_so_is_its_end(watched: Watched) -> None:
    overwrite(watched.path, "tenants:\n  one: {root: here, users: ['*']}\n")
    found = await watched.next()
    assert isinstance(found, ConfigurationError)
    assert (
        str(found) == f"{watched.path}:2: tenants.one.root: must be the absolute path of a folder, not 'here'"
    )
    assert watched.file.describe()["error"] == str(found)
    watched.path.unlink()
    found = await watched.next()
    assert isinstance(found, ConfigurationError)
    assert "No such file" in str(found)
    again = watched.path.with_name("again")
    again.write_text(ONE)
    again.rename(watched.path)
    assert await watched.next() == watched.tenants
    assert watched.file.describe()["error"] == ""


async def test_two_changes_within_one_tick_of_the_clock(watched: Watched) -> None:
    """What was written while the time stamp stood still is seen all the same."""
    for _ in range(20):
        overwrite(watched.path, TWO)
        assert name_of(await watched.next()) == "two"
        overwrite(watched.path, ONE)
        assert name_of(await watched.next()) == "one"


def test_a_file_that_is_just_being_written_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(ONE)
    file = TenantsFile(str(path))
    file.load()
    for text in ("", TWO[:20], TWO[:30]):
        path.write_text(text)
        assert file._look() is None
        assert not file.error
    path.write_text(TWO)
    found = file._look()
    assert found is not None
    assert name_of(found) == "two"


def test_nothing_new_is_nothing_told(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(ONE)
    now = [path.stat().st_mtime]
    file = TenantsFile(str(path), clock=lambda: now[0])
    file.load()
    assert file._look() is None  # too fresh to rely on the time stamp: it was read again
    now[0] += 100
    assert file._look() is None
    path.write_text(ONE)
    assert file._look() is None
    path.chmod(0o666)
    assert file._look() is None  # it might be somebody who has not finished
    assert isinstance(file._look(), ConfigurationError)
    assert file._look() is None
    path.chmod(0o600)
    assert isinstance(file._look(), Tenants)


def test_a_file_that_is_wrong_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("tenants: 5")
    with pytest.raises(ConfigurationError, match=r"t\.yaml:1: tenants: must be a table"):
        TenantsFile(str(tmp_path / "t.yaml")).load()
