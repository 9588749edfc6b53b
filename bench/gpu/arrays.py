"""Plain array work beside FAISS: making rows, right answers, gathering, and the limits of the card.

With torch or CuPy all of it happens on the card; with numpy on the CPU. FAISS takes no part, so answers are
checked by something else than what gave them. Arrays are the library's own; `put` and `host` change sides.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from .answers import Floats, Rows

KINDS = ("float32", "tf32", "bfloat16", "float16")
"""Types of matrix products. tf32: float32 numbers, of which the matrix units read 19 bits."""
_CENTRES = 1_000
_NOISE = 0.7
_SLICE = 250_000
_REPEATS = 3


class Arrays(Protocol):
    name: str
    on_card: bool

    def made(self, rows: int, dimension: int, seed: int, stream: int) -> Any:
        """(rows, dimension) float32 of unit length: 1,000 centres by `seed` + noise by `seed` and `stream`."""

    def put(self, host: Floats) -> Any: ...
    def host(self, array: Any) -> Floats: ...
    def pointer(self, array: Any) -> int | None:
        """Address on the card, all work on the array done; None for an array in host memory."""

    def take(self, array: Any, rows: Rows) -> Any: ...
    def best(self, queries: Floats, array: Any, k: int) -> tuple[Floats, Rows]:
        """The k largest float32 inner products (q, k) and their rows, best first."""

    def rerank(self, queries: Floats, array: Any, candidates: Rows, k: int) -> Rows:
        """The k best (q, k) of candidate rows (q, c), -1 for none, by float32 products."""

    def rates(self, size: int) -> dict[str, float]:
        """Bytes/s of a copy of `size` bytes on the device (read + written), of a sum (read), and of an upload."""

    def product(self, kind: str, m: int, n: int, d: int) -> float | None:
        """Operations/s of (m, d) x (d, n); None where the library has no such product."""


def best_s(work: Callable[[], object], sync: Callable[[], object], seconds: float = 0.3) -> float:
    """Seconds of one `work`: the best of three rounds of as many as fit, the device waited for a round."""
    work()
    sync()
    begun_s = time.perf_counter()
    work()
    sync()
    once_s = max(time.perf_counter() - begun_s, 1e-7)
    count = int(np.clip(seconds / _REPEATS / once_s, 1, 1_000))
    taken_s = []
    for _ in range(_REPEATS):
        begun_s = time.perf_counter()
        for _ in range(count):
            work()
        sync()
        taken_s.append((time.perf_counter() - begun_s) / count)
    return min(taken_s)


class Torch:
    def __init__(self, device: str) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._device = self._torch.device(device)
        self.on_card = self._device.type == "cuda"
        self.name = f"torch {self._torch.__version__}"
        # Right answers are computed by it: no shortcuts.
        self._torch.set_float32_matmul_precision("highest")

    def _sync(self) -> None:
        if self.on_card:
            self._torch.cuda.synchronize(self._device)

    def _normal(self, shape: tuple[int, int], seed: int) -> Any:
        generator = self._torch.Generator(device=self._device).manual_seed(seed)
        return self._torch.randn(shape, generator=generator, device=self._device)

    def made(self, rows: int, dimension: int, seed: int, stream: int) -> Any:
        torch = self._torch
        scale = dimension**-0.5
        centres = self._normal((_CENTRES, dimension), seed) * scale
        made = torch.empty((rows, dimension), device=self._device)
        for number, start in enumerate(range(0, rows, _SLICE)):
            part = made[start : start + _SLICE]
            own = _seed(seed, stream, number)
            part.copy_(self._normal((len(part), dimension), own)).mul_(_NOISE * scale)
            generator = torch.Generator(device=self._device).manual_seed(own + 1)
            part += centres[
                torch.randint(_CENTRES, (len(part),), generator=generator, device=self._device)
            ]
            part /= part.norm(dim=1, keepdim=True)
        return made

    def put(self, host: Floats) -> Any:
        # A copy, since a file's pages cannot be written and torch warns of that.
        return self._torch.from_numpy(np.array(host, np.float32)).to(self._device)

    def host(self, array: Any) -> Floats:
        found: Floats = array.float().cpu().numpy()
        return found

    def pointer(self, array: Any) -> int | None:
        if not self.on_card:
            return None
        self._sync()
        return int(array.data_ptr())

    def take(self, array: Any, rows: Rows) -> Any:
        return array[self._torch.from_numpy(np.ascontiguousarray(rows)).to(self._device)]

    def best(self, queries: Floats, array: Any, k: int) -> tuple[Floats, Rows]:
        torch = self._torch
        asked = self.put(queries)
        scores = torch.empty((len(queries), 0), device=self._device)
        rows = torch.empty((len(queries), 0), dtype=torch.int64, device=self._device)
        for start in range(0, len(array), _SLICE):
            products = asked @ array[start : start + _SLICE].T
            top, at = products.topk(min(k, products.shape[1]), dim=1)
            scores, rows = torch.cat([scores, top], 1), torch.cat([rows, at + start], 1)
            scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
            rows = rows.gather(1, order)
        return scores.cpu().numpy(), rows.cpu().numpy()

    def rerank(self, queries: Floats, array: Any, candidates: Rows, k: int) -> Rows:
        torch = self._torch
        held = torch.from_numpy(np.ascontiguousarray(candidates)).to(self._device)
        gathered = array[held.clamp(min=0)]
        scores = torch.bmm(gathered, self.put(queries).unsqueeze(2)).squeeze(2)
        scores = scores.masked_fill(held < 0, -torch.inf)
        rows: Rows = held.gather(1, scores.topk(k, dim=1).indices).cpu().numpy()
        return rows

    def rates(self, size: int) -> dict[str, float]:
        torch = self._torch
        source = torch.ones(size // 4, device=self._device)
        target = torch.empty_like(source)
        copy_s = best_s(lambda: target.copy_(source), self._sync)
        sum_s = best_s(source.sum, self._sync)
        host = np.ones(size // 32, np.float32)
        up_s = best_s(lambda: torch.from_numpy(host).to(self._device), self._sync)
        rates = {"copy": 2 * size / copy_s, "read": size / sum_s, "upload": host.nbytes / up_s}
        if self.on_card:
            # What the bus itself can do: from memory that stays where it is, without a copy by the host.
            pinned = torch.from_numpy(host).pin_memory()
            up_s = best_s(lambda: pinned.to(self._device, non_blocking=True), self._sync)
            rates["upload, pinned"] = host.nbytes / up_s
        return rates

    def product(self, kind: str, m: int, n: int, d: int) -> float | None:
        torch = self._torch
        if kind == "tf32" and not self.on_card:
            return None
        number = torch.float32 if kind in ("float32", "tf32") else getattr(torch, kind)
        # Random numbers: products of zeros run faster than those of data.
        left, right = self._normal((m, d), 1).to(number), self._normal((n, d), 2).to(number)
        out = torch.empty((m, n), dtype=number, device=self._device)
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        try:
            taken_s = best_s(lambda: torch.matmul(left, right.T, out=out), self._sync)
        finally:
            torch.set_float32_matmul_precision("highest")
        return 2 * m * n * d / taken_s


class Numpy:
    """Over numpy, or over CuPy, which has the same functions for arrays on the card."""

    def __init__(self, module: str) -> None:
        self._xp: Any = importlib.import_module(module)
        self.on_card = module == "cupy"
        self.name = f"{module} {self._xp.__version__}"

    def _sync(self) -> None:
        if self.on_card:
            self._xp.cuda.Device().synchronize()

    def _normal(self, shape: tuple[int, int], seed: int) -> Any:
        return self._xp.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def made(self, rows: int, dimension: int, seed: int, stream: int) -> Any:
        xp = self._xp
        scale = np.float32(dimension**-0.5)
        centres = self._normal((_CENTRES, dimension), seed) * scale
        made = xp.empty((rows, dimension), np.float32)
        size = _SLICE if self.on_card else 20_000

        def fill(number: int) -> None:
            part = made[number * size : (number + 1) * size]
            own = _seed(seed, stream, number)
            part[:] = self._normal(part.shape, own)
            part *= np.float32(_NOISE) * scale
            part += centres[
                xp.asarray(np.random.default_rng(own).integers(_CENTRES, size=len(part)))
            ]
            part /= xp.linalg.norm(part, axis=1, keepdims=True)

        # The card does one thing after another anyway.
        with ThreadPoolExecutor(1 if self.on_card else os.cpu_count()) as pool:
            list(pool.map(fill, range(-(-rows // size))))
        return made

    def put(self, host: Floats) -> Any:
        return self._xp.asarray(host, np.float32)

    def host(self, array: Any) -> Floats:
        found: Floats = np.asarray(array.get() if self.on_card else array, np.float32)
        return found

    def _down(self, array: Any) -> Any:
        return array.get() if self.on_card else array

    def pointer(self, array: Any) -> int | None:
        if not self.on_card:
            return None
        self._sync()
        return int(array.data.ptr)

    def take(self, array: Any, rows: Rows) -> Any:
        return array[self._xp.asarray(rows)]

    def best(self, queries: Floats, array: Any, k: int) -> tuple[Floats, Rows]:
        xp = self._xp
        asked = self.put(queries)
        scores = xp.empty((len(queries), 0), np.float32)
        rows = xp.empty((len(queries), 0), np.int64)
        for start in range(0, len(array), _SLICE):
            products = asked @ array[start : start + _SLICE].T
            at = _top(xp, products, k)
            scores = xp.concatenate([scores, xp.take_along_axis(products, at, 1)], axis=1)
            rows = xp.concatenate([rows, at + start], axis=1)
            order = _top(xp, scores, k)
            scores = xp.take_along_axis(scores, order, 1)
            rows = xp.take_along_axis(rows, order, 1)
        return self._down(scores), self._down(rows)

    def rerank(self, queries: Floats, array: Any, candidates: Rows, k: int) -> Rows:
        xp = self._xp
        held = xp.asarray(candidates)
        gathered = array[xp.maximum(held, 0)]
        scores = xp.matmul(gathered, self.put(queries)[:, :, None])[:, :, 0]
        scores = xp.where(held < 0, np.float32(-np.inf), scores)
        rows: Rows = self._down(xp.take_along_axis(held, _top(xp, scores, k), 1))
        return rows

    def rates(self, size: int) -> dict[str, float]:
        xp = self._xp
        source = xp.ones(size // 4, np.float32)
        target = xp.empty_like(source)
        copy_s = best_s(lambda: xp.copyto(target, source), self._sync)
        sum_s = best_s(source.sum, self._sync)
        host = np.ones(size // 32, np.float32)
        # numpy itself would only look at it.
        move = xp.asarray if self.on_card else np.copy
        up_s = best_s(lambda: move(host), self._sync)
        return {"copy": 2 * size / copy_s, "read": size / sum_s, "upload": host.nbytes / up_s}

    def product(self, kind: str, m: int, n: int, d: int) -> float | None:
        # numpy computes float16 number by number, and CuPy chooses TF32 by an environment variable.
        if kind != "float32" and not (kind == "float16" and self.on_card):
            return None
        left, right = (self._normal((size, d), size).astype(kind) for size in (m, n))
        out = self._xp.empty((m, n), kind)
        taken_s = best_s(lambda: self._xp.matmul(left, right.T, out=out), self._sync)
        return 2 * m * n * d / taken_s


def _top(xp: Any, scores: Any, k: int) -> Any:
    """Columns of the k largest of each line, best first."""
    if k < scores.shape[1]:
        some = xp.argpartition(-scores, k - 1, axis=1)[:, :k]
    else:
        some = xp.broadcast_to(xp.arange(scores.shape[1]), scores.shape)
    order = xp.argsort(-xp.take_along_axis(scores, some, 1), axis=1)
    return xp.take_along_axis(some, order, 1)


def _seed(seed: int, stream: int, number: int) -> int:
    return ((seed * 1_009 + stream + 1) * 100_003 + number) * 2


def arrays_named(name: str, card: bool) -> Arrays:
    """torch | cupy | numpy, or auto: with a card the first of them that sees it, else numpy."""
    if name == "torch":
        return Torch("cuda" if card else "cpu")
    if name == "cupy" or (name == "numpy" or not card):
        return Numpy("cupy" if name == "cupy" else "numpy")
    for one in ("torch", "cupy"):
        try:
            library: Any = importlib.import_module(one)
        except ImportError:
            continue
        if library.cuda.is_available():
            return arrays_named(one, card)
    return Numpy("numpy")
