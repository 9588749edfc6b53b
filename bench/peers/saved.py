"""FAISS alone over the very graph or lists that vecdb has saved: the same index, without the engine around it.

Two graphs of the same kind over the same rows differ by up to 0.002 in recall, which near 0.99 is a fifth of
the speed. This one has the same links, the same codes and the same vectors behind them. Codes whose bounds all
dimensions share are compared as signed bytes here too, since FAISS has that by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..sources import Part, Source
from . import REFINED, raw_sq8

faiss = raw_sq8.faiss

_LARGEST = 127


class Signed:
    """Lists, or a graph with `codes`, whose bytes FAISS compares as integers, and what is found ranked again by `vectors`.

    Takes parameters as FAISS's IndexRefine does.
    """

    def __init__(self, index: Any, codes: Any, vectors: Any) -> None:
        kind, d = faiss.ScalarQuantizer.QT_8bit_direct_signed, int(index.d)
        self._held = index, vectors
        if codes is None:
            self._index = faiss.IndexIVFScalarQuantizer(
                index.quantizer, d, int(index.nlist), kind, int(index.metric_type), False
            )
            self._index.replace_invlists(index.invlists, False)
            self._index.is_trained = True
            self._index.ntotal = index.ntotal
        else:
            self._codes = faiss.IndexScalarQuantizer(d, kind, int(index.metric_type))
            held = faiss.vector_to_array(codes.codes).reshape(-1, d)
            self._codes.add_sa_codes(held)
            self._index = index
            self._index.storage = self._codes
        self._vectors = vectors
        self.ntotal = index.ntotal

    def search(self, queries: Any, k: int, params: Any) -> tuple[Any, Any]:
        """Scores and positions (q, k), best first."""
        step = np.maximum(np.abs(queries).max(axis=1, keepdims=True), 1e-30) / _LARGEST
        rounded = np.rint(queries / step).astype(np.float32)
        width = int(k * params.k_factor)
        positions = self._index.search(rounded, width, params=params.base_index_params)[1]
        scores = np.empty(positions.shape, np.float32)
        self._vectors.compute_distance_subset(
            len(queries), faiss.swig_ptr(queries), width, faiss.swig_ptr(scores),
            faiss.swig_ptr(positions),
        )  # fmt: skip
        scores[positions < 0] = -np.inf
        order = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)

    def reset(self) -> None:
        """Freed with the process."""


def is_shared(codes: Any) -> bool:
    """Whether 8-bit codes have the same bounds in all dimensions, whose middle is nought."""
    if int(codes.sq.qtype) != faiss.ScalarQuantizer.QT_8bit:
        return False
    low, reach = faiss.vector_to_array(codes.sq.trained).reshape(2, -1)
    same = (low == low[0]).all() and (reach == reach[0]).all()
    return bool(same and np.isclose(low[0] / reach[0], -128.5 / 255))


class System(raw_sq8.System):
    """The knob is efSearch or nprobe. `folder` is that of a closed vecdb database with one collection, read only.

    The index and its codes are read to memory, and the vectors lie there in the order of its positions.
    """

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        found = sorted(folder.rglob("index-*.faiss"))
        if create or len(found) != 1:
            raise LookupError(f"expected one saved graph below {folder}, found {len(found)}")
        self._of = found[0]
        super().__init__(source, folder, create=True)

    def _new(self) -> Any:
        self._graph = faiss.read_index(str(self._of))
        self._rows = np.fromfile(self._of.with_suffix(".rows"), "<i8")
        vectors = faiss.IndexFlatIP(self._source.dimension)
        vectors.add(self._source.vectors(0, self._source.rows)[self._rows])
        self._lists = isinstance(self._graph, faiss.IndexIVF)
        if self._lists:
            self._vectors = vectors
            if isinstance(self._graph, faiss.IndexIVFScalarQuantizer) and is_shared(self._graph):
                return Signed(self._graph, None, vectors)
            return faiss.IndexRefine(self._graph, vectors)
        codes = self._of.with_suffix(".codes")
        self._held = faiss.read_index(str(codes)) if codes.exists() else vectors
        self._graph.storage = self._held
        if not codes.exists():
            return self._graph
        self._vectors = vectors
        if is_shared(self._held):
            return Signed(self._graph, self._held, vectors)
        return faiss.IndexRefine(self._graph, vectors)

    def _parameters_at(self, setting: float) -> Any:
        if self._lists:
            return faiss.IndexRefineSearchParameters(
                k_factor=float(REFINED),
                base_index_params=faiss.SearchParametersIVF(nprobe=int(setting)),
            )
        if not isinstance(self._index, faiss.IndexRefine | Signed):
            return faiss.SearchParametersHNSW(efSearch=int(setting))
        return super()._parameters_at(setting)

    def insert(self, start: int, part: Part) -> None:
        raise LookupError("a graph that vecdb has saved is only looked at")

    def rows(self, ids: Any) -> list[int]:
        found: list[int] = self._rows[np.asarray(ids)].tolist()
        return found

    def close(self) -> None:
        """Freed with the process."""
