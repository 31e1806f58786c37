"""What the engine's process gives up: each thing seen from a process that has given it up."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine import hardening
from jupyter_wsfuse.engine.hardening import Confinement, OutOfReachError, confine, fixed_part, landlock_abi
from tests.helpers.otheruser import other_user
from tests.helpers.workspace import needs_root

needs_landlock = pytest.mark.skipif(landlock_abi() < hardening.MIN_ABI, reason="needs a kernel with Landlock")

# Runs in a process of its own: `tried(function)` is "" or the name of the errno, and `said` is printed at the end.
PRELUDE = """
import ctypes, errno, json, os, signal, socket, subprocess, sys, threading
from jupyter_wsfuse.engine import hardening, sandbox
tmp = os.fsencode(sys.argv[1])
ws, outside = tmp + b"/ws", tmp + b"/outside"
said = {}

def tried(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return ""
"""


def run(tmp_path: Path, code: str, *, front: tuple[str, ...] = (), **env: str) -> dict[str, Any]:
    """What *code* says in a fresh process."""
    for name in ("ws", "outside"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "outside/secret").write_text("canary")
    program = PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(said))"
    done = subprocess.run(
        [*front, sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


# --- what was inherited


def test_what_was_inherited_is_settled(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        kept = os.open(ws, os.O_RDONLY)
        os.set_inheritable(kept, True)
        hardening.harden()
        said["in_force"] = hardening.in_force()
        said["closed"] = tried(os.fstat, kept)
        said["umask"] = os.umask(0)
        import resource
        said["core"] = resource.getrlimit(resource.RLIMIT_CORE)
        said["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
        said["status"] = open("/proc/self/status").read()
        """,
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert said["in_force"] == {
        "no_new_privileges": True, "dumpable": False, "core_bytes": 0, "open_files": hard,
    }  # fmt: skip
    assert said["closed"] == "EBADF"
    assert said["umask"] == 0
    assert said["core"] == [0, 0]
    assert said["files"] == [hard, hard]
    assert "NoNewPrivs:\t1" in said["status"]
    table = next(line for line in said["status"].splitlines() if line.startswith("FDSize:"))
    assert int(table.split()[1]) >= min(hard, 1 << 16)  # it need not grow while threads open files


def test_a_process_is_not_settled_by_itself(tmp_path: Path) -> None:
    said = run(tmp_path, """said["in_force"] = hardening.in_force()""")
    assert said["in_force"]["dumpable"] is True


@needs_root
def test_an_ordinary_user_cannot_look_into_it_and_it_still_finds_its_descriptors(tmp_path: Path) -> None:
    """As nobody: one process hardens itself, another one of the same user tries to read it."""
    tmp_path.chmod(0o755)
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws").chmod(0o777)
    look = textwrap.dedent(
        """
        import errno, json, os, sys
        answers = {}
        for name in ("environ", "mem", "maps", "fd/0", "fd"):
            path = f"/proc/{sys.argv[1]}/{name}"
            try:
                os.listdir(path) if name == "fd" else os.close(os.open(path, os.O_RDONLY))
            except OSError as exc:
                answers[name] = errno.errorcode[exc.errno]
        print(json.dumps(answers))
        """
    )
    source = Path(hardening.__file__).parents[2]
    with other_user([tmp_path, source]) as user:
        said = run(
            tmp_path,
            f"""
            said["before"] = json.loads(subprocess.run(
                [sys.executable, "-c", {look!r}, str(os.getpid())], capture_output=True, check=True).stdout)
            hardening.harden()
            said["after"] = json.loads(subprocess.run(
                [sys.executable, "-c", {look!r}, str(os.getpid())], capture_output=True, check=True).stdout)
            box = sandbox.Sandbox(ws)
            fd = os.open(b"file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=os.open(ws, os.O_RDONLY))
            found = box.open_path(b"file")
            said["again"] = tried(os.open, sandbox.proc_path(found), os.O_RDWR)
            said["path"] = os.fsdecode(os.readlink(sandbox.proc_path(found)))
            said["mounted"] = len(box.mounted_in(box.root_fd))
            said["listed"] = tried(os.listdir, "/proc/self/fd")
            said["linked"] = tried(
                os.link, sandbox.proc_path(found), b"another", dst_dir_fd=box._roots[0], follow_symlinks=True)
            """,
            front=user.command,
            PYTHONPATH=str(source),
            HOME=str(tmp_path),
        )
    assert said["before"] == {}
    assert said["after"] == dict.fromkeys(("environ", "mem", "maps", "fd/0", "fd"), "EACCES")
    assert (said["again"], said["listed"], said["linked"], said["mounted"]) == ("", "", "", 0)
    assert said["path"] == str(tmp_path / "ws/file")


# --- Landlock


@needs_landlock
def test_nothing_outside_can_be_opened_made_or_moved(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro/file").touch()
    said = run(
        tmp_path,
        """
        hardening.harden()
        held = os.open(outside, os.O_PATH)
        found = hardening.confine([ws], readable=[tmp + b"/ro"], own=[tmp + b"/state"])
        said["describe"] = found.describe()
        said["state_mode"] = os.stat(tmp + b"/state").st_mode & 0o777
        said["inside"] = [
            tried(os.mkdir, ws + b"/d"),
            tried(os.mkdir, ws + b"/e"),
            tried(os.close, os.open(ws + b"/d/f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)),
            tried(os.truncate, ws + b"/d/f", 5),
            tried(os.rename, ws + b"/d/f", ws + b"/e/g"),
            tried(os.link, ws + b"/e/g", ws + b"/d/h"),
            tried(os.symlink, b"../outside/secret", ws + b"/l"),
            tried(os.mkfifo, ws + b"/p"),
            tried(os.listdir, ws + b"/d"),
            tried(os.unlink, ws + b"/d/h"),
            tried(os.rmdir, ws + b"/d"),
            tried(os.mkdir, tmp + b"/state/x"),
            tried(open, tmp + b"/ro/file"),
            tried(os.listdir, tmp + b"/ro"),
        ]
        unnamed = os.open(ws, os.O_TMPFILE | os.O_RDWR)
        said["inside"].append(tried(
            os.link, sandbox.proc_path(unnamed), b"named", dst_dir_fd=os.open(ws, os.O_PATH), follow_symlinks=True))
        said["outside"] = {
            "read": tried(open, outside + b"/secret"),
            "read through a link": tried(open, ws + b"/l"),
            "read through a descriptor": tried(os.open, b"secret", os.O_RDONLY, dir_fd=held),
            "list": tried(os.listdir, outside),
            "list the parent": tried(os.listdir, tmp),
            "write": tried(open, outside + b"/secret", "w"),
            "truncate": tried(os.truncate, outside + b"/secret", 0),
            "make": tried(os.mkdir, outside + b"/d"),
            "make in the parent": tried(os.mkdir, tmp + b"/d"),
            "remove": tried(os.unlink, outside + b"/secret"),
            "write what is to be read": tried(open, tmp + b"/ro/file", "a"),
            "passwords": tried(open, "/etc/shadow"),
            "memory of others": tried(open, f"/proc/{os.getppid()}/environ"),
        }
        said["moved"] = [
            tried(os.rename, outside + b"/secret", ws + b"/stolen"),
            tried(os.link, outside + b"/secret", ws + b"/stolen"),
            tried(os.rename, ws + b"/e/g", outside + b"/g"),
        ]
        said["device"] = tried(os.mknod, ws + b"/null", 0o20600, os.makedev(1, 3))
        said["execute"] = tried(subprocess.run, ["/bin/true"])
        said["mount"] = "" if ctypes.CDLL(None).mount(b"none", ws, b"tmpfs", 0, None) == 0 else "refused"
        """,
    )
    measured = hardening.EXTRA_VARIABLE in os.environ  # then one more, for the coverage's data
    assert said["describe"] | {"abi": 0} == {
        "active": True, "abi": 0, "reason": "", "writable": 2 + measured, "readable": 1, "missing": 0,
        "no_connections": said["describe"]["abi"] >= 4, "no_signals": said["describe"]["abi"] >= 6,
    }  # fmt: skip
    assert said["state_mode"] == 0o700
    assert said["inside"] == [""] * len(said["inside"])
    assert said["outside"] == dict.fromkeys(said["outside"], "EACCES")
    assert set(said["moved"]) <= {"EACCES", "EXDEV"}
    assert said["device"] in ("EACCES", "EPERM")
    assert said["execute"] in ("EACCES", "EPERM")
    assert said["mount"] == "refused"
    assert (tmp_path / "outside/secret").read_text() == "canary"
    assert os.listdir(tmp_path / "outside") == ["secret"]


@pytest.mark.skipif(landlock_abi() < 6, reason="needs a kernel with Landlock of version 6")
def test_it_listens_and_neither_connects_nor_signals(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        there = socket.create_server(("127.0.0.1", 0))
        hidden = socket.socket(socket.AF_UNIX)
        hidden.bind(b"\\0" + ws)
        hidden.listen()
        child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
        hardening._control(hardening._PR_SET_NO_NEW_PRIVS, 1)
        hardening.confine([ws])
        said["listen"] = tried(socket.create_server, ("127.0.0.1", 0))
        said["listen elsewhere"] = tried(socket.create_server, ("127.0.0.1", 65001))
        said["connect"] = tried(socket.create_connection, there.getsockname())
        said["connect to a name"] = tried(socket.socket(socket.AF_UNIX).connect, b"\\0" + ws)
        said["pair"] = tried(socket.socketpair)
        said["signal"] = tried(os.kill, child.pid, signal.SIGTERM)
        said["signal itself"] = tried(os.kill, os.getpid(), 0)
        child.stdin.close()
        child.wait()
        """,
    )
    assert said == {
        "listen": "", "listen elsewhere": "EACCES", "connect": "EACCES", "pair": "", "signal": "EPERM",
        "connect to a name": "EPERM",
        "signal itself": "",
    }  # fmt: skip


@needs_landlock
def test_what_a_process_needs_later_is_there(tmp_path: Path) -> None:
    """Modules that were not loaded yet, the time zone, names of hosts, its own descriptors and mounts."""
    said = run(
        tmp_path,
        """
        hardening.harden()
        hardening.confine([ws])
        import datetime, zoneinfo
        import cryptography.hazmat.primitives.asymmetric.ed25519 as ed25519
        import pathspec, prometheus_client, uvloop, yaml, xml.dom.minidom
        ed25519.Ed25519PrivateKey.generate().sign(b"x")
        socket.getaddrinfo("127.0.0.1", 80)
        socket.getaddrinfo("localhost", 80)
        datetime.datetime.now().astimezone()
        box = sandbox.Sandbox(ws)
        box.mounted_in(box.root_fd)
        said["proc"] = tried(os.listdir, "/proc/self/fd")
        said["boot"] = tried(open, "/proc/sys/kernel/random/boot_id")
        said["null"] = tried(open, "/dev/null", "w")
        threads = [threading.Thread(target=lambda: said.update(thread=tried(open, outside + b"/secret")))]
        threads[0].start()
        threads[0].join()
        """,
    )
    assert said == {"proc": "", "boot": "", "null": "", "thread": "EACCES"}


@needs_landlock
def test_what_is_missing_is_said_and_left_out(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        import logging
        logging.basicConfig(level="INFO", stream=sys.stdout, format="")
        lines = []
        logging.getLogger().handlers[0].emit = lambda record: lines.append(record.getMessage())
        hardening._control(hardening._PR_SET_NO_NEW_PRIVS, 1)
        os.environ[hardening.EXTRA_VARIABLE] = os.fsdecode(tmp + b"/extra")
        os.mkdir(tmp + b"/extra")
        found = hardening.confine([ws, tmp + b"/none"], readable=[tmp + b"/nor this"])
        said["missing"] = [os.fsdecode(path) for path in found.missing]
        said["lines"] = [line for line in lines if "not there" in line]
        said["extra"] = tried(os.mkdir, tmp + b"/extra/d")
        os.mkdir(ws + b"/below")
        said["reach"] = [
            tried(found.check, path, write=write)
            for path in (ws, ws + b"/below", ws + b"/to/be/made", tmp + b"/none", outside, b"/")
            for write in (True, False)
        ]
        """,
    )
    missing = [str(tmp_path / "none"), str(tmp_path / "nor this")]
    assert said["missing"] == missing
    assert [line.rpartition(": ")[2] for line in said["lines"]] == missing
    assert said["extra"] == ""
    assert said["reach"] == [""] * 6 + ["EACCES"] * 6


@needs_landlock
def test_a_folder_made_anew_is_out_of_reach_and_a_link_to_one_is_not(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        os.symlink(ws, tmp + b"/alias")
        os.mkdir(tmp + b"/ro")
        os.mkdir(tmp + b"/root")
        hardening._control(hardening._PR_SET_NO_NEW_PRIVS, 1)
        wake, ready = os.pipe()
        done, over = os.pipe()
        if os.fork() == 0:  # somebody outside
            os.read(wake, 1)
            os.rename(tmp + b"/root", tmp + b"/former")
            os.mkdir(tmp + b"/root")
            os.write(over, b"x")
            os._exit(0)
        found = hardening.confine([tmp + b"/root", tmp + b"/alias"], readable=[tmp + b"/ro"])
        said["alias"] = [tried(found.check, ws), tried(os.mkdir, tmp + b"/alias/d")]
        said["ro"] = [tried(found.check, tmp + b"/ro"), tried(found.check, tmp + b"/ro", write=False)]
        os.write(ready, b"x")
        os.read(done, 1)
        os.wait()
        said["anew"] = [tried(found.check, tmp + b"/root"), tried(os.listdir, tmp + b"/root")]
        said["former"] = [tried(found.check, tmp + b"/former"), tried(os.listdir, tmp + b"/former")]
        """,
    )
    assert said == {
        "alias": ["", ""], "ro": ["EACCES", ""], "anew": ["EACCES", "EACCES"], "former": ["", ""],
    }  # fmt: skip


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        found = confine([bytes(tmp_path)], own=[bytes(tmp_path / "way/state")], enabled=False)
        assert os.umask(0) == 0
    finally:
        os.umask(former)
    for made in ("way", "way/state"):
        assert (tmp_path / made).stat().st_mode & 0o777 == 0o700
    assert not found.active
    assert "switched off" in found.describe()["reason"]
    found.check(b"/anywhere")


@pytest.mark.parametrize(("abi", "reason"), [(0, "does not offer it"), (1, "version 1")])
def test_a_kernel_without_it(monkeypatch: pytest.MonkeyPatch, abi: int, reason: str) -> None:
    monkeypatch.setattr(hardening, "landlock_abi", lambda: abi)
    found = confine([])
    assert not found.active
    assert reason in found.reason
    assert found.abi == abi


def test_a_container_that_refuses_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A seccomp filter answers EPERM to the system call that would bind the process."""
    real = hardening._call

    def call(number: int, *arguments: int | bytes) -> int:
        if number == hardening._RESTRICT_SELF:
            raise PermissionError(1, "Operation not permitted")
        return real(number, *arguments)

    monkeypatch.setattr(hardening, "landlock_abi", lambda: 2)
    monkeypatch.setattr(hardening, "_call", call)
    monkeypatch.setattr(hardening.os, "listdir", lambda path: ["1"])
    if landlock_abi() < 2:
        pytest.skip("needs a kernel with Landlock")
    found = confine([bytes(tmp_path)])
    assert not found.active
    assert found.reason == "the kernel refuses it: Operation not permitted"


def test_a_process_with_threads_is_not_confined_by_halves() -> None:
    if landlock_abi() < hardening.MIN_ABI:
        pytest.skip("needs a kernel with Landlock")
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="threads"):
            confine([])
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("root", "fixed"),
    [
        (b"/srv/ann", b"/srv/ann"),
        (b"/home/{user}", b"/home"),
        (b"/home/{user}/work", b"/home"),
        (b"/home/u-{user}/work", b"/home"),
        (b"/{user}", b"/"),
    ],
)
def test_where_the_workspaces_of_a_template_lie(root: bytes, fixed: bytes) -> None:
    assert fixed_part(root) == fixed


def test_what_is_said_of_a_folder_out_of_reach_names_none() -> None:
    error = OutOfReachError()
    assert error.errno == 13
    assert "start the engine anew" in str(error)
    assert "/" not in str(error)
    assert Confinement(False).describe()["active"] is False
