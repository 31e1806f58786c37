"""Recognises how a file is read, and says what will be read next.

The kernel reads ahead by itself, in pieces of 128 KiB to 1 MiB of which several are under way and may come out of
order. So "in sequence" means: near where the last read of the same stream ended. Up to four streams are followed in a
file.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Blocks that are read ahead at first and at most.
_FIRST: Final = 2
_MOST: Final = 64
#: Streams that are followed in one file.
_STREAMS: Final = 4
#: Bytes by which a read may miss the place where its stream is expected, as the kernel's pieces come out of order.
_SLACK: Final = 2 << 20
#: Bytes of a first read at the start of a file that say that more will follow.
_EAGER: Final = 64 << 10
#: Reads with one stride after which it is believed, and ranges that are predicted of it at most.
_STRIDES: Final = 3
_PREDICTED: Final = 32


class Range(NamedTuple):
    """Bytes of a file."""

    offset: int
    size: int


class _Stream:
    """``end``: where its next read is expected. ``ahead``: up to where it was asked for, ``blocks`` at a time."""

    __slots__ = ("end", "ahead", "blocks", "count")

    def __init__(self, end: int) -> None:
        self.end = end
        self.ahead = 0
        self.blocks = _FIRST
        self.count = 1


class ReadAhead:
    """For one open file. *block* is in bytes."""

    def __init__(self, block: int = 1 << 20) -> None:
        self._block = block
        self._streams: list[_Stream] = []  # the one that was read last at the end
        self._last = -1
        self._size = 0
        self._stride = 0
        self._strides = 0
        self._predicted = 0  # where the prediction of strides ends
        self._width = 2

    def forget(self) -> None:
        """The file is another now."""
        self._streams.clear()
        self._strides = 0
        self._last = -1

    def saw(self, offset: int, size: int, file_size: int, room: int) -> list[Range]:
        """*size* bytes at *offset* are read, of a file of *file_size*. What is worth having, the nearest first, at most
        *room* bytes: whole blocks, which may contain what is read now, or ranges exactly as they will be read."""
        if size <= 0 or offset >= file_size:
            return []
        strided = self._saw_stride(offset, size)
        stream = self._stream_of(offset, size)
        if stream is not None:
            stream.count += 1
            stream.end = max(stream.end, offset + size)
            return self._in_sequence(stream, offset, file_size, room)
        if strided:
            return self._strided(offset, size, file_size, room)
        stream = _Stream(offset + size)
        self._streams.append(stream)
        del self._streams[:-_STREAMS]
        if offset == 0 and size >= _EAGER:
            return self._in_sequence(stream, offset, file_size, room)
        return []

    # --- in sequence -----------------------------------------------------------------------------------

    def _stream_of(self, offset: int, size: int) -> _Stream | None:
        for stream in reversed(self._streams):
            # Behind: again what was just read, or pieces out of order. Small reads have to fit exactly.
            behind = min(_SLACK, stream.end) if stream.count > 1 and size >= _EAGER else 0
            ahead = _SLACK if stream.count > 2 and size >= _EAGER else 0
            if stream.end - behind <= offset <= stream.end + ahead:
                self._streams.remove(stream)
                self._streams.append(stream)
                return stream
        return None

    def _in_sequence(self, stream: _Stream, offset: int, file_size: int, room: int) -> list[Range]:
        block = self._block
        start = max(stream.ahead, offset - offset % block)
        # Not for every read: only when half of what was asked for is used up.
        left = stream.ahead - stream.end
        if left > stream.blocks * block // 2:
            return []
        stop = min(file_size, stream.end + stream.blocks * block)
        found: list[Range] = []
        while start < stop:
            size = min(block, file_size - start)
            if found and room < size:
                break
            found.append(Range(start, size))
            room -= size
            start += size
        if found:
            stream.ahead = start
            stream.blocks = min(2 * stream.blocks, _MOST)
        return found

    # --- with a stride ---------------------------------------------------------------------------------

    def _saw_stride(self, offset: int, size: int) -> bool:
        stride = offset - self._last
        same = self._last >= 0 and size == self._size and stride == self._stride and abs(stride) > size
        self._strides = self._strides + 1 if same else 1
        if not same:
            self._predicted = 0
            self._width = 2
        self._last, self._size, self._stride = offset, size, stride
        return self._strides >= _STRIDES

    def _strided(self, offset: int, size: int, file_size: int, room: int) -> list[Range]:
        stride = self._stride
        found: list[Range] = []
        at = offset + stride
        for _ in range(self._width):
            if not at >= 0 or at + size > file_size or room < size:
                break
            if not self._predicted or ((at > self._predicted) == (stride > 0) and at != self._predicted):
                found.append(Range(at, size))
                self._predicted = at
                room -= size
            at += stride
        self._width = min(2 * self._width, _PREDICTED)
        return found
