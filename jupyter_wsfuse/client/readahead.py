"""Recognises how a file is read, and says what will be read next.

The kernel reads ahead by itself, in pieces of 128 KiB to 1 MiB of which several are under way and may come out of
order. So a read continues a *stream* if it begins where that ended or, once it is known to be one, near there: within
eight times the size of its reads. Up to four streams are followed in a file. Reads of one size at one distance from
each other that are of no stream are a *stride*; to read backwards is one as well.

What was asked for ahead is remembered until it was read or left behind: nothing is asked for twice, and a file of which
too much was asked for in vain has to prove itself.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

#: Blocks, or ranges of a stride, that are asked for at first. Twice as many each time, up to so many.
_FIRST: Final = 2
_MOST_BLOCKS: Final = 64
_MOST_RANGES: Final = 32
#: Streams that are followed in one file, and reads that may be the beginning of one.
_STREAMS: Final = 4
_CANDIDATES: Final = 8
#: Reads of the kernel that are under way at once: a read may come so many sizes of one before or after its turn.
_BURST: Final = 8
#: Bytes of a first read at the start of a file that say that more will follow.
_EAGER: Final = 64 << 10
#: Reads that continue a stream after which those out of order are believed to be of it, even if they skip something.
_KNOWN: Final = 2
#: Reads in a row at one distance that make a stride, and other reads in a row after which it has ended.
_STRIDES: Final = 3
_STRAYS: Final = 4
#: When of the last so many ranges more than half were in vain, so many reads in sequence are needed before the next.
_HISTORY: Final = 16
_PROOF: Final = 3


class Range(NamedTuple):
    """*size* bytes of a file from *offset* on."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


class _Run:
    """Reads that follow from each other. What is counted in steps are blocks of a stream, reads of a stride."""

    __slots__ = ("ahead", "goal", "width", "proof", "held")

    def __init__(self) -> None:
        self.ahead = 0  # step up to which was asked for
        self.goal = 0  # step up to which should be, when there is room
        self.width = 0  # steps from the reader to that, when it was set
        self.proof = 0  # reads that it has to go on for before anything is asked for
        self.held: deque[int] = deque()  # keys of ranges, from far behind the reader to far ahead

    def widen(self, at: int, left: float, most: int) -> bool:
        """Whether to ask for something, with the reader at step *at* and *left* steps asked for beyond that."""
        if self.ahead >= self.goal:
            if 2 * left > self.width:
                return False
            self.width = min(max(_FIRST, 2 * self.width), most)
            self.goal = at + self.width
        return True


class _Stream(_Run):
    __slots__ = ("end", "count", "largest")

    def __init__(self, read: Range, count: int) -> None:
        super().__init__()
        self.end = read.end  # where its next read is expected
        self.count = count  # reads that continued it
        self.largest = read.size


class _Stride(_Run):
    __slots__ = ("origin", "distance", "size", "at", "strays")

    def __init__(self, read: Range, distance: int) -> None:
        super().__init__()
        self.origin = read.offset
        self.distance = distance
        self.size = read.size
        self.at = 0  # steps from the origin to the furthest that was read
        self.strays = 0

    def step_of(self, offset: int) -> int:
        return (offset - self.origin) // self.distance


class _Asked:
    """A range that was handed out for *run*."""

    __slots__ = ("run", "range", "read")

    def __init__(self, run: _Run, range_: Range) -> None:
        self.run = run
        self.range = range_
        self.read = False

    @property
    def ahead(self) -> bool:
        return not self.read or (isinstance(self.run, _Stream) and self.run.end < self.range.end)


