"""What is asked for ahead of a reader: streams, strides, and nothing for who jumps about."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.client.readahead import Range, ReadAhead

KIB, MIB = 1 << 10, 1 << 20
#: What the kernel reads at once.
PIECE = 128 * KIB
PLENTY = 1 << 40
LARGE = 1000 * MIB


def blocks(*indexes: int) -> list[Range]:
    return [Range(index * MIB, MIB) for index in indexes]


def read(
    ahead: ReadAhead, start: int, stop: int, size: int = PIECE, file_size: int = LARGE, room: int = PLENTY
) -> list[Range]:
    """All that is asked for while someone reads from *start* to *stop* in sequence."""
    return [
        found for offset in range(start, stop, size) for found in ahead.saw(offset, size, file_size, room)
    ]


# --- in sequence ------------------------------------------------------------------------------------------


def test_a_large_read_at_the_start_is_followed_by_more() -> None:
    assert ReadAhead().saw(0, PIECE, LARGE, PLENTY) == blocks(0, 1)
    assert ReadAhead().saw(0, 64 * KIB, LARGE, PLENTY) == blocks(0, 1)


def test_a_small_read_at_the_start_is_followed_by_more_if_the_second_is() -> None:
    ahead = ReadAhead()
    assert ahead.saw(0, 4096, LARGE, PLENTY) == []
    assert ahead.saw(4096, 4096, LARGE, PLENTY) == blocks(0, 1)


def test_the_second_read_in_sequence_is_enough_anywhere() -> None:
    ahead = ReadAhead()
    assert ahead.saw(10 * MIB + 7, PIECE, LARGE, PLENTY) == []
    assert ahead.saw(10 * MIB + 7 + PIECE, PIECE, LARGE, PLENTY) == blocks(10, 11)


def test_the_window_grows_while_the_run_goes_on() -> None:
    ahead = ReadAhead()
    windows = []
    for offset in range(0, 200 * MIB, PIECE):
        found = ahead.saw(offset, PIECE, LARGE, PLENTY)
        if found:
            windows.append(found[-1].end // MIB - (offset + PIECE) // MIB)
    assert windows[:6] == [2, 4, 8, 16, 32, 64]
    assert max(windows) == 64


@pytest.mark.parametrize("size", [4096, 64 * KIB, PIECE, MIB, 100_000])
@pytest.mark.parametrize("file_size", [1, 100, MIB, MIB + 1, 7 * MIB - 1, 100 * MIB])
def test_all_is_asked_for_once(size: int, file_size: int) -> None:
    ahead = ReadAhead()
    found = read(ahead, 0, file_size, size, file_size)
    assert all(before.end == after.offset for before, after in pairwise(found))
    if found:
        assert found[-1].end == file_size
        assert found[0].offset <= max(size, 4096 * 2)
    ahead.close()
    assert (ahead.issued, ahead.used, ahead.wasted) == (len(found), len(found), 0)


def test_what_is_read_already_is_not_worth_having() -> None:
    ahead = ReadAhead()
    assert ahead.saw(0, MIB, LARGE, PLENTY) == blocks(1, 2)
    assert ReadAhead().saw(0, 3 * MIB, 3 * MIB, PLENTY) == []
    assert ReadAhead().saw(0, 4 * MIB, 3 * MIB, PLENTY) == []


def test_nothing_beyond_the_end() -> None:
    ahead = ReadAhead()
    assert ahead.saw(100, PIECE, 100, PLENTY) == []
    assert ahead.saw(0, 0, 100, PLENTY) == []
    assert ahead.saw(0, PIECE, 3 * PIECE, PLENTY) == [Range(0, 3 * PIECE)]


def test_the_last_block_is_as_long_as_the_file() -> None:
    assert read(ReadAhead(), 0, 2 * MIB + 5, PIECE, 2 * MIB + 5) == [*blocks(0, 1), Range(2 * MIB, 5)]


def test_the_file_grows_while_it_is_read() -> None:
    ahead = ReadAhead()
    found = read(ahead, 0, MIB, PIECE, MIB + 10)
    found += read(ahead, MIB, 20 * MIB, PIECE, 20 * MIB)
    assert found[:3] == [Range(0, MIB), Range(MIB, 10), Range(2 * MIB, MIB)]
    assert found[-1].end == 20 * MIB


def test_no_more_than_there_is_room_for() -> None:
    ahead = ReadAhead()
    assert ahead.saw(0, PIECE, LARGE, 0) == []
    assert ahead.saw(PIECE, PIECE, LARGE, MIB) == blocks(0)
    assert ahead.saw(2 * PIECE, PIECE, LARGE, MIB - 1) == []
    assert ahead.saw(3 * PIECE, PIECE, LARGE, 5 * MIB) == blocks(1)  # the window is two blocks


def test_one_block_is_asked_for_if_there_is_any_room_and_nothing_ahead() -> None:
    ahead = ReadAhead()
    assert ahead.saw(0, PIECE, LARGE, PIECE) == blocks(0)
    assert read(ahead, PIECE, MIB - PIECE, room=PIECE) == []
    assert ahead.saw(MIB - PIECE, PIECE, LARGE, PIECE) == blocks(1)


def test_room_that_comes_later_is_used() -> None:
    ahead = ReadAhead()
    read(ahead, 0, 50 * MIB)
    assert read(ahead, 50 * MIB, 200 * MIB, room=0) == []
    found = read(ahead, 200 * MIB, 210 * MIB, room=MIB)
    assert found == blocks(*range(200, 200 + len(found)))
    assert 32 <= len(found) <= 64
    assert len(read(ahead, 210 * MIB, 240 * MIB)) >= 32


def test_blocks_have_the_size_that_was_asked_for() -> None:
    assert ReadAhead(64 * KIB).saw(0, 64 * KIB, LARGE, PLENTY) == [
        Range(64 * KIB, 64 * KIB),
        Range(128 * KIB, 64 * KIB),
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [PIECE, MIB])
@pytest.mark.parametrize("start", [0, 300 * MIB])
@pytest.mark.parametrize("burst", [2, 4, 8])
def test_pieces_out_of_order_are_one_stream(seed: int, size: int, start: int, burst: int) -> None:
    shuffled = random.Random(seed)
    offsets = list(range(start, start + 80 * size, size))
    for at in range(0, len(offsets), burst):
        pieces = offsets[at : at + burst]
        shuffled.shuffle(pieces)
        offsets[at : at + burst] = pieces
    reader = Reader()
    covered = {found.offset for offset in offsets for found in reader.read(offset, size, LARGE, PLENTY)}
    # It may take some bursts to see what it is, and to be ahead of them; after that, nothing is left out.
    known = (start + 5 * burst * size) // MIB + 1
    assert covered >= {block * MIB for block in range(known, (start + 80 * size) // MIB)}
    assert reader.ahead.wasted <= 4


# --- several streams, and seeks ---------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [2, 3, 4])
def test_streams_that_interleave(streams: int) -> None:
    ahead = ReadAhead()
    found: list[Range] = []
    for offset in range(0, 20 * MIB, PIECE):
        for stream in range(streams):
            found += ahead.saw(stream * 200 * MIB + offset, PIECE, LARGE, PLENTY)
    assert len(set(found)) == len(found)
    for stream in range(streams):
        covered = {range_.offset - stream * 200 * MIB for range_ in found}
        assert covered >= {block * MIB for block in range(1, 20)}
    assert ahead.wasted <= 2  # the first read of the third is at the distance of the others


def test_a_stream_among_jumps() -> None:
    ahead = ReadAhead()
    elsewhere = random.Random(1)
    found: list[Range] = []
    for offset in range(0, 20 * MIB, PIECE):
        found += ahead.saw(offset, PIECE, LARGE, PLENTY)
        for _ in range(3):
            found += ahead.saw(elsewhere.randrange(200 * MIB, LARGE), 4096, LARGE, PLENTY)
    assert {range_.offset for range_ in found} >= {block * MIB for block in range(20)}
    assert max(found).offset < 200 * MIB


def test_a_seek_begins_with_little_again() -> None:
    ahead = ReadAhead()
    read(ahead, 0, 50 * MIB)
    assert read(ahead, 500 * MIB, 500 * MIB + 2 * PIECE) == blocks(500, 501)


def test_who_comes_back_goes_on_at_once() -> None:
    ahead = ReadAhead()
    before = read(ahead, 0, 10 * MIB)
    read(ahead, 500 * MIB, 501 * MIB)
    again = read(ahead, 10 * MIB, 20 * MIB)
    assert again
    assert again[0].offset == before[-1].end


def test_once_more_from_the_start() -> None:
    ahead = ReadAhead()
    first = read(ahead, 0, 4 * MIB, file_size=4 * MIB)
    assert read(ahead, 0, 4 * MIB, file_size=4 * MIB) == first
    assert read(ahead, 0, 4 * MIB, 4096, file_size=4 * MIB) == first
    for stream in range(1, 5):  # the first are given up for these
        read(ahead, stream * 100 * MIB + 7, stream * 100 * MIB + 7 + 2 * PIECE)
    assert ahead.used == 3 * len(first)
    assert ahead.wasted == 0


def test_a_stream_that_runs_into_what_another_asked_for() -> None:
    ahead = ReadAhead()
    second = read(ahead, 10 * MIB, 11 * MIB)
    first = read(ahead, 0, 9 * MIB)
    assert second[-1].offset >= 12 * MIB
    assert not {range_ for range_ in second if range_.offset > 11 * MIB} & set(first)
    assert {range_.offset for range_ in first} >= {block * MIB for block in range(9)}


def test_the_oldest_of_five_streams_is_given_up() -> None:
    ahead = ReadAhead()
    for stream in range(4):
        read(ahead, stream * 100 * MIB + 7, stream * 100 * MIB + 7 + 2 * PIECE)
    assert (ahead.issued, ahead.wasted) == (8, 0)
    read(ahead, 700 * MIB, 700 * MIB + 2 * PIECE)
    # Of its two blocks the first was read, by the read that made it known or before: that is not seen.
    assert ahead.wasted == 2
    assert ahead.saw(7 + 2 * PIECE, PIECE, LARGE, PLENTY) == []


# --- strides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [5000, 3 * MIB, 10_000, -5000, -3 * MIB, -4096])
def test_a_stride(distance: int) -> None:
    ahead = ReadAhead()
    size, start = 4096, 400 * MIB + 3
    assert [ahead.saw(start + step * distance, size, LARGE, PLENTY) for step in range(2)] == [[], []]
    found: list[Range] = []
    lead = []
    for step in range(2, 100):
        offset = start + step * distance
        if step > 2:
            assert Range(offset, size) in found
        found += ahead.saw(offset, size, LARGE, PLENTY)
        lead.append((found[-1].offset - offset) // distance)
    assert found == [Range(start + step * distance, size) for step in range(3, 3 + len(found))]
    assert lead[0] == 2
    assert max(lead) == 32
    assert ahead.used == 97
    assert ahead.wasted == 0
    ahead.close()
    assert ahead.wasted == len(found) - 97


def test_large_reads_with_a_stride_from_the_start() -> None:
    ahead = ReadAhead()
    found = [found for step in range(20) for found in ahead.saw(step * 5 * MIB, PIECE, LARGE, PLENTY)]
    assert found[:2] == blocks(0, 1)
    assert found[2:4] == [Range(15 * MIB, PIECE), Range(20 * MIB, PIECE)]
    assert all(range_.size == PIECE for range_ in found[2:])


@pytest.mark.parametrize("distance", [MIB, -MIB])
def test_a_stride_ends_with_the_file(distance: int) -> None:
    ahead = ReadAhead()
    found = [
        found
        for step in range(5)
        for found in ahead.saw(10 * MIB + step * distance, 4096, 15 * MIB if distance > 0 else LARGE, PLENTY)
    ]
    if distance > 0:
        assert found == [Range(13 * MIB, 4096), Range(14 * MIB, 4096)]
    else:
        assert min(found).offset >= 0


def test_a_stride_goes_on_after_a_read_elsewhere() -> None:
    ahead = ReadAhead()
    for step in range(4):
        ahead.saw(step * MIB + 7, 4096, LARGE, PLENTY)
    ahead.saw(900 * MIB, 100, LARGE, PLENTY)
    issued = ahead.issued
    found = ahead.saw(4 * MIB + 7, 4096, LARGE, PLENTY) + ahead.saw(5 * MIB + 7, 4096, LARGE, PLENTY)
    assert found
    assert found[0].offset == (3 + issued) * MIB + 7
    assert ahead.used == 3


def test_a_stride_ends_when_others_are_read() -> None:
    ahead = ReadAhead()
    for step in range(3):
        ahead.saw(step * MIB + 7, 4096, LARGE, PLENTY)
    assert ahead.issued == 2
    for offset in (900, 700, 800, 600):
        ahead.saw(offset * MIB, 100, LARGE, PLENTY)
    assert ahead.wasted == 2
    assert ahead.saw(3 * MIB + 7, 4096, LARGE, PLENTY) == []


def test_steps_out_of_order() -> None:
    ahead = ReadAhead()
    order = [0, 1, 2, 4, 3, 6, 5, 8, 9, 7, 10, 11]
    found = [found for step in order for found in ahead.saw(step * MIB + 7, 4096, LARGE, PLENTY)]
    assert len(set(found)) == len(found)
    assert ahead.wasted == 0
    assert {range_.offset // MIB for range_ in found} >= set(range(4, 13))


def test_steps_that_are_left_out_are_in_vain() -> None:
    ahead = ReadAhead()
    for step in (0, 1, 2, 5, 8, 11, 14, 17, 20, 23):
        ahead.saw(step * MIB + 7, 4096, LARGE, PLENTY)
    assert ahead.wasted > 0


def test_a_new_stride_ends_the_old() -> None:
    ahead = ReadAhead()
    for step in range(3):
        ahead.saw(step * MIB + 7, 4096, LARGE, PLENTY)
    found = [found for step in range(3) for found in ahead.saw(500 * MIB + step * 7000, 100, LARGE, PLENTY)]
    assert found == [Range(500 * MIB + 21000, 100), Range(500 * MIB + 28000, 100)]
    assert ahead.wasted == 2


def test_a_stride_has_no_more_than_there_is_room_for() -> None:
    ahead = ReadAhead()
    for step in range(2):
        ahead.saw(step * MIB + 7, 4096, LARGE, PLENTY)
    assert ahead.saw(2 * MIB + 7, 4096, LARGE, 0) == []
    assert len(ahead.saw(3 * MIB + 7, 4096, LARGE, 4096)) == 1


def test_what_is_on_its_way_is_not_asked_for_in_another_form() -> None:
    ahead = ReadAhead()
    assert ahead.saw(0, PIECE, LARGE, PLENTY) == blocks(0, 1)
    for step in range(5):
        assert ahead.saw(1500 * KIB + step * 5000, 100, LARGE, PLENTY) == []
    found = [found for step in range(3) for found in ahead.saw(3 * MIB + step * 100_000, 100, LARGE, PLENTY)]
    assert found == [Range(3 * MIB + 300_000, 100), Range(3 * MIB + 400_000, 100)]
    assert ahead.saw(PIECE, 7 * PIECE, LARGE, PLENTY) == blocks(2, 4)


# --- what was in vain -------------------------------------------------------------------------------------


def _waste(ahead: ReadAhead, streams: int) -> None:
    for stream in range(streams):
        offset = (stream % 40) * 20 * MIB + 50 * MIB + 2 * MIB - 2 * PIECE
        read(ahead, offset, offset + 2 * PIECE)


def test_who_never_reads_on_has_to_prove_himself() -> None:
    ahead = ReadAhead()
    _waste(ahead, 40)
    assert ahead.used == 0
    assert ahead.issued <= 24
    assert ahead.wasted > 8
    # Two reads are not enough any more, nor is the start of the file; four are: a first, and three that continue it.
    ahead.saw(0, PIECE, LARGE, PLENTY)
    issued = ahead.issued
    assert read(ahead, 0, 3 * PIECE) == []
    assert ahead.issued == issued
    assert read(ahead, 3 * PIECE, 4 * PIECE) == blocks(0, 1)


def test_who_has_proved_himself_is_believed_again() -> None:
    ahead = ReadAhead()
    _waste(ahead, 40)
    read(ahead, 0, 40 * MIB)
    assert read(ahead, 990 * MIB, 990 * MIB + 2 * PIECE) != []


def test_a_stride_has_to_prove_itself_too() -> None:
    ahead = ReadAhead()
    _waste(ahead, 40)
    found = [bool(ahead.saw(step * 3 * MIB + 7, 4096, LARGE, PLENTY)) for step in range(6)]
    assert found == [False, False, False, False, False, True]


def test_a_stream_goes_on_after_what_others_wasted() -> None:
    ahead = ReadAhead()
    read(ahead, 900 * MIB, 905 * MIB)
    _waste(ahead, 3)
    ahead._history.extend([True] * 16)
    _waste(ahead, 6)
    found = read(ahead, 905 * MIB, 930 * MIB)
    assert found


def test_forget() -> None:
    ahead = ReadAhead()
    found = read(ahead, 0, 2 * MIB)
    ahead.forget()
    assert ahead.issued == len(found)
    assert ahead.used == 2
    assert ahead.wasted == len(found) - 2
    assert ahead.saw(2 * MIB, PIECE, LARGE, PLENTY) == []
    assert read(ahead, 0, 2 * MIB) == found


# --- properties -------------------------------------------------------------------------------------------

SIZES = st.sampled_from([100, 4096, 16 * KIB, 64 * KIB, PIECE, MIB, 5 * MIB])


class Reader:
    """Keeps to the letter what ranges are outstanding: handed out, and nothing of them read since."""

    def __init__(self) -> None:
        self.ahead = ReadAhead()
        self.outstanding: list[Range] = []
        self.issued = 0

    def read(self, offset: int, size: int, file_size: int, room: int) -> list[Range]:
        wasted = self.ahead.wasted
        found = self.ahead.saw(offset, size, file_size, room)
        end = min(offset + size, file_size)
        if end > offset:
            self.outstanding = [
                range_ for range_ in self.outstanding if not (range_.offset < end and offset < range_.end)
            ]
        for range_ in found:
            assert 0 <= range_.offset < range_.end <= file_size
        for before, after in pairwise(sorted(found)):
            assert before.end <= after.offset
        if self.ahead.wasted == wasted:  # otherwise some are not ahead any more; which, is not told
            for range_ in found:
                for other in self.outstanding:
                    assert range_.end <= other.offset or other.end <= range_.offset
            self.outstanding += found
        else:
            self.outstanding = list(found)
        assert sum(range_.size for range_ in found) <= room or (len(found) == 1 and room > 0)
        self.issued += len(found)
        assert self.ahead.issued == self.issued
        assert self.ahead.used + self.ahead.wasted <= self.issued
        return found

    def close(self) -> None:
        self.ahead.close()
        assert self.ahead.used + self.ahead.wasted == self.issued


@settings(deadline=None)
@given(
    st.integers(1, 64 * MIB),
    st.lists(
        st.tuples(
            st.sampled_from(["on", "jump", "skip", "back"]),
            st.integers(0, 64 * MIB),
            SIZES,
            st.integers(1, 12),
            st.integers(0, 80 * MIB),
        ),
        max_size=30,
    ),
)
def test_whatever_is_read(file_size: int, reads: list[tuple[str, int, int, int, int]]) -> None:
    reader = Reader()
    at = 0
    for how, offset, size, count, room in reads:
        if how == "jump":
            at = offset
        for _ in range(count):
            reader.read(at, size, file_size, room)
            if how == "skip":
                at += 3 * size
            elif how == "back":
                at = max(0, at - size)
            else:
                at += size
    reader.close()


@settings(deadline=None)
@given(st.integers(1, 300 * MIB), SIZES.filter(lambda size: size <= MIB), st.integers(0, 8 * MIB))
def test_in_sequence_everything_is_asked_for_once(file_size: int, size: int, room: int) -> None:
    assume(file_size // size < 20_000)
    reader = Reader()
    found = [
        found for offset in range(0, file_size, size) for found in reader.read(offset, size, file_size, room)
    ]
    assert all(before.offset < after.offset for before, after in pairwise(found))
    if room >= MIB:
        assert all(before.end == after.offset for before, after in pairwise(found))
        if found:
            assert found[-1].end == file_size
    reader.close()
    assert reader.ahead.wasted == 0


@settings(deadline=None)
@given(st.integers(), st.sampled_from([4096, 16 * KIB, PIECE]))
def test_at_random_next_to_nothing_is_asked_for(seed: int, size: int) -> None:
    chance = random.Random(seed)
    reader = Reader()
    for _ in range(300):
        reader.read(chance.randrange(size, 100_000 * MIB, size), size, 100_000 * MIB, PLENTY)
    assert reader.issued <= 4
