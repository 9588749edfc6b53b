"""Records of a set as lines of JSON, one a row, found by their offsets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Source


class Lines(Source):
    """A source whose ids, texts and fields lie in `rows.jsonl`, with `id` and `text` among the fields."""

    def records(self, start: int, stop: int) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        offsets = self._offsets
        with (self.folder / "rows.jsonl").open("rb") as file:
            file.seek(int(offsets[start]))
            lines = file.read(int(offsets[stop] - offsets[start])).split(b"\n")[:-1]
        made = [json.loads(line) for line in lines]
        return [one.pop("id") for one in made], made, [one.pop("text") for one in made]

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        known = self._row_of
        return [known[one] for one in ids]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        held: NDArray[np.int64] = np.load(self.folder / "offsets.npy")
        return held

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {one: row for row, one in enumerate(self.records(0, self.rows)[0])}


def write(folder: Path, parts: Iterable[Sequence[bytes]]) -> None:
    """Writes `rows.jsonl` and its offsets; each line without its end."""
    lengths = [np.zeros(1, np.int64)]
    with (folder / "rows.jsonl").open("wb") as file:
        for lines in parts:
            file.write(b"".join(line + b"\n" for line in lines))
            lengths.append(np.fromiter((len(line) + 1 for line in lines), np.int64, len(lines)))
    np.save(folder / "offsets.npy", np.cumsum(np.concatenate(lengths), dtype=np.int64))
