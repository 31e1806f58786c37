"""What the engine's process gives up before it serves anybody.

Two steps, because the secret comes between them. :func:`harden` settles what was inherited, before the
configuration is read: descriptors, umask, limits, no way to gain privileges, and a memory that nobody of the
same user can look into. :func:`confine` then binds the process to the folders that the configuration names, by
Landlock (<linux/landlock.h>): whatever goes wrong in the engine later, the kernel opens nothing outside them,
executes nothing at all, connects to nobody and signals nobody.

The sandbox (:mod:`.sandbox`) is what keeps a client inside a workspace; this is what remains if it had a hole.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import logging
import os
import resource
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import WsFuseError
from ..memory import keep_freed_memory

_LOG = logging.getLogger(__name__)

#: Names, separated by ``:``, of folders that the engine may write as well; for tools that run inside it and
#: leave files behind when it ends.
EXTRA_VARIABLE: Final = "WSFUSE_ENGINE_MAY_WRITE"

# <linux/prctl.h>
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39

# <linux/landlock.h>. The system calls have the same numbers on every architecture.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ASK_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_RULE_NET_PORT: Final = 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE, _MAKE_CHAR, _MAKE_DIR = (
    1 << bit for bit in range(8)
)
_MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM, _REFER, _TRUNCATE, _IOCTL_DEV = (
    1 << bit for bit in range(8, 16)
)
_BIND_TCP: Final = 1
_CONNECT_TCP: Final = 2
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 3

#: Before this version, moving a file from one directory to another cannot be allowed.
MIN_ABI: Final = 2
#: What is asked for, by the version that brought it.
_FS_RIGHTS: Final = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
_READ: Final = _READ_FILE | _READ_DIR
#: Everything that a workspace needs. Device nodes and execution are in no list.
_WRITE: Final = (
    _READ | _WRITE_FILE | _TRUNCATE | _REFER | _REMOVE_DIR | _REMOVE_FILE
    | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO | _MAKE_SYM
)  # fmt: skip
_OF_FILES: Final = _READ_FILE | _WRITE_FILE | _TRUNCATE  # all that may be said of something not a directory

# What a Python process opens in the course of its life, beside its own modules.
_SYSTEM: Final = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache",
    "/etc/localtime", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/hosts", "/etc/resolv.conf", "/etc/gai.conf",
    "/etc/passwd", "/etc/group", "/etc/ssl/openssl.cnf", "/dev/urandom", "/dev/random", "/dev/zero",
    "/proc/self", "/proc/sys/kernel/random", "/sys/devices/system/cpu",
)  # fmt: skip
_DEPENDENCIES: Final = (
    "aiolimiter", "cachetools", "cryptography", "msgspec", "pathspec", "picows", "prometheus_client", "uvloop",
    "yaml",
)  # fmt: skip

_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall: Final = _libc["syscall"]
_syscall.restype = ctypes.c_long
_prctl: Final = _libc["prctl"]
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class OutOfReachError(WsFuseError, OSError):
    """A folder is outside of what the process confined itself to. Carries ``EACCES``."""

    def __init__(self) -> None:
        OSError.__init__(
            self,
            errno.EACCES,
            "the folder is not one of those that the engine confined itself to when it started; "
            "start the engine anew to serve it",
        )


# --- what was inherited

#: Descriptors that the kernel makes room for at once: half a megabyte.
_FILES: Final = 1 << 16


def harden() -> None:
    """Settle what the process inherited: the first thing that it does, before it knows any secret."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:  # the one that listed them
                pass
    os.umask(0)  # a client's kernel has applied the client's
    _control(_PR_SET_NO_NEW_PRIVS, 1)
    # No core file, no ptrace by processes of the same user, no reading of memory or environment by them.
    _control(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _make_room(min(hard, _FILES))
    keep_freed_memory()


def _make_room(files: int) -> None:
    """Let the kernel's table of descriptors be large enough now, while there is one thread. Growing it later, it waits
    until every processor has been through the scheduler, and every thread that opens a file waits for 10 ms or more.
    """
    last = files - 1
    try:
        os.fstat(last)
    except OSError:
        os.close(os.dup2(0, last))


def _control(option: int, value: int = 0) -> int:
    answer: int = _prctl(option, value, 0, 0, 0)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def in_force() -> dict[str, Any]:
    """What the kernel says of this process, for the status."""
    return {
        "no_new_privileges": bool(_control(_PR_GET_NO_NEW_PRIVS)),
        "dumpable": bool(_control(_PR_GET_DUMPABLE)),
        "core_bytes": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


# --- which folders


@dataclass(frozen=True)
class Confinement:
    """What the process is bound to. ``abi``: the kernel's version of Landlock, 0 if there is none.

    ``active`` False: not bound, and ``reason`` says why. ``missing``: asked for, but not there, so not allowed.
    ``outward``: whether outgoing TCP connections, and ``signals``: whether signals to others, are refused too.
    """

    active: bool
    abi: int = 0
    reason: str = ""
    writable: tuple[bytes, ...] = ()
    readable: tuple[bytes, ...] = ()
    missing: tuple[bytes, ...] = ()
    outward: bool = False
    signals: bool = False
    _write: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)
    _read: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)
    #: Keeps what the rules stand on from being forgotten by the kernel, which would forget the rule with it.
    _held: tuple[int, ...] = field(default=(), repr=False)

    def check(self, folder: bytes, *, write: bool = True) -> None:
        """Raise :class:`OutOfReachError` if the kernel would let this process do nothing in *folder*.

        For a folder that is still to be made, its parent is what counts.
        """
        if not self.active:
            return
        allowed = self._write if write else self._write | self._read
        at = os.path.realpath(folder)
        while True:
            try:
                if _key(at) in allowed:
                    return
            except OSError:
                pass
            if at == b"/":
                raise OutOfReachError
            at = os.path.dirname(at)

    def describe(self) -> dict[str, Any]:
        """For the status: numbers, not the folders of tenants."""
        return {
            "active": self.active,
            "abi": self.abi,
            "reason": self.reason,
            "writable": len(self.writable),
            "readable": len(self.readable),
            "missing": len(self.missing),
            "no_connections": self.outward,
            "no_signals": self.signals,
        }


