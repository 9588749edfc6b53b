"""Random vectors and columns of records for tests of what travels between client and server."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecdb_client import wire

QUICK = settings(max_examples=60, deadline=None, print_blob=True)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shapes = st.tuples(st.integers(0, 7), st.integers(1, 9))
matrices = st.one_of(
    hnp.arrays(np.float32, shapes, elements=st.floats(width=32)),
    hnp.arrays(np.float16, shapes, elements=st.floats(width=16)),
    hnp.arrays(np.int8, shapes),
    hnp.arrays(np.uint8, shapes),
)


def over_the_wire(message: Any) -> Any:
    """The message as the other side parses it."""
    return type(message).FromString(message.SerializeToString())


@st.composite
def named_fields(draw: st.DrawFn, n: int) -> dict[str, wire.Named]:
    """Named vector fields of n records, each with gaps, without, or with nobody in it."""
    found = {}
    for name in draw(st.lists(st.sampled_from(["title", "body", "print"]), unique=True)):
        present = draw(st.none() | hnp.arrays(np.bool_, n))
        rows = n if present is None else int(present.sum())
        dtype = draw(st.sampled_from([np.float32, np.float16, np.int8, np.uint8]))
        found[name] = wire.Named(draw(hnp.arrays(dtype, (rows, 4), elements=st.just(3))), present)
    return found


@st.composite
def columns(draw: st.DrawFn) -> wire.Columns:
    """One to twelve records, any of whose columns may be missing or have gaps."""
    n = draw(st.integers(1, 12))

    def column(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | st.lists(values, min_size=n, max_size=n))

    vectors = draw(
        st.none() | hnp.arrays(np.float32, (n, 3), elements=st.floats(width=32, allow_nan=False))
    )
    return wire.Columns(
        ids=draw(st.lists(texts, min_size=n, max_size=n)),
        vectors=vectors,
        metadata=column(st.binary(max_size=9)),
        documents=column(st.none() | texts),
        contents=column(st.none() | st.tuples(st.binary(max_size=9), texts)),
        uris=column(st.none() | texts),
        named_vectors=draw(named_fields(n)) or None,
    )
