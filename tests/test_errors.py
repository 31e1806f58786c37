from __future__ import annotations

import asyncio
import errno
import inspect

import pytest

from jupyter_wsfuse import errors
from jupyter_wsfuse.errors import (
    LimitExceededError,
    RefusedError,
    RemoteProtocolError,
    SandboxError,
    TransportError,
    WsFuseError,
    errno_name,
    errno_number,
    errno_of,
    os_error,
)


def test_the_tree_in_the_docstring_is_complete() -> None:
    assert errors.__doc__ is not None
    tree = {
        name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, WsFuseError)
    }
    drawn = {word for line in errors.__doc__.splitlines() for word in line.strip("│├└─ ").split()[:1]}
    assert tree <= drawn


@pytest.mark.parametrize(
    ("exc", "number"),
    [
        (FileNotFoundError(errno.ENOENT, "gone"), errno.ENOENT),
        (OSError(errno.EDQUOT, "full"), errno.EDQUOT),
        (OSError("without a number"), errno.EIO),
        (SandboxError(), errno.EACCES),
        (asyncio.CancelledError(), errno.EINTR),
        (TimeoutError(), errno.ETIMEDOUT),
        (TimeoutError(errno.EAGAIN, "other"), errno.EAGAIN),
        (InterruptedError(), errno.EINTR),
        (RefusedError("busy", "later"), errno.EACCES),
        (LimitExceededError(), errno.EMSGSIZE),
        (RemoteProtocolError(), errno.EIO),
        (TransportError(), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (RecursionError(), errno.ELOOP),
        (NotImplementedError(), errno.EOPNOTSUPP),
        (RuntimeError("a bug"), errno.EIO),
    ],
)
def test_every_exception_has_an_errno(exc: BaseException, number: int) -> None:
    assert errno_of(exc) == number


def test_no_exception_becomes_enosys() -> None:
    assert errno.ENOSYS not in {number for _, number in errors._ERRNO_OF}


def test_names_travel_and_come_back() -> None:
    for number, name in errno.errorcode.items():
        assert errno_number(errno_name(number)) == errno_number(name) == number
    assert [errno_name(n) for n in (errno.EAGAIN, errno.EDEADLK, errno.EOPNOTSUPP)] == [
        "EAGAIN",
        "EDEADLK",
        "EOPNOTSUPP",
    ]
    assert errno_name(99999) == "EIO"


@pytest.mark.parametrize("name", ["", "ENOSUCH", "errorcode", "__doc__", "E", "E\n", "E" * 9999])
def test_a_name_from_the_wire_is_not_trusted(name: str) -> None:
    assert errno_number(name) == errno.EIO


def test_os_error_is_of_the_right_class() -> None:
    assert isinstance(os_error(errno.ENOENT), FileNotFoundError)
    assert str(os_error(errno.ENOENT)) == "[Errno 2] No such file or directory"
    assert os_error(errno.EACCES, "not yours").strerror == "not yours"


def test_details() -> None:
    assert RefusedError("busy", "later").code == "busy"
    assert (RemoteProtocolError.close_code, LimitExceededError.close_code) == (1002, 1009)
    assert isinstance(SandboxError(), OSError)
    assert "outside" in str(SandboxError())
