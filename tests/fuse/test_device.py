"""Mounting, and everything that can be in its way."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.fuse import device
from jupyter_wsfuse.fuse.device import Mounted, MountOptions
from tests.fuse.nobody import Nobody
from tests.helpers.unprivileged import NOBODY, as_user

pytestmark = pytest.mark.mount
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="changes users")


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory of everybody's; whatever was mounted there is gone afterwards."""
    top = Path(tempfile.mkdtemp(prefix="wsfuse-test-"))
    top.chmod(0o755)
    path = top / "a mount\tpoint"
    path.mkdir()
    path.chmod(0o777)
    yield path
    while device.find_mount(str(path)) is not None:
        device.unmount(str(path), lazy=True)
    shutil.rmtree(top)


def options(path: Path, **others: Any) -> MountOptions:
    return MountOptions(str(path), "test", **others)


def line(path: Path) -> str:
    """What the mount table says about the mount on *path*."""
    with open("/proc/thread-self/mountinfo") as table:
        found = [one for one in table if str(path).replace(" ", "\\040").replace("\t", "\\011") in one]
    return found[-1]


# --- as root -------------------------------------------------------------------------------------------------------


@root_only
def test_mount_as_root(place: Path) -> None:
    fd = device.mount(options(place))
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    found = device.find_mount(str(place))
    assert found is not None
    assert found == Mounted(found.device, os.fsencode(place), "fuse.wsfuse")
    assert device.connection_id(str(place)) == found.connection
    assert "nosuid,nodev" in line(place)
    assert " - fuse.wsfuse test rw,user_id=0,group_id=0\n" in line(place)
    assert Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text() == "4096\n"
    os.close(fd)
    device.unmount(str(place))
    assert device.find_mount(str(place)) is None


@root_only
def test_options_as_root(place: Path) -> None:
    fd = device.mount(
        options(
            place,
            subtype="other",
            allow_other=True,
            read_only=True,
            default_permissions=True,
            max_read=65536,
            read_ahead_kb=256,
        )
    )
    assert " ro,nosuid,nodev" in line(place)
    assert " - fuse.other test ro," in line(place)
    for word in ("default_permissions", "allow_other", "max_read=65536"):
        assert word in line(place)
    found = device.find_mount(str(place))
    assert found is not None
    assert Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text() == "256\n"
    os.close(fd)


@root_only
def test_a_root_that_may_not_mount(nobody: Nobody, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.os, "geteuid", lambda: 0)
    fd = os.open("/dev/fuse", os.O_RDWR)
    monkeypatch.setattr(device, "_open_device", lambda: fd)
    with pytest.raises(
        MountError, match="Operation not permitted; this root may not mount: let the container"
    ):
        nobody.run(lambda: device.mount(options(place)))


@root_only
def test_options_that_the_kernel_does_not_know(place: Path) -> None:
    with pytest.raises(MountError, match="Invalid argument; see the kernel's log"):
        device.mount(options(place, max_read=-1))


# --- as anybody ----------------------------------------------------------------------------------------------------


@root_only
def test_mount_by_helper(nobody: Nobody, place: Path) -> None:
    os.chown(place, NOBODY, NOBODY)
    fd = nobody.run(
        lambda: device.mount(options(place, default_permissions=True, read_only=True, max_read=65536))
    )
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    assert (
        " - fuse.wsfuse test ro,user_id=65534,group_id=65534,default_permissions,max_read=65536\n"
        in nobody.run(lambda: line(place))
    )
    os.close(fd)
    nobody.run(lambda: device.unmount(str(place)))
    assert device.find_mount(str(place)) is None


@root_only
def test_names_with_commas(nobody: Nobody, place: Path) -> None:
    os.chown(place, NOBODY, NOBODY)
    fd = nobody.run(lambda: device.mount(MountOptions(str(place), "https://a,b\\c")))
    assert " - fuse.wsfuse https://a,b\\134c rw," in nobody.run(lambda: line(place))
    os.close(fd)
    nobody.run(lambda: device.unmount(str(place), lazy=True))


@root_only
def test_not_the_users_directory(nobody: Nobody, place: Path) -> None:
    place.chmod(0o755)
    with pytest.raises(
        MountError, match=r"user has no write access.*; the directory must be yours and writable"
    ):
        nobody.run(lambda: device.mount(options(place)))


@root_only
def test_unmounting_somebody_elses(nobody: Nobody, place: Path) -> None:
    fd = device.mount(options(place))
    with pytest.raises(MountError, match=r"cannot be unmounted: .*fusermount3: "):
        nobody.run(lambda: device.unmount(str(place)))
    os.close(fd)


@root_only
@pytest.mark.parametrize("conf", [None, "# user_allow_other\n", "mount_max = 5\n"])
def test_other_users_not_permitted(
    nobody: Nobody, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conf: str | None
) -> None:
    path = tmp_path / "fuse.conf"
    if conf is not None:
        path.write_text(conf)
    monkeypatch.setattr(device, "_CONF", str(path))
    with pytest.raises(MountError, match=r"put the line user_allow_other into .*fuse.conf"):
        nobody.run(lambda: device.mount(options(place, allow_other=True)))


@root_only
def test_other_users_permitted(nobody: Nobody, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our reading of the file; the helper reads the real one, and says what it found there."""
    path = place.parent / "fuse.conf"
    path.write_text("user_allow_other # let them\n")
    monkeypatch.setattr(device, "_CONF", str(path))
    os.chown(place, NOBODY, NOBODY)
    with open("/etc/fuse.conf") as conf:
        if "user_allow_other" in [one.strip() for one in conf]:
            pytest.skip("this machine permits it")
    with pytest.raises(MountError, match="option allow_other only allowed if"):
        nobody.run(lambda: device.mount(options(place, allow_other=True)))


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of fusermount3, for an ordinary user."""
    programs = tmp_path / "bin"
    programs.mkdir()
    path = programs / "fusermount"
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(device.os, "geteuid", lambda: 1000)
    return path


def write_helper(path: Path, script: str) -> None:
    path.write_text(f"#!{sys.executable} -S\nimport os, sys\n{script}\n")
    path.chmod(0o755)


def test_no_helper(place: Path, helper: Path) -> None:
    with pytest.raises(MountError, match=r"fusermount3 was not found.*apt install fuse3"):
        device.mount(options(place))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit('it is monday')", "failed: it is monday; the directory"),
        ("sys.exit(3)", "failed: it ended with status 3; "),
        ("sys.exit(0)", "failed: it ended with status 0; "),
        ("os.write(int(os.environ['_FUSE_COMMFD']), b'x')", "failed: it ended with status 0; "),
    ],
)
def test_a_helper_that_fails(place: Path, helper: Path, script: str, said: str) -> None:
    write_helper(helper, script)
    with pytest.raises(MountError, match=said):
        device.mount(options(place))


