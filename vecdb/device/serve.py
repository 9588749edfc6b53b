"""The worker's loop: takes requests, calls the card, answers. One thread does everything.

It ends when the engine closes its end of the socket or is gone. A `CardFull` or `CardRefused` is an answer;
any other exception ends the loop and with it the process, because a card that has failed in another way
cannot be trusted any more.
"""

from __future__ import annotations

import mmap
import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import messages as m
from .card import Card, CardFull, CardRefused, Floats

_MAX_TEXT_CHARS = 2_000


def serve(card: Card, connection: socket.socket, memory: mmap.mmap) -> None:
    """Answer requests from `connection` until it ends. `memory` is what worker and engine share."""
    info = card.info()
    connection.send(
        m.encode(
            m.Ready(
                info.name, info.total_bytes, info.free_bytes,
                info.limits.k, info.limits.nprobe, info.limits.scan_k, info.graphs, info.masks,
            )
        )
    )  # fmt: skip
    desk = Desk(card, memory)
    while data := connection.recv(m.MAX_MESSAGE_BYTES):
        connection.send(m.encode(desk.answer(m.decode_request(data))))


class Desk:
    """What a worker remembers between requests: bytes on their way in or out, in pieces."""

    def __init__(self, card: Card, memory: mmap.mmap) -> None:
        self._card = card
        self._memory = memory
        self._uploads: dict[int, NDArray[np.uint8]] = {}
        self._downloads: dict[int, NDArray[np.uint8]] = {}

    def answer(self, request: m.Request) -> m.Answer:
        try:
            if isinstance(request, m.Search):
                return self._search(request)
            return self._other(request)
        except CardFull as error:
            return m.Failed(True, str(error)[:_MAX_TEXT_CHARS])
        except CardRefused as error:
            return m.Failed(False, str(error)[:_MAX_TEXT_CHARS])
        except MemoryError:
            return m.Failed(True, f"the worker has no memory for {type(request).__name__}")

    def _array(self, shape: tuple[int, ...], offset: int, kind: Any = np.float32) -> NDArray[Any]:
        return m.array(self._memory, shape, kind, offset)

    def _search(self, r: m.Search) -> m.Answer:
        queries = self._array((r.queries, r.dimension), 0)
        scores, positions = self._card.search(r.handle, queries, r.k, r.setting, r.mask)
        at = m.search_layout(r.queries, r.dimension, r.k)
        self._array((r.queries, r.k), at[0])[:] = scores
        self._array((r.queries, r.k), at[1], np.int64)[:] = positions
        return _DONE

    def _compare(self, r: m.Compare) -> m.Answer:
        at = m.compare_layout(r.queries, r.vectors, r.dimension, r.k)
        queries = self._array((r.queries, r.dimension), 0)
        vectors = self._array((r.vectors, r.dimension), at[0])
        scores, positions = self._card.compare(queries, vectors, r.k, r.metric)
        self._array((r.queries, r.k), at[1])[:] = scores
        self._array((r.queries, r.k), at[2], np.int64)[:] = positions
        return _DONE

    def _other(self, r: m.Request) -> m.Answer:
        card = self._card
        match r:
            case m.Add():
                card.add(r.handle, self._array((r.rows, r.dimension), 0))
            case m.Compare():
                return self._compare(r)
            case m.Flat():
                card.flat(r.handle, r.dimension, r.metric, r.code, r.rows)
            case m.Mask():
                card.mask(r.handle, r.number, self._array((r.size,), 0, np.uint8))
            case m.Unmask():
                card.unmask(r.handle, r.number)
            case m.Upload():
                if r.offset == 0:
                    self._uploads[r.number] = np.empty(r.total, np.uint8)
                part = self._array((r.size,), 0, np.uint8)
                self._uploads[r.number][r.offset : r.offset + r.size] = part
            case m.Lists():
                data = self._uploads.pop(r.handle)
                card.lists(r.handle, data.data, r.code)
            case m.Graph():
                card.graph(r.handle, r.source, r.degree)
            case m.Kmeans():
                return self._kmeans(r)
            case m.Links():
                links = np.ascontiguousarray(card.links(r.handle), np.int32)
                made = self._downloads[r.number] = links.reshape(-1).view(np.uint8)
                return m.Done(made.size)
            case m.Download():
                part = self._downloads[r.number][r.offset : r.offset + r.size]
                self._array(part.shape, 0, np.uint8)[:] = part
            case m.Forget():
                self._uploads.pop(r.number, None)
                self._downloads.pop(r.number, None)
            case m.Drop():
                card.drop(r.handle)
            case m.Used():
                return m.Done(card.used_bytes(r.handle))
        return _DONE

    def _kmeans(self, r: m.Kmeans) -> m.Answer:
        sample: Floats = self._uploads[r.number].view(np.float32).reshape(-1, r.dimension)
        before = self._downloads.get(r.number)
        start = None if before is None else before.view(np.float32).reshape(r.lists, r.dimension)
        made = self._card.kmeans(sample, r.lists, 1, r.spherical, r.seed, start)
        self._downloads[r.number] = (
            np.ascontiguousarray(made, np.float32).reshape(-1).view(np.uint8)
        )
        return m.Done(self._downloads[r.number].size)


_DONE = m.Done()