def confine(
    writable: Iterable[bytes],
    *,
    readable: Iterable[bytes] = (),
    own: Iterable[bytes] = (),
    enabled: bool = True,
) -> Confinement:
    """Bind this process, for good, to what is below the given absolute paths.

    *writable*: workspaces and where links may lead. *readable*: read-only workspaces, configuration. *own*: the
    engine's private folders, made (0700) if they are not there. What is missing of the others is left out, and
    cannot be reached when it appears later. Has to be called before any thread is started, because only the
    calling one is bound.

    Where the kernel does not offer it, or with *enabled* False, nothing happens, and the result says so.
    """
    own = tuple(own)
    for folder in own:
        _make_private(folder)
    if not enabled:
        return _given(Confinement(False, reason="switched off by the configuration"))
    abi = landlock_abi()
    if abi < MIN_ABI:
        reason = f"the kernel offers version {abi} of it" if abi else "the kernel does not offer it"
        return _given(Confinement(False, abi, reason))
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a process with threads cannot be confined as a whole")
    extra = os.environ.get(EXTRA_VARIABLE, "")
    writing = _distinct((*writable, *own, *(os.fsencode(name) for name in extra.split(":") if name)))
    reading = _distinct(readable)
    try:
        return _given(_Ruleset(abi).enforce(writing, reading))
    except OSError as exc:  # a seccomp filter of a container, or too many rule sets already
        return _given(Confinement(False, abi, f"the kernel refuses it: {exc.strerror}"))


def _make_private(folder: bytes) -> None:
    """Make *folder* if it is not there, and what is missing on the way to it, for the owner alone."""
    former = os.umask(0o077)
    try:
        os.makedirs(folder, exist_ok=True)
    finally:
        os.umask(former)