def test_a_descriptor_of_another_kind_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Channel:
        def recvmsg(self, size: int, space: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
            return b"x", [(1, 2, b"credentials.")], 0, None

    assert device._received(Channel()) == []  # type: ignore[arg-type]


# --- what may be in the way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [0, 1000])
def test_no_device(place: Path, monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(device, "DEVICE", "/dev/no-such-device")
    monkeypatch.setattr(device.os, "geteuid", lambda: uid)
    with pytest.raises(
        MountError, match=r"No such file or directory\): load the kernel's module \(modprobe fuse\)"
    ):
        device.mount(options(place))


@root_only
def test_a_device_for_root_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = place.parent / "fuse"
    os.mknod(closed, 0o600 | stat.S_IFCHR, os.makedev(10, 229))
    monkeypatch.setattr(device, "DEVICE", str(closed))
    with pytest.raises(MountError, match=r"Permission denied\): as root, chmod 666 it"):
        as_user(lambda: device.mount(options(place)))


def test_no_directory(place: Path) -> None:
    with pytest.raises(MountError, match="does not exist; create the directory first"):
        device.mount(options(place / "missing"))


def test_a_file(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(MountError, match="is not a directory; mount on an empty directory"):
        device.mount(options(place / "file"))


def test_not_empty(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(MountError, match="is not empty, and its files would be hidden"):
        device.mount(options(place))


@root_only
def test_not_readable(nobody: Nobody, place: Path) -> None:
    place.chmod(0o000)
    with pytest.raises(
        MountError, match="cannot be used: Permission denied; mount on a directory of your own"
    ):
        nobody.run(lambda: device.mount(options(place)))


@root_only
def test_already_mounted(place: Path) -> None:
    """Found in the mount table: nobody serves this mount, looking at it would wait for ever."""
    fd = device.mount(options(place))
    with pytest.raises(MountError, match=r"is already a mount \(fuse.wsfuse\); unmount it first"):
        device.mount(options(place))
    os.close(fd)


@root_only
def test_through_a_symbolic_link(place: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(place)
    fd = device.mount(options(link))
    assert device.find_mount(str(place)) is not None
    with pytest.raises(MountError, match="already a mount"):
        device.mount(options(link))
    os.close(fd)
    device.unmount(str(link))
    assert device.find_mount(str(place)) is None


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(MountError, match="cannot be used: Too many levels of symbolic links"):
        device.mount(options(tmp_path / "one"))


@root_only
def test_parents_may_be_symbolic_links(place: Path, tmp_path: Path) -> None:
    (tmp_path / "parent").symlink_to(place.parent)
    alias = tmp_path / "parent" / place.name
    fd = device.mount(options(alias))
    assert device.connection_id(str(alias)) == device.connection_id(str(place))
    os.close(fd)
    device.unmount(str(alias))
    assert device.find_mount(str(place)) is None


# --- taking down ---------------------------------------------------------------------------------------------------


def test_not_mounted(place: Path) -> None:
    with pytest.raises(MountError, match="is not mounted"):
        device.unmount(str(place))
    with pytest.raises(MountError, match="is not a FUSE mount"):
        device.connection_id(str(place))
    with pytest.raises(MountError, match="/proc is not a FUSE mount"):
        device.connection_id("/proc")
    assert device.raise_read_ahead(str(place), 128) is False


@root_only
def test_in_use(place: Path) -> None:
    fd = device.mount(options(place))
    holder = os.open(place, os.O_PATH)
    with pytest.raises(MountError, match=r"is in use: close its files .*\(lsof "):
        device.unmount(str(place))
    device.unmount(str(place), lazy=True)
    assert device.find_mount(str(place)) is None
    os.close(holder)
    os.close(fd)


@root_only
def test_in_use_by_helper(nobody: Nobody, place: Path) -> None:
    os.chown(place, NOBODY, NOBODY)
    fd = nobody.run(lambda: device.mount(options(place)))
    holder = nobody.run(lambda: os.open(place, os.O_PATH))
    with pytest.raises(MountError, match="is in use"):
        nobody.run(lambda: device.unmount(str(place)))
    nobody.run(lambda: device.unmount(str(place), lazy=True))
    assert device.find_mount(str(place)) is None
    os.close(holder)
    os.close(fd)


@pytest.fixture
def no_control(monkeypatch: pytest.MonkeyPatch, place: Path) -> Path:
    """The FUSE control file system is mounted nowhere."""
    path = place.parent / "connections"
    path.mkdir()
    monkeypatch.setattr(device, "_CONNECTIONS", str(path))
    return path


def hung(path: Path, fd: int) -> subprocess.Popen[bytes]:
    """A process that waits for a reply of the mount on *path*, which nobody gives."""
    os.set_blocking(fd, True)
    assert os.read(fd, 1 << 21)  # INIT, and the shortest answer to it:
    os.write(
        fd,
        struct.pack("=IiQ", 80, 0, 2) + struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0),
    )
    process = subprocess.Popen(["/bin/ls", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert os.read(fd, 1 << 21)
    return process


@root_only
@pytest.mark.parametrize("by", ["path", "number"])
def test_abort(place: Path, by: str) -> None:
    fd = device.mount(options(place))
    stuck = hung(place, fd)
    device.abort(str(place) if by == "path" else device.connection_id(str(place)))
    _, said = stuck.communicate()
    assert b"ls: " in said
    with pytest.raises(OSError) as info:
        os.read(fd, 1 << 21)
    assert info.value.errno == errno.ENODEV
    os.close(fd)


@root_only
def test_abort_without_control_files(place: Path, no_control: Path) -> None:
    fd = device.mount(options(place))
    stuck = hung(place, fd)
    device.abort(str(place))
    assert b"ls: " in stuck.communicate()[1]
    os.close(fd)


@root_only
def test_abort_mounts_the_control_files(place: Path, no_control: Path) -> None:
    fd = device.mount(options(place))
    stuck = hung(place, fd)
    try:
        device.abort(device.connection_id(str(place)))
        assert b"ls: " in stuck.communicate()[1]
    finally:
        device.unmount(str(no_control))
    os.close(fd)


@root_only
def test_abort_of_no_connection() -> None:
    with pytest.raises(
        MountError, match=r"connection 999999 cannot be aborted \(No such file or directory\): kill the"
    ):
        device.abort(999_999)


@root_only
def test_abort_as_user_without_control_files(nobody: Nobody, place: Path, no_control: Path) -> None:
    os.chown(place, NOBODY, NOBODY)
    fd = nobody.run(lambda: device.mount(options(place)))
    with pytest.raises(MountError, match="kill the process that serves it instead"):
        nobody.run(lambda: device.abort(str(place)))
    os.close(fd)


@root_only
def test_abort_as_the_user_who_mounted(nobody: Nobody, place: Path, no_control: Path) -> None:
    with pytest.raises(MountError):
        device.abort(999_999)  # leaves the control files mounted
    try:
        os.chown(place, NOBODY, NOBODY)
        fd = nobody.run(lambda: device.mount(options(place)))
        nobody.run(lambda: device.abort(str(place)))
        with pytest.raises(OSError):
            os.read(fd, 1 << 21)
        os.close(fd)
    finally:
        device.unmount(str(no_control))


@root_only
def test_read_ahead_is_roots_to_set(nobody: Nobody, place: Path) -> None:
    fd = device.mount(options(place))
    assert device.raise_read_ahead(str(place), 512) is True
    assert nobody.run(lambda: device.raise_read_ahead(str(place), 1024)) is False
    os.close(fd)
