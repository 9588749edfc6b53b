"""The kernels of vecdb/index/kernels on paper: what each promises, in numpy over memory of the host.

They check what the host passes them, and answer as the real ones do but for the order in which rows are given.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_U64, _U32, _INT = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_SCAN = (_U64, _U64, _INT, _U64, _U64, _U64, _U64)
_AFTER_ROWS = (_U64, _U64, _U64, _U64, _U64, _U64, _U32)
_ROWS = (_U64, _U64, _U64, _U32, _INT, _U64, _INT, *_AFTER_ROWS)
_MAP = ctypes.c_uint64 * 16
_BY_MAPS = (_MAP, _MAP, _U64, _U64, _U32, _INT, _INT, *_AFTER_ROWS)
_TYPES: dict[str, tuple[Any, ...]] = {
    "scan": _SCAN,
    "narrow": (_U64, _U64, _U32, _INT, _U64, _U64),
    "choose": (_U64, _U64, _U32, _INT, _INT, _U32, _U64, _U64, _U64, _U64),
    "sample": _ROWS,
    "nearest": _ROWS,
    "begin": (_U64, _U32, _U32, _U32, _U64, _U64, _U64),
    "halve": (_U64, _U32, _INT, _U64, _U64),
    "keep": (_U64, _U32, _U32, _INT, _U64, _U64, _U64, _U64),
}
_NOT_ALLOWED = np.uint32(0xFFFFFFFF)
_PREFIX, _LEFT, _ALLOWED = range(3)


def launched(name: str, blocks: tuple[int, int], threads: int, shared: int, places: Any) -> None:
    """A kernel with the arguments that `places` points to. 384 threads are those of hopper.cu."""
    kind = name.partition("_")[0]
    by_maps = threads == 384
    types = _BY_MAPS if by_maps else _TYPES[kind]
    held = [t.from_address(at) for t, at in zip(types, places, strict=True) if at]
    values = [one if isinstance(one, _MAP) else one.value for one in held]
    assert threads in (256, 384)
    assert blocks[0] >= 1
    if by_maps:
        values = _without_maps(*values)
        assert shared == 4 * (128 + 256) * 128 + 1024
    globals()[f"_{kind}"](
        name, blocks[1] if kind in ("narrow", "choose") else blocks[0], shared, *values
    )


def _without_maps(x: Any, y: Any, first: int, stride: int, count: int, d: int, query_tiles: int, *after: int) -> list[int]:  # fmt: skip
    """The parameters of the kernels of products.cu, by what the maps say."""
    queries, padded, columns, apart, box = x[:5]
    assert (padded, columns, apart, box) == (128 * query_tiles, d, 2 * d, 64 << 32 | 128)
    rows, there, columns, apart, box = y[:5]
    assert (there, columns, apart, box) == (count, d, 2 * d * stride, 64 << 32 | 256)
    return [rows - 2 * d * first, first, stride, count, d, queries, query_tiles, *after]


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


def _choose(_: str, q: int, shared: int, keys: int, n: int, k: int, start: int, stop: int, room: int, states: int, bins: int, out: int, counts: int) -> None:  # fmt: skip
    for step in range(start, stop + 1):
        _narrow("", q, shared, keys, n, k, step, states, bins)
    given, held = _at(out, (q, room), np.uint64), _at(counts, (q,), np.uint32)
    for i, (own, state) in enumerate(
        zip(_at(keys, (q, n), np.uint32), _at(states, (q, 8), np.uint32), strict=True)
    ):
        border, held[i] = state[_PREFIX], 0
        if not state[_ALLOWED]:
            continue
        if stop == 1:
            rows = np.flatnonzero((own >> np.uint32(10) <= border) & (own != _NOT_ALLOWED))
        else:
            equal = np.flatnonzero(own == border)[: int(state[_LEFT])]
            rows = np.concatenate([np.flatnonzero(own < border), equal])
        packed = own[rows].astype(np.uint64) << np.uint64(32) | rows.astype(np.uint64)
        given[i, : min(room, rows.size)] = packed[::-1][:room]
        held[i] = rows.size


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


def _keep(_: str, asked: int, shared: int, out: int, room: int, k: int, forget: int, thresholds: int, given: int, overflow: int, best: int) -> None:  # fmt: skip
    assert shared == 8 * room
    counts = _at(given, (asked,), np.uint32)
    rows, kept = _at(out, (asked, room), np.uint64), _at(best, (asked, k), np.uint64)
    for q in range(asked):
        if counts[q] > room:
            _at(overflow, (1,), np.uint32)[:] = 1
        some = np.sort(rows[q, : min(room, int(counts[q]))])[:k]
        kept[q] = 2**64 - 1
        kept[q, : some.size] = rows[q, : some.size] = some
        counts[q] = 0 if forget else some.size
        if some.size == k:
            _at(thresholds, (asked,), np.float32)[q] = _score(np.uint32(some[-1] >> np.uint64(32)))