def _given(confinement: Confinement) -> Confinement:
    """Say once what is in force."""
    if not confinement.active:
        _LOG.info("the process is not confined by Landlock: %s", confinement.reason)
    else:
        _LOG.info(
            "confined by Landlock (version %d) to %d folders", confinement.abi, len(confinement.writable)
        )
        for path in confinement.missing:
            _LOG.info("not there, so out of reach until the next start: %s", os.fsdecode(path))
    return confinement


def landlock_abi() -> int:
    """The version of Landlock that the kernel offers, 0 for none."""
    answer = _syscall(
        ctypes.c_long(_CREATE_RULESET), ctypes.c_long(0), ctypes.c_long(0), ctypes.c_long(_ASK_VERSION)
    )
    return max(0, int(answer))


def fixed_part(root: bytes) -> bytes:
    """The folder in which all workspaces of a template such as ``/home/{user}/work`` lie: ``/home``.

    A path without ``{user}`` is itself.
    """
    parts = root.split(b"/")
    for index, part in enumerate(parts):
        if b"{user}" in part:
            return b"/".join(parts[:index]) or b"/"
    return root


def _distinct(paths: Iterable[bytes]) -> list[bytes]:
    return list(dict.fromkeys(paths))


def _key(path: bytes | int) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _interpreter() -> Iterator[str]:
    """Where modules may have to be loaded from as long as the process lives."""
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix)
    paths = sysconfig.get_paths()
    yield from (paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield str(Path(__file__).parents[1])
    for name in _DEPENDENCIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            yield str(Path(spec.origin).parents[1])


class _Ruleset:
    """A Landlock rule set in the making."""

    def __init__(self, abi: int) -> None:
        self.abi = abi
        self.rights = sum(bits for version, bits in _FS_RIGHTS.items() if version <= abi)
        words = [self.rights]
        if abi >= 4:
            words.append(_BIND_TCP | _CONNECT_TCP)
        if abi >= 6:
            words.append(_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
        attributes = struct.pack(f"={len(words)}Q", *words)
        self._fd = _call(_CREATE_RULESET, attributes, len(attributes), 0)
        if abi >= 4:  # any free port is ours to listen on, no other one
            _call(_ADD_RULE, self._fd, _RULE_NET_PORT, struct.pack("=QQ", _BIND_TCP, 0), 0)

    def enforce(self, writing: list[bytes], reading: list[bytes]) -> Confinement:
        missing: list[bytes] = []
        held: list[int] = []
        try:
            write = self._allow(writing, _WRITE, held, missing)
            read = self._allow(reading, _READ, held, missing)
            everyday = [os.fsencode(path) for path in (*_SYSTEM, *_interpreter())]
            self._allow(_distinct(everyday), _READ, held, [])
            self._allow([b"/dev/null"], _READ_FILE | _WRITE_FILE, held, [])
            _call(_RESTRICT_SELF, self._fd, 0)
        except BaseException:
            for fd in held:
                os.close(fd)
            raise
        finally:
            os.close(self._fd)
        return Confinement(
            True,
            self.abi,
            writable=tuple(path for path in writing if path not in missing),
            readable=tuple(path for path in reading if path not in missing),
            missing=tuple(missing),
            outward=self.abi >= 4,
            signals=self.abi >= 6,
            _write=frozenset(write),
            _read=frozenset(read),
            _held=tuple(held),
        )

    def _allow(
        self, paths: Iterable[bytes], rights: int, held: list[int], missing: list[bytes]
    ) -> list[tuple[int, int]]:
        """Rules for those of *paths* that are there; returns what they stand on."""
        keys = []
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                missing.append(path)
                continue
            held.append(fd)
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            allowed = rights & self.rights & (-1 if directory else _OF_FILES)
            rule = struct.pack("=Qi", allowed, fd)  # struct landlock_path_beneath_attr is packed
            _call(_ADD_RULE, self._fd, _RULE_PATH_BENEATH, rule, 0)
            keys.append(_key(fd))
        return keys


def _call(number: int, *arguments: int | bytes) -> int:
    """A system call; pointers are given as the bytes that they point to."""
    values = [
        ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_long(argument)
        for argument in arguments
    ]
    answer = int(_syscall(ctypes.c_long(number), *values))
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer
