"""Short turns while several tenants are there, and the usual ones afterwards."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from jupyter_wsfuse.engine import turnaround
from jupyter_wsfuse.engine.turnaround import SHORT_INTERVAL, SHORT_SLICE, Turnaround, set_slice


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    set_slice(threading.get_native_id(), 0)


def test_back_and_forth() -> None:
    sys.setswitchinterval(0.005)
    turns = Turnaround()
    turns.set(False)
    assert sys.getswitchinterval() == 0.005
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    for _ in range(2):
        turns.set(True)
        assert sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL)
    turns.set(False)
    assert sys.getswitchinterval() == pytest.approx(0.005)
    assert os.getpriority(os.PRIO_PROCESS, 0) == nice
    sys.setswitchinterval(0.00001)
    turns = Turnaround()
    turns.set(True)
    assert sys.getswitchinterval() == pytest.approx(0.00001)


def test_what_cannot_be_had_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    own = threading.get_native_id()
    assert set_slice(own, SHORT_SLICE) == set_slice(own, 0)
    assert not set_slice(2**22 + 7, SHORT_SLICE)  # no such thread
    monkeypatch.setattr(turnaround, "_SYSCALL", {})
    assert not set_slice(own, SHORT_SLICE)
