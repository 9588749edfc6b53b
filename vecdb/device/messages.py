"""Every message between the engine and a worker, and where arrays lie in the memory they share.

The engine sends a request, the worker one answer, in turn: one request at a time. A message is one
datagram of a `SOCK_SEQPACKET` socket pair, msgpack of an array whose first entry is the kind, at most
`MAX_MESSAGE_BYTES`. Vectors, queries and answers are not in it but in the shared memory, C-contiguous and
little-endian, each at a multiple of `ALIGN` bytes. A worker and its engine are of one version: nothing here
is stored, and nothing needs to be read by another version.
"""

from __future__ import annotations

import mmap
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_MESSAGE_BYTES = 16_384
ALIGN = 64


class _Message(msgspec.Struct, array_like=True, tag=True):
    """Made, sent, read: nobody changes one."""


class Ping(_Message):
    """Are you there? Answer: Done."""


class Flat(_Message):
    """`Card.flat`. Answer: Done, or Failed."""

    handle: int
    dimension: int
    metric: str
    code: str
    rows: int


class Add(_Message):
    """`Card.add` of vectors (rows, dimension) float32 at 0. Answer: Done, or Failed."""

    handle: int
    rows: int
    dimension: int


class Mask(_Message):
    """`Card.mask` with `size` bytes at 0. Answer: Done, or Failed."""

    handle: int
    number: int
    size: int


class Unmask(_Message):
    """`Card.unmask`. Answer: Done."""

    handle: int
    number: int


class Upload(_Message):
    """`size` bytes at 0 are bytes `offset`.. of the `total` bytes that are called `number`. Answer: Done."""

    number: int
    total: int
    offset: int
    size: int


class Forget(_Message):
    """What was uploaded, or waits to be downloaded, as `number` is not needed any more. Answer: Done."""

    number: int


class Lists(_Message):
    """`Card.lists` of what was uploaded under the number of the handle. Answer: Done, or Failed."""

    handle: int
    code: str


class Graph(_Message):
    """`Card.graph`. Answer: Done, or Failed."""

    handle: int
    source: int
    degree: int


class Search(_Message):
    """`Card.search`. Queries at 0, then room for scores and positions: `answer_layout`. Answer: Done, or
    Failed."""

    handle: int
    queries: int
    dimension: int
    k: int
    setting: int
    mask: int


class Compare(_Message):
    """`Card.compare`. Queries at 0, vectors behind them, then scores and positions: `compare_layout`.
    Answer: Done, or Failed."""

    queries: int
    vectors: int
    dimension: int
    k: int
    metric: str


class Kmeans(_Message):
    """One round of k-means over what was uploaded as `number`, float32 (-1, dimension), going on from the
    centroids of the round before, which stand ready as a download under the same number. Answer: Done with
    the bytes of the centroids, or Failed."""

    number: int
    dimension: int
    lists: int
    spherical: bool
    seed: int


class Links(_Message):
    """`Card.links`, to be downloaded as `number`. Answer: Done with the number of bytes, or Failed."""

    handle: int
    number: int


class Download(_Message):
    """Put bytes `offset`.. of what waits as `number` at 0. Answer: Done."""

    number: int
    offset: int
    size: int


class Drop(_Message):
    """`Card.drop`. Answer: Done."""

    handle: int


class Used(_Message):
    """`Card.used_bytes`. Answer: Done with the bytes."""

    handle: int


class Ready(_Message):
    """The first message of a worker: its card is there. The fields of `CardInfo`."""

    name: str
    total_bytes: int
    free_bytes: int
    k: int
    nprobe: int
    scan_k: int
    graphs: bool
    masks: bool


class Done(_Message):
    value: int = 0


class Failed(_Message):
    """The call failed and nothing else did: `full` CardFull, else CardRefused."""

    full: bool
    message: str


Request = (
    Ping | Flat | Add | Mask | Unmask | Upload | Forget | Lists | Graph | Search | Compare | Kmeans | Links | Download | Drop
    | Used
)  # fmt: skip
Answer = Ready | Done | Failed

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def aligned(offset: int) -> int:
    """`offset` or the next place where an array may lie."""
    return -(-offset // ALIGN) * ALIGN


def answer_layout(begin: int, queries: int, k: int) -> tuple[int, int, int]:
    """Offsets of scores and positions (queries, k) behind `begin`, and the end."""
    scores = aligned(begin)
    positions = aligned(scores + 4 * queries * k)
    return scores, positions, positions + 8 * queries * k


def search_layout(queries: int, dimension: int, k: int) -> tuple[int, int, int]:
    """`answer_layout` behind queries (queries, dimension) float32."""
    return answer_layout(4 * queries * dimension, queries, k)


def compare_layout(queries: int, vectors: int, dimension: int, k: int) -> tuple[int, int, int, int]:
    """Offset of the vectors, then `answer_layout` behind them."""
    at = aligned(4 * queries * dimension)
    return (at, *answer_layout(at + 4 * vectors * dimension, queries, k))


def array(memory: mmap.mmap, shape: tuple[int, ...], kind: Any, offset: int) -> NDArray[Any]:
    """The array at `offset`, without a copy. It must be gone before the memory can be closed."""
    return np.ndarray(shape, kind, buffer=memory, offset=offset)
