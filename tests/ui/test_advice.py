"""What a profile says in words."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_wsfuse.ui.advice import Advice, advise, place_name


def place(
    operation: str, count: int, waited: float, directory: str | None = "data", bytes: int = 0
) -> dict[str, Any]:
    return {
        "directory": directory, "operation": operation, "count": count, "asked": count, "seconds": waited,
        "waited": waited, "bytes": bytes,
    }  # fmt: skip


def told(
    *places: dict[str, Any],
    seconds: float = 4.1,
    wall: float = 0.0,
    prefix: str | None = "wsfuse",
    **parts: float,
) -> list[Advice]:
    """Advice where the waits of *places* followed each other, or took *wall* together."""
    total = sum(row["waited"] for row in places)
    return advise(
        "/mnt/my files",
        {
            "seconds": seconds,
            "waiting": {"sum": total, "wall": wall or total, "parts": parts or None, "operations": None},
            "places": sorted(places, key=lambda row: -row["waited"]),
        },
        prefix,
    )


def test_many_small_files_one_after_another() -> None:
    (advice,) = told(place("open", 212, 2.993))
    assert advice.what == "73 % of 4.1 s waited for 212 opens in data/, one after another, 14.1 ms each."
    assert "`wsfuse prefetch '/mnt/my files/data'` beforehand" in advice.todo
    assert "/tmp" not in advice.todo, "a copy of our own is not needed"
    assert "one archive" in advice.todo
    assert "16 threads" in advice.todo
    assert "take about 1.29 s" in advice.todo


def test_the_command_as_it_is_typed_and_where_it_helps() -> None:
    row = place("open", 212, 2.993)
    assert "`%wsfuse prefetch '/mnt/my files/data'`" in told(row, prefix="%wsfuse")[0].todo
    forgetful = told(row, prefix=None)[0].todo
    assert "prefetch" not in forgetful, "what is not remembered need not be fetched ahead"
    assert "cp -r '/mnt/my files/data' /tmp" in forgetful


def test_side_by_side_already() -> None:
    (advice,) = told(place("open", 212, 24.0), wall=3.0)
    assert "about 8 at a time" in advice.what
    assert "threads" not in advice.todo
    assert "fewer and larger" in advice.todo


def test_what_the_same_helps_against_is_one_thing() -> None:
    opens, looks, reads = (
        place("open", 60, 1.5),
        place("lookup", 48, 1.3),
        place("read", 60, 1.0, bytes=300_000),
    )
    rare = place("getattr", 1, 0.01)
    (advice,) = told(opens, looks, reads, rare)
    assert advice.what == (
        "93 % of 4.1 s waited for 60 opens, 48 look-ups of names and 60 reads in data/, one after another, "
        "22.5 ms each."
    )
    other = place("open", 300, 1.9, "elsewhere")
    assert [advice.what.split(" in ")[1].split(",")[0] for advice in told(opens, other)] == [
        "elsewhere/",
        "data/",
    ]
    assert len(told(place("open", 60, 1.5), place("write", 60, 1.3))) == 2


def test_time_that_went_elsewhere() -> None:
    (advice,) = told(place("open", 212, 0.1))
    assert advice == Advice(
        "Only 2 % of 4.1 s waited for the server: the time went elsewhere, in computing or on other disks."
    )
    assert told(seconds=0.0)[0].what.startswith("Only 0 %")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([place("write", 1000, 3.0, bytes=100_000)], "larger pieces than 100 B"),
        (
            [place("read", 1000, 3.0, bytes=100_000)],
            "For jumps within a file, bring all of it here first: `wsfuse prefetch",
        ),
        (
            [place("read", 100, 3.0, bytes=300 << 20)],
            "300.0 MiB at 100.0 MiB a second: that is the connection",
        ),
        (
            [place("read", 100, 3.0, bytes=300 << 20)],
            "before you need it: `wsfuse prefetch '/mnt/my files/data'`",
        ),
        ([place("write", 100, 3.0, bytes=300 << 20)], "Write less"),
        ([place("create", 100, 3.0)], "in a terminal of the server"),
        ([place("fsync", 100, 3.0)], "database"),
        ([place("setlk", 2, 3.0)], "holds the locks"),
        ([place("readdir", 30, 3.0)], "`wsfuse prefetch '/mnt/my files/data'`"),
        ([place("open", 100, 3.0, None)], "`wsfuse prefetch DIR`"),
        ([place("open", 100, 3.0, "(files without a name)")], "`wsfuse prefetch DIR`"),
    ],
)
def test_remedies(rows: list[dict[str, Any]], words: str) -> None:
    (advice,) = told(*rows)
    assert words in advice.todo


@pytest.mark.parametrize("operation", ["open", "create", "read", "statfs", "unheard of"])
def test_a_few_operations_need_no_remedy(operation: str) -> None:
    (advice,) = told(place(operation, 2, 3.0, bytes=2000))
    assert advice.what
    assert advice.todo == ""


def test_where_it_is_not_the_distance() -> None:
    row = place("open", 2, 3.0)
    limited, _ = told(row, network=1.0, limit=2.0, disk=0.0, server=0.0)
    assert limited.what.startswith("67 % of the waiting was the server holding operations back")
    assert limited.todo
    busy, _ = told(row, network=1.0, limit=0.0, disk=0.0, server=2.0)
    assert "busy" in busy.what
    disk, _ = told(row, network=1.0, limit=0.0, disk=2.0, server=0.0)
    assert "own disk" in disk.what


def test_places_have_names() -> None:
    assert place_name("a/b") == "a/b/"
    assert place_name("") == "the top directory"
    assert place_name(None) == "other directories"
    assert place_name("a\x1b\n") == r"a\x1b\n/"
    (advice,) = told(place("open", 212, 3.0, "a\x1b[2J"))
    assert "\x1b" not in advice.what + advice.todo
