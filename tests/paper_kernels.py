"""The kernels of vecdb/index/kernels on paper: what each promises, in numpy over memory of the host.

They check what the host passes them, and answer as the real ones do but for the order in which rows are given.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_U64, _U32, _INT = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_SCAN = (_U64, _U64, _INT, _U64, _U64, _U64, _U64)
_ROWS = (_U64, _U64, _U64, _U32, _INT, _U64, _INT, _U64, _U64, _U64, _U64, _U64, _U64, _U32)
_TYPES: dict[str, tuple[Any, ...]] = {
    "scan": _SCAN,
    "narrow": (_U64, _U64, _U32, _INT, _U64, _U64),
    "give": (_U64, _U64, _INT, _U32, _U64, _U64),
    "sample": _ROWS,
    "nearest": _ROWS,
    "begin": (_U64, _U32, _U32, _U32, _U64, _U64, _U64),
    "halve": (_U64, _U32, _INT, _U64, _U64),
    "keep": (_U64, _U32, _U32, _U64, _U64, _U64, _U64),
}
_NOT_ALLOWED = np.uint32(0xFFFFFFFF)
_PREFIX, _LEFT, _ALLOWED, _TICKET, _GIVEN = range(5)


def launched(name: str, blocks: tuple[int, int], threads: int, shared: int, places: Any) -> None:
    """A kernel with the arguments that `places` points to."""
    kind = name.partition("_")[0]
    values = [t.from_address(at).value for t, at in zip(_TYPES[kind], places, strict=True) if at]
    assert threads == 256
    assert blocks[0] >= 1
    globals()[f"_{kind}"](
        name, blocks[1] if kind in ("narrow", "give") else blocks[0], shared, *values
    )


def _at(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)


def _keys(scores: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(scores, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _score(key: np.uint32) -> np.float32:
    key = np.uint32(key)
    bits = key ^ np.uint32(1 << 31) if key >> 31 else ~key
    return np.array([bits], np.uint32).view(np.float32)[0]


def _allowed(address: int, n: int) -> np.ndarray:
    if not address:
        return np.ones(n, np.bool_)
    words = _at(address, (-(-n // 32),), np.uint32)
    return np.unpackbits(words.view(np.uint8), count=n, bitorder="little").view(np.bool_)


def _scan(name: str, _: int, shared: int, vectors: int, n: int, d: int, queries: int, allowed: int, keys: int, states: int) -> None:  # fmt: skip
    _, code, width, metric, together = name.split("_")
    q = int(together)
    assert shared == 4 * q * d <= 48 << 10
    assert (width == "slim") == (d % 4 != 0)
    y = _at(vectors, (n, d), code).astype(np.float32)
    x = _at(queries, (q, d), np.float32)
    scores = ((x[:, None] - y[None]) ** 2).sum(2) if metric == "l2" else -(x @ y.T)
    _at(keys, (q, n), np.uint32)[:] = np.where(_allowed(allowed, n), _keys(scores), _NOT_ALLOWED)
    _at(states, (q, 8), np.uint32)[:] = 0


def _narrow(_: str, q: int, __: int, keys: int, n: int, k: int, step: int, states: int, bins: int) -> None:  # fmt: skip
    assert not _at(bins, (q, 2048), np.uint32).any()
    shift, mask, before = ((21, 2047, 32), (10, 2047, 21), (0, 1023, 10))[step]
    for own, state in zip(
        _at(keys, (q, n), np.uint32), _at(states, (q, 8), np.uint32), strict=True
    ):
        there = own[own != _NOT_ALLOWED]
        if step == 0:
            state[_ALLOWED], state[_LEFT] = there.size, min(k, there.size)
        else:
            there = there[there >> np.uint32(before) == state[_PREFIX]]
        wanted = int(state[_LEFT])
        if not wanted:
            continue
        counts = np.bincount(there >> np.uint32(shift) & np.uint32(mask), minlength=mask + 1)
        found = int(np.searchsorted(np.cumsum(counts), wanted))
        state[_LEFT] = wanted - counts[:found].sum()
        state[_PREFIX] = (0 if step == 0 else int(state[_PREFIX]) * (mask + 1)) + found


def _give(_: str, q: int, __: int, keys: int, n: int, step: int, room: int, states: int, out: int) -> None:  # fmt: skip
    given = _at(out, (q, room), np.uint64)
    for i, (own, state) in enumerate(
        zip(_at(keys, (q, n), np.uint32), _at(states, (q, 8), np.uint32), strict=True)
    ):
        if not state[_ALLOWED]:
            continue
        border = state[_PREFIX]
        if step == 1:
            rows = np.flatnonzero((own >> np.uint32(10) <= border) & (own != _NOT_ALLOWED))
        else:
            equal = np.flatnonzero(own == border)[: int(state[_LEFT])]
            rows = np.concatenate([np.flatnonzero(own < border), equal])
        packed = own[rows].astype(np.uint64) << np.uint64(32) | rows.astype(np.uint64)
        given[i, : min(room, rows.size)] = packed[::-1][:room]
        state[_GIVEN] += rows.size


def _compared(name: str, vectors: int, first: int, stride: int, count: int, d: int, queries: int, tiles: int, squares: int, allowed: int) -> tuple[Any, Any, Any]:  # fmt: skip
    assert d % 8 == 0
    rows = first + stride * np.arange(count)
    n = int(rows[-1]) + 1
    y = _at(vectors, (n, d), np.float16)[rows].astype(np.float32)
    x = _at(queries, (tiles * 128, d), np.float16).astype(np.float32)
    scores = -(x @ y.T)
    if name.endswith("l2"):
        scores = _at(squares, (n,), np.float32)[rows] + 2 * scores
    return rows, scores, _allowed(allowed, n)[rows]


def _sample(name: str, _: int, shared: int, *given: int) -> None:
    _, scores, allowed = _compared(name, *given[:9])
    _at(given[9], scores.shape, np.uint32)[:] = np.where(allowed, _keys(scores), _NOT_ALLOWED)


def _nearest(name: str, _: int, shared: int, *given: int) -> None:
    rows, scores, allowed = _compared(name, *given[:9])
    thresholds = _at(given[10], (len(scores),), np.float32)
    counts, room = _at(given[11], (len(scores),), np.uint32), given[13]
    out = _at(given[12], (len(scores), room), np.uint64)
    for i, own in enumerate(scores):
        near = np.flatnonzero((own <= thresholds[i]) & allowed)
        packed = _keys(own[near]).astype(np.uint64) << np.uint64(32) | rows[near].astype(np.uint64)
        start = int(counts[i])
        stop = min(room, start + near.size)
        out[i, start:stop] = packed[::-1][: stop - start]
        counts[i] += near.size


def _begin(_: str, __: int, shared: int, states: int, k: int, asked: int, padded: int, thresholds: int, given: int, overflow: int) -> None:  # fmt: skip
    _at(overflow, (1,), np.uint32)[:] = 0
    _at(given, (padded,), np.uint32)[:] = 0
    limits = _at(thresholds, (padded,), np.float32)
    limits[:] = -np.inf
    for q, state in enumerate(_at(states, (asked, 8), np.uint32)):
        border = int(state[_PREFIX]) << 10 | 1023
        limits[q] = np.inf if state[_ALLOWED] < k else _score(np.uint32(border))


def _halve(_: str, padded: int, shared: int, queries: int, asked: int, d: int, halves: int, squares: int) -> None:  # fmt: skip
    out = _at(halves, (padded, d), np.float16)
    out[:] = 0
    out[:asked] = _at(queries, (asked, d), np.float32)
    _at(squares, (padded,), np.float32)[:] = (out.astype(np.float32) ** 2).sum(1)


def _keep(_: str, asked: int, shared: int, out: int, room: int, k: int, thresholds: int, given: int, overflow: int, best: int) -> None:  # fmt: skip
    assert shared == 8 * room
    counts = _at(given, (asked,), np.uint32)
    rows, kept = _at(out, (asked, room), np.uint64), _at(best, (asked, k), np.uint64)
    for q in range(asked):
        if counts[q] > room:
            _at(overflow, (1,), np.uint32)[:] = 1
        some = np.sort(rows[q, : min(room, int(counts[q]))])[:k]
        kept[q] = 2**64 - 1
        kept[q, : some.size] = rows[q, : some.size] = some
        counts[q] = some.size
        if some.size == k:
            _at(thresholds, (asked,), np.float32)[q] = _score(np.uint32(some[-1] >> np.uint64(32)))
