"""What the mount's log says of denials."""

from __future__ import annotations

import errno
import logging

import pytest

from jupyter_wsfuse.client.denials import QUIET, Denials
from jupyter_wsfuse.errors import DeniedError, os_error
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.local_engine import Clock

REQUEST = m.Unlink(1, m.Ref(b"raw"), b"file")


def denial(rule: str) -> OSError:
    return os_error(errno.EACCES, str(DeniedError(rule).strerror))


def test_each_rule_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    denials = Denials(clock)
    for _ in range(3):
        denials.saw(REQUEST, denial("rule 1"))
    denials.saw(REQUEST, denial("rule 2"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.messages == [f"{REQUEST}: denied by rule 1", f"{REQUEST}: denied by rule 2"]
    clock.seconds += QUIET
    denials.saw(REQUEST, denial("rule 1"))
    assert caplog.messages[2:] == [f"{REQUEST}: denied by rule 1 (and 2 times before)"]


def test_other_errors_are_not_ours(caplog: pytest.LogCaptureFixture) -> None:
    denials = Denials(Clock())
    denials.saw(REQUEST, os_error(errno.EACCES))
    denials.saw(REQUEST, OSError())
    assert caplog.messages == []


def test_bounded(caplog: pytest.LogCaptureFixture) -> None:
    denials = Denials(Clock())
    for number in range(1000):
        denials.saw(REQUEST, denial(f"rule {number}"))
    assert len(caplog.messages) == 1000
    assert len(denials._told) == 100
    denials.saw(REQUEST, denial("rule 999"))
    assert len(caplog.messages) == 1000
