"""Ranges of POSIX locks against a model that has one entry a byte."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.protocol.ranges import LAST, Span, assign

SIZE = 12
steps = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.sampled_from("rwu")).map(
        lambda step: (min(step[:2]), max(step[:2]), step[2])
    )
)


@given(steps)
def test_every_byte_has_the_type_set_last(steps: list[tuple[int, int, str]]) -> None:
    spans: list[Span] = []
    model = ["u"] * SIZE
    for start, end, kind in steps:
        spans = assign(spans, start, end, kind, 1)
        model[start : end + 1] = kind * (end - start + 1)
        assert spans == sorted(spans)
        for one, two in itertools.pairwise(spans):
            assert one.end < two.start - (one.type == two.type), "neighbours of one type are merged"
        shown = ["u"] * SIZE
        for span in spans:
            shown[span.start : span.end + 1] = span.type * (span.end - span.start + 1)
        assert shown == model


def test_to_the_end_of_the_file() -> None:
    assert assign([], 10, LAST, "w", 1) == [Span(10, LAST, "w", 1)]
    assert assign([Span(10, LAST, "w", 1)], 20, LAST, "u", 1) == [Span(10, 19, "w", 1)]
