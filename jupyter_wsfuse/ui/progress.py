"""How far something with files and bytes has come: a bar on a terminal or in a notebook, lines in a log, or nothing."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jupyter_wsfuse.ui import render

#: Seconds between two lines, and between two pictures in a notebook, which is told of each by a message.
LINES: Final = 5.0
PICTURES: Final = 0.25

#: What a file costs beside its bytes, in bytes, so that the remaining time is right for many small ones, too.
_FILE: Final = 32 << 10
_WIDTH: Final = 110


@dataclass(frozen=True, slots=True)
class Moment:
    """How far it is. ``of_files``, ``of_bytes``: how much there is to do, None if that is being found out. ``seconds``
    since that part began."""

    what: str
    files: int
    bytes: int
    seconds: float
    of_files: int | None = None
    of_bytes: int | None = None

    @property
    def done(self) -> str:
        """``12 of 40 files``."""
        return f"{self.files} files" if self.of_files is None else f"{self.files} of {self.of_files} files"

    @property
    def data(self) -> str:
        """``1.0 MiB of 3.5 MiB``."""
        so_far = render.size(self.bytes)
        return so_far if self.of_bytes is None else f"{so_far} of {render.size(self.of_bytes)}"

    @property
    def rate(self) -> str:
        """``2.5 MiB/s`` of what is being read."""
        return f"{render.size(self.bytes / self.seconds)}/s" if self.of_bytes and self.seconds > 0 else ""

    @property
    def weight(self) -> int:
        return self.bytes + _FILE * self.files

    @property
    def whole(self) -> int | None:
        if self.of_files is None or self.of_bytes is None:
            return None
        return self.of_bytes + _FILE * self.of_files


class Display(Protocol):
    """Where progress is shown."""

    def show(self, moment: Moment) -> None:
        """To be called often; it decides what is worth showing."""

    def close(self) -> None:
        """Nothing more will come. What was drawn is taken away, the result comes in its place."""


class Quiet:
    """Shows nothing."""

    def show(self, moment: Moment) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """A line now and then, by *say*; the first one only of what takes long."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._last = clock()

    def show(self, moment: Moment) -> None:
        now = self._clock()
        if now - self._last < LINES:
            return
        self._last = now
        said = [f"{moment.what}: {moment.done}", moment.data, moment.rate]
        if moment.whole and moment.weight and moment.seconds > 0:
            left = moment.seconds * (moment.whole - moment.weight) / moment.weight
            said.append(f"about {render.duration(max(left, 0))} left")
        self._say(", ".join(filter(None, said)))

    def close(self) -> None:
        pass


class _Picture:
    """The bar, wherever it is drawn."""

    def __init__(self, console: Console) -> None:
        columns = (
            "{task.description}",
            None,
            "{task.fields[done]}",
            "{task.fields[data]}",
            "{task.fields[rate]}",
        )
        self.progress = Progress(
            *(BarColumn(30) if text is None else TextColumn(text, markup=False) for text in columns),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task: Any = None
        self._what = ""

    def update(self, moment: Moment) -> None:
        if moment.what != self._what:
            if self._task is not None:
                self.progress.remove_task(self._task)
            self._what = moment.what
            self._task = self.progress.add_task(moment.what, total=None, done="", data="", rate="")
        self.progress.update(
            self._task,
            completed=moment.weight,
            total=moment.whole,
            done=moment.done,
            data=moment.data,
            rate=moment.rate,
        )


class Bar:
    """On a terminal."""

    def __init__(self, console: Console) -> None:
        self._picture = _Picture(console)
        self._picture.progress.start()

    def show(self, moment: Moment) -> None:
        self._picture.update(moment)
        self._picture.progress.refresh()

    def close(self) -> None:
        self._picture.progress.stop()


class Cell:
    """In the output of a notebook's cell: a picture that is replaced, without any widget, which some front ends do not
    have."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._picture = _Picture(Console(file=io.StringIO(), width=_WIDTH))
        self._clock = clock
        self._next = clock() + PICTURES
        self._handle: Any = None

    def show(self, moment: Moment) -> None:
        self._picture.update(moment)
        if self._clock() >= self._next:
            self._next = self._clock() + PICTURES
            self._draw(self._drawn())

    def close(self) -> None:
        if self._handle is not None:
            self._draw({"text/plain": "", "text/html": ""})

    def _drawn(self) -> dict[str, str]:
        console = Console(
            file=io.StringIO(), record=True, width=_WIDTH, force_terminal=True, force_jupyter=False,
            color_system="truecolor", legacy_windows=False,
        )  # fmt: skip
        console.print(self._picture.progress.get_renderable())
        page = console.export_html(
            inline_styles=True, clear=False,
            code_format="<pre style='white-space:pre;line-height:normal;color:inherit'>{code}</pre>",
        )  # fmt: skip
        return {"text/plain": console.export_text().rstrip(), "text/html": page}

    def _draw(self, data: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def display(say: Callable[[str], None]) -> Display:
    """What fits where we are: *say* is for lines."""
    console = render.console(stderr=True)
    if console.is_jupyter:
        return Cell()
    return Bar(console) if console.is_terminal else Lines(say)