class ReadAhead:
    """For one open file. *block* is in bytes.

    Ranges that were handed out: ``issued``. Of these, ``used``: something of it was read; ``wasted``: it was left
    behind, or forgotten, before. The rest is ahead.
    """

    def __init__(self, block: int = 1 << 20) -> None:
        self.issued = 0
        self.used = 0
        self.wasted = 0
        self._block = block
        self._streams: list[_Stream] = []  # the one that was read last at the end
        self._candidates: deque[Range] = deque(maxlen=_CANDIDATES)
        self._stride: _Stride | None = None
        self._last: Range | None = None
        self._distance = 0  # from the read before the last to that
        self._alike = 0  # reads in a row at that distance
        self._blocks: dict[int, _Asked] = {}  # by index
        self._exact: dict[int, _Asked] = {}  # by offset
        self._history: deque[bool] = deque(maxlen=_HISTORY)  # whether it was in vain

    def saw(self, offset: int, size: int, file_size: int, room: int) -> list[Range]:
        """*size* bytes at *offset* are read, of a file of *file_size*. What is worth having now, the nearest first.

        Of a stream, whole blocks, from the one on that the reader is in: so the first may contain what is read now. Of
        a stride, ranges exactly as they will be read. All within the file, none twice while it is still ahead.
        Together at most *room* bytes, but while nothing is ahead of the reader, one range if there is any room.
        """
        read = Range(offset, min(size, file_size - offset))
        if read.size <= 0:
            return []
        self._mark(read)
        self._compare(read)
        stream = self._stream_of(read, _KNOWN)
        if stream is None and self._stride is not None and self._goes_on(self._stride, read):
            return self._of_stride(self._stride, file_size, room)
        if stream is None:
            stream = self._stream_of(read, 0) or self._new_stream(read)
        if stream is None and self._alike >= _STRIDES:
            return self._of_stride(self._new_stride(read), file_size, room)
        self._stray()
        return [] if stream is None else self._of_stream(stream, file_size, room)

    def forget(self) -> None:
        """The data are others now: nothing is ahead, nothing is known but how well it did."""
        for asked in (*self._blocks.values(), *self._exact.values()):
            if not asked.read:
                self.wasted += 1
        self._blocks.clear()
        self._exact.clear()
        self._streams.clear()
        self._candidates.clear()
        self._stride = None
        self._last = None
        self._alike = 0

    def close(self) -> None:
        """Nothing more will be read. ``issued`` is ``used + wasted`` then."""
        self.forget()

    # --- in sequence -----------------------------------------------------------------------------------

    def _stream_of(self, read: Range, known: int) -> _Stream | None:
        """The stream that *read* continues, or is near to if that is *known* by so many reads. It is moved on."""
        for stream in reversed(self._streams):
            if stream.end == read.offset:
                break
        else:
            for stream in reversed(self._streams):
                if stream.count >= known and self._near(stream, read):
                    break
            else:
                return None
        if stream is not self._streams[-1]:
            self._streams.remove(stream)
            self._streams.append(stream)
        stream.largest = max(stream.largest, read.size)
        if read.offset >= stream.end:
            stream.count += 1
            stream.proof = max(0, stream.proof - 1)
        stream.end = max(stream.end, read.end)
        slack = _BURST * stream.largest
        while stream.held and (stream.held[0] + 1) * self._block + slack <= stream.end:
            self._leave(stream, self._blocks)
        return stream

    def _near(self, stream: _Stream, read: Range) -> bool:
        if abs(read.offset - stream.end) > _BURST * max(stream.largest, read.size):
            return False
        if stream.count < _KNOWN and self._alike >= _STRIDES:
            return False
        # A piece that comes out of order, or the file once more from its start?
        return read.offset > 0 or stream.count < _BURST

    def _new_stream(self, read: Range) -> _Stream | None:
        """The stream that *read* is the second of, in whichever order, or the first at the start of the file."""
        for other in self._candidates:
            if other.end == read.offset or read.end == other.offset:
                self._candidates.remove(other)
                stream = _Stream(max(other, read), 1)
                proof = int(other.offset > read.offset)  # it may be read backwards
                break
        else:
            if read.offset > 0 or read.size < _EAGER:
                self._candidates.append(read)
                return None
            stream, proof = _Stream(read, 0), 0
        if self._wary:
            proof = max(proof, _PROOF - stream.count)
        stream.proof = proof
        self._streams.append(stream)
        if len(self._streams) > _STREAMS:
            ended = self._streams.pop(0)
            while ended.held:
                self._leave(ended, self._blocks)
        return stream

    def _of_stream(self, stream: _Stream, file_size: int, room: int) -> list[Range]:
        block = self._block
        at = stream.end // block
        left = stream.ahead - stream.end / block
        if stream.proof or stream.end >= file_size or not stream.widen(at, left, _MOST_BLOCKS):
            return []
        found: list[Range] = []
        stream.ahead = max(stream.ahead, at)
        while stream.ahead < stream.goal and stream.ahead * block < file_size:
            index = stream.ahead
            wanted = Range(index * block, min(block, file_size - index * block))
            if not (self._blocks_in(wanted) or self._strides_in(wanted) or self._was_read(wanted)):
                if wanted.size > room and (found or left > 0 or room <= 0):
                    break
                room -= wanted.size
                found.append(self._ask(stream, self._blocks, index, wanted))
            stream.ahead += 1
        return found

    # --- with a stride ---------------------------------------------------------------------------------

    def _compare(self, read: Range) -> None:
        """Count reads at one distance."""
        last, self._last = self._last, read
        if last is None or last.size != read.size:
            self._alike = 1
            return
        distance = read.offset - last.offset
        if -read.size < distance <= read.size:
            self._alike = 1
        elif self._alike >= 2 and distance == self._distance:
            self._alike += 1
        else:
            self._alike = 2
        self._distance = distance

    def _new_stride(self, read: Range) -> _Stride:
        self._end_stride()
        self._stride = _Stride(read, self._distance)
        if self._wary:
            self._stride.proof = _PROOF
        return self._stride

    def _goes_on(self, stride: _Stride, read: Range) -> bool:
        """Whether *read* is of *stride*, which is moved on by it."""
        step = stride.step_of(read.offset)
        if (
            read.size != stride.size
            or stride.origin + step * stride.distance != read.offset
            or step > stride.at + _BURST
            or (step <= stride.at and read.offset not in self._exact)
        ):
            return False
        stride.strays = 0
        if step > stride.at:
            stride.at = step
            stride.proof = max(0, stride.proof - 1)
        while stride.held and stride.step_of(stride.held[0]) < step - _BURST:
            self._leave(stride, self._exact)
        return True

    def _stray(self) -> None:
        """A read was of no stride."""
        if self._stride is not None:
            self._stride.strays += 1
            if self._stride.strays >= _STRAYS:
                self._end_stride()

    def _end_stride(self) -> None:
        while self._stride is not None and self._stride.held:
            self._leave(self._stride, self._exact)
        self._stride = None

    def _of_stride(self, stride: _Stride, file_size: int, room: int) -> list[Range]:
        at = stride.at + 1
        left = stride.ahead - at
        if stride.proof or not stride.widen(at, left, _MOST_RANGES):
            return []
        found: list[Range] = []
        stride.ahead = max(stride.ahead, at)
        while stride.ahead < stride.goal:
            wanted = Range(stride.origin + stride.ahead * stride.distance, stride.size)
            if wanted.offset < 0 or wanted.end > file_size:
                break
            if not self._blocks_in(wanted) and not self._strides_in(wanted):
                if wanted.size > room and (found or left > 0 or room <= 0):
                    break
                room -= wanted.size
                found.append(self._ask(stride, self._exact, wanted.offset, wanted))
            stride.ahead += 1
        return found

    # --- what was asked for ----------------------------------------------------------------------------

    def _ask(self, run: _Run, asked: dict[int, _Asked], key: int, wanted: Range) -> Range:
        asked[key] = _Asked(run, wanted)
        run.held.append(key)
        self.issued += 1
        return wanted

    def _blocks_in(self, read: Range) -> list[_Asked]:
        """Blocks ahead that contain something of *read*."""
        first, last = read.offset // self._block, (read.end - 1) // self._block
        found = [self._blocks.get(index) for index in range(first, min(last, first + 2 * _MOST_BLOCKS) + 1)]
        return [asked for asked in found if asked is not None and asked.ahead]

    def _strides_in(self, read: Range) -> list[_Asked]:
        """Ranges of a stride, ahead, that contain something of *read*."""
        return [
            asked
            for asked in self._exact.values()
            if asked.ahead and asked.range.offset < read.end and read.offset < asked.range.end
        ]

    def _was_read(self, wanted: Range) -> bool:
        """Whether all of it came lately, before it was clear of which stream."""
        return any(read.offset <= wanted.offset and wanted.end <= read.end for read in self._candidates)

    def _mark(self, read: Range) -> None:
        """What of it was asked for is used."""
        for asked in self._blocks_in(read) + self._strides_in(read):
            if not asked.read and asked.range.offset < read.end and read.offset < asked.range.end:
                asked.read = True
                self.used += 1
                self._history.append(False)

    def _leave(self, run: _Run, held: dict[int, _Asked]) -> None:
        """The first range that *run* holds is far behind its reader."""
        key = run.held.popleft()
        asked = held.get(key)
        if asked is None or asked.run is not run:
            return  # another run has asked for it since
        del held[key]
        if asked.read:
            return
        self.wasted += 1
        self._history.append(True)
        if self._wary:
            for doubtful in (*self._streams, self._stride):
                if doubtful is not None:
                    doubtful.proof, doubtful.width, doubtful.goal = _PROOF, 0, doubtful.ahead

    @property
    def _wary(self) -> bool:
        return 2 * sum(self._history) > _HISTORY
