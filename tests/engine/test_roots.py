"""Workspaces on disk: made on first use, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from jupyter_wsfuse.engine.roots import open_root
from jupyter_wsfuse.engine.tenants import Tenant
from tests.helpers.workspace import fails, needs_root


def opened(tenant: Tenant) -> bytes:
    fd = open_root(tenant)
    try:
        return os.readlink(f"/proc/self/fd/{fd}").encode()
    finally:
        os.close(fd)


def test_made_on_first_use_for_its_owner_alone(tmp_path: Path) -> None:
    tenant = Tenant("t", bytes(tmp_path / "new"), create=True)
    before = os.umask(0)
    try:
        assert opened(tenant) == bytes(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "new" / "f").touch()
    (tmp_path / "new").chmod(0o750)
    assert opened(tenant) == bytes(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750  # it was there
    assert (tmp_path / "new" / "f").exists()


def test_nothing_is_made_unless_it_is_to_be(tmp_path: Path) -> None:
    with fails(errno.ENOENT):
        open_root(Tenant("t", bytes(tmp_path / "new")))
    assert not list(tmp_path.iterdir())


def test_the_folder_around_it_is_never_made(tmp_path: Path) -> None:
    with fails(errno.ENOENT):
        open_root(Tenant("t", bytes(tmp_path / "a" / "b"), create=True))
    assert not list(tmp_path.iterdir())


def test_several_components_of_its_own(tmp_path: Path) -> None:
    tenant = Tenant("t", bytes(tmp_path / "ann" / "work" / "here"), create=True, own=3)
    assert opened(tenant) == bytes(tmp_path / "ann" / "work" / "here")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")} == {0o700}


@pytest.mark.parametrize("where", ["ann", "ann/work"])
@pytest.mark.parametrize("target", ["{}/outside", "../outside", "outside", "."])
def test_a_planted_link_is_refused(tmp_path: Path, where: str, target: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "outside").mkdir()
    link = base / where
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target.format(base))
    with fails(errno.ENOTDIR) as caught:
        open_root(Tenant("t", bytes(base / "ann" / "work"), create=True, own=2))
    assert "something else than a folder" in caught.value.strerror
    assert not list((base / "outside").iterdir())


def test_something_else_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with fails(errno.ENOTDIR):
        open_root(Tenant("t", bytes(tmp_path / "f"), create=True))
    with fails(errno.ENOTDIR):
        open_root(Tenant("t", bytes(tmp_path / "f")))


def test_links_of_the_administrator_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk2").mkdir()
    (tmp_path / "home").symlink_to("disk2")
    assert opened(Tenant("t", bytes(tmp_path / "home" / "ann"), create=True)) == bytes(
        tmp_path / "disk2" / "ann"
    )
    assert opened(Tenant("t", bytes(tmp_path / "home"))) == bytes(tmp_path / "disk2")


def test_the_top_of_everything() -> None:
    assert opened(Tenant("t", b"/", create=True)) == b"/"


@needs_root
def test_a_folder_that_somebody_else_made_where_everyone_can_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "shared" / "ann").mkdir()
    tenant = Tenant("t", bytes(tmp_path / "shared" / "ann"), create=True)
    open_root(tenant)
    os.chown(tmp_path / "shared" / "ann", 12345, 12345)
    with fails(errno.EPERM):
        open_root(tenant)
    (tmp_path / "shared").chmod(0o755)
    open_root(tenant)


def test_other_errors_are_what_they_are(tmp_path: Path) -> None:
    with fails(errno.ENAMETOOLONG):
        open_root(Tenant("t", bytes(tmp_path) + b"/" + b"x" * 256, create=True))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for tenant in [
        Tenant("t", bytes(tmp_path / "a" / "b"), create=True, own=2),
        Tenant("t", bytes(tmp_path / "a" / "b" / "c" / "d"), create=True),
    ]:
        try:
            os.close(open_root(tenant))
        except OSError:
            pass
    assert len(os.listdir("/proc/self/fd")) == before
