"""Kernels for NVIDIA cards: *.cu are the sources, *.ptx.xz is what tools/kernels.py makes of them."""

from __future__ import annotations

import lzma
from importlib import resources

import numpy as np
from numpy.typing import NDArray


def ptx(name: str) -> bytes:
    """The compiled kernels of `name`.cu, which a card's driver compiles on."""
    return lzma.decompress(resources.files(__name__).joinpath(f"{name}.ptx.xz").read_bytes())


def scores_of(packed: NDArray[np.uint64], metric: str) -> NDArray[np.float32]:
    """Scores of numbers whose upper half is a key: see `keys.cuh`. Any shape."""
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    bits = np.where(keys & np.uint32(0x80000000), keys ^ np.uint32(0x80000000), ~keys)
    values: NDArray[np.float32] = bits.view(np.float32)
    return values if metric == "l2" else np.negative(values)
