"""The window of prefetching, on a link that is simulated: a pipe of some length, and one queue before it."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.client.window import Window

KIB, MIB = 1 << 10, 1 << 20
FLOOR = 128 * KIB
#: Seconds of queue that are accepted on any link: turns of event loops.
JITTER = 0.002


class Link:
    """A client that always wants more, in answers of *size* bytes, over a link of *rate* bytes a second with a round
    trip of *rtt* seconds. ``backlog`` is what a small request that is sent now would wait for: seconds."""

    def __init__(self, rate: float, rtt: float, size: int, *, jitter: float = 0.0) -> None:
        self.now = 0.0
        self.rate = rate
        self.rtt = rtt
        self.size = size
        self.window = Window(lambda: self.now)
        self.answered = 0
        self.worst = 0.0  # backlog
        self.largest = 0  # window
        self._jitter = jitter
        self._random = random.Random(1)
        self._free_at = 0.0  # when the link has nothing left to transmit
        self._coming: list[tuple[float, int]] = []
        self._ask()

    @property
    def backlog(self) -> float:
        return max(0.0, self._free_at - self.now - self.rtt / 2)

    def _ask(self) -> None:
        window = self.window
        while window.room() >= self.size or (window.room() and not window.flying):
            token = window.sent(self.size)
            self._free_at = max(self._free_at, self.now + self.rtt / 2) + self.size / self.rate
            at = self._free_at + self.rtt / 2 + self._random.random() * self._jitter
            heapq.heappush(self._coming, (at, token))

    def run(self, seconds: float) -> float:
        """Which part of the link was used meanwhile."""
        end, before = self.now + seconds, self.answered
        self.worst, self.largest = 0.0, 0
        while self.now < end:
            if not self._coming:  # it asks again with the next read that reaches it
                self.now += 0.001
                self._ask()
                continue
            if self._coming[0][0] > end:
                break
            self.now, token = heapq.heappop(self._coming)
            self.window.answered(token, self.size)
            self.answered += self.size
            self._ask()
            assert self.window.room() >= 0
            self.worst = max(self.worst, self.backlog)
            self.largest = max(self.largest, self.window.limit)
        self.now = end
        return (self.answered - before) / self.rate / seconds

    def start(self) -> None:
        self.run(30 * self.rtt + 6 * self.size / self.rate + 1024 * KIB / self.rate)


# bytes a second, seconds; the products from 4 KiB to 19 MiB
LINKS = [
    pytest.param(100e6, 0.02, id="100MB/s-20ms"),
    pytest.param(1e9, 0.0002, id="1GB/s-0.2ms"),
    pytest.param(1e9, 0.001, id="1GB/s-1ms"),
    pytest.param(10e6 / 8, 0.02, id="10Mbit/s-20ms"),
    pytest.param(100e6 / 8, 0.2, id="100Mbit/s-200ms"),
    pytest.param(10e6 / 8, 0.3, id="10Mbit/s-300ms"),
    pytest.param(100e6, 0.2, id="100MB/s-200ms"),
]
SIZES = [pytest.param(size, id=f"{size // KIB}KiB") for size in (16 * KIB, 128 * KIB, MIB)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("rate", "rtt"), LINKS)
def test_the_link_is_full_and_little_waits_before_it(rate: float, rtt: float, size: int) -> None:
    link = Link(rate, rtt, size)
    link.start()
    # Long enough for the distance to be measured anew if that is cheap to simulate.
    assert link.run(min(25.0, 100 * rtt + 4000 * size / rate)) > 0.8
    # One answer is on the wire, and one more may be: they come whole.
    assert link.worst <= max(FLOOR / rate, rtt, JITTER) * 1.25 + 2 * size / rate


@pytest.mark.parametrize(("rate", "rtt"), LINKS)
def test_the_link_is_full_though_answers_come_early_or_late(rate: float, rtt: float) -> None:
    link = Link(rate, rtt, 128 * KIB, jitter=rtt / 4)
    link.start()
    assert link.run(100 * rtt + 1000 * link.size / rate) > 0.8
    assert link.worst <= 2 * max(FLOOR / rate, rtt, JITTER) + 2 * link.size / rate


def test_it_fills_the_link_within_some_round_trips() -> None:
    link = Link(100e6, 0.02, 128 * KIB)
    link.run(0.1)
    assert link.run(0.1) > 0.9


def test_it_stays_small_on_a_slow_link() -> None:
    link = Link(10e6 / 8, 0.02, 32 * KIB)
    link.start()
    link.run(60)
    assert link.largest <= FLOOR + 32 * KIB


def test_it_does_not_take_its_own_queue_for_distance() -> None:
    link = Link(20e6, 0.02, 128 * KIB)
    link.start()
    largest = []
    for _ in range(12):
        assert link.run(10.0) > 0.95
        largest.append(link.largest)
    assert max(largest) <= 1.3 * min(largest)
    assert link.window.snapshot()["shortest"] == pytest.approx(0.02, rel=0.05)
    assert link.window.snapshot()["rate"] == pytest.approx(20e6, rel=0.05)


@pytest.mark.parametrize("size", [64 * KIB, MIB])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((100e6, 0.02), (10e6, 0.02), id="narrower"),
        pytest.param((10e6, 0.02), (100e6, 0.02), id="wider"),
        pytest.param((50e6, 0.02), (50e6, 0.1), id="longer"),
        pytest.param((50e6, 0.1), (50e6, 0.02), id="shorter"),
        pytest.param((5e6, 0.02), (100e6, 0.1), id="longer-and-wider"),
    ],
)
def test_another_route_is_noticed(before: tuple[float, float], after: tuple[float, float], size: int) -> None:
    link = Link(*before, size)
    link.start()
    link.run(2.0)
    link.rate, link.rtt = after
    link.run(15.0)
    assert link.run(4.0) > 0.8
    assert link.worst <= max(FLOOR / link.rate, link.rtt) * 1.25 + 2 * size / link.rate


def test_what_was_queued_before_the_link_became_narrow_is_all_that_is() -> None:
    link = Link(100e6, 0.1, 64 * KIB)
    link.start()
    link.rate, link.rtt = 1e6, 0.02
    link.run(60.0)
    assert link.run(4.0) > 0.8
    assert link.window.limit <= FLOOR + link.size


def test_little_use_does_not_make_it_large() -> None:
    now = 0.0
    window = Window(lambda: now)
    for _ in range(1000):
        token = window.sent(16 * KIB)
        now += 0.02
        window.answered(token, 16 * KIB)
    assert window.limit == 512 * KIB
    assert window.flying == 0


def test_what_is_held_up_and_comes_at_once_does_not_make_the_link_faster() -> None:
    now = 0.0
    window = Window(lambda: now)
    for _ in range(50):  # an event loop that is blocked for 5 of 6 round trips
        tokens = []
        for _ in range(8):
            tokens.append(window.sent(64 * KIB))
            now += 64 * KIB / 10e6
        now += 0.1
        for token in tokens:
            window.answered(token, 64 * KIB)
    assert window.snapshot()["rate"] < 12e6


def test_an_answer_that_never_comes_does_not_stop_it() -> None:
    link = Link(10e6, 0.02, 64 * KIB)
    link.window.sent(64 * KIB)
    link.start()
    for _ in range(4):
        assert link.run(10.0) > 0.8


def test_what_fails_makes_room_again() -> None:
    window = Window(lambda: 0.0)
    room = window.room()
    token = window.sent(MIB)
    assert window.room() == 0
    assert window.flying == MIB
    window.dropped(token)
    assert window.room() == room
    assert window.flying == 0


def test_a_token_counts_once() -> None:
    now = 0.0
    window = Window(lambda: now)
    token = window.sent(KIB)
    now = 0.1
    window.answered(token, KIB)
    after = window.snapshot()
    window.answered(token, KIB)
    window.dropped(token)
    window.answered(token + 1, KIB)
    assert window.snapshot() == after
    assert window.flying == 0


def test_after_a_loss_it_begins_anew() -> None:
    link = Link(100e6, 0.1, 128 * KIB)
    link.start()
    assert link.window.limit > MIB
    link.window.shrink()
    assert link.window.limit == 512 * KIB
    assert link.window.snapshot()["rate"] == 0
    link.start()
    assert link.run(1.0) > 0.8
    for _ in range(10):
        link.window.shrink()
    assert link.window.limit == FLOOR


@pytest.mark.parametrize("bounds", [(0, 1, 2), (2, 1, 3), (1, 3, 2)])
def test_bounds_that_make_no_sense(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="window"):
        Window(lambda: 0.0, *bounds)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "answered", "dropped", "shrink"]),
            st.integers(0, 4 * MIB),
            st.floats(0.0, 20.0),
        )
    )
)
def test_whatever_happens_it_keeps_its_bounds(events: list[tuple[str, int, float]]) -> None:
    now = 0.0
    window = Window(lambda: now)
    flying: dict[int, int] = {}
    for what, size, seconds in events:
        now += seconds
        if what == "sent":
            flying[window.sent(size)] = size
        elif what == "shrink":
            window.shrink()
        elif flying:
            token = list(flying)[size % len(flying)]
            del flying[token]
            if what == "answered":
                window.answered(token, size)
            else:
                window.dropped(token)
        assert window.flying == sum(flying.values())
        assert FLOOR <= window.limit <= 32 * MIB
        assert 0 <= window.room() <= window.limit
        if not flying:
            assert window.room() == window.limit
