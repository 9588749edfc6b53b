"""What one part is told when it starts in its own process, and how it reports."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .backend import Backend, backend_named

K = 10
BATCHES = (1, 32, 1024)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows and dimensions that are measured, the largest last: what comes last is left out first."""

    exact: tuple[tuple[int, int], ...]
    insert: tuple[tuple[int, int, str], ...]
    engine: tuple[int, int]
    tiled: tuple[int, int]
    kmeans: tuple[tuple[int, int, int], ...]  # rows, lists, rounds
    clustered: int
    queries: int
    product: int  # side of the largest matrix products
    copy_bytes: int
    batches: tuple[int, ...]
    cell_s: float  # seconds of one round of one cell


FULL = Sizes(
    exact=((1_000_000, 384), (1_000_000, 1536), (10_000_000, 384)),
    insert=((1_000_000, 384, "float16"), (1_000_000, 384, "float32"), (10_000_000, 384, "float16")),
    engine=(1_000_000, 384),
    tiled=(100_000, 384),
    kmeans=((262_144, 4_096, 10), (1_000_000, 16_384, 3)),
    clustered=1_000_000,
    queries=1_024,
    product=8_192,
    copy_bytes=8 << 30,
    batches=BATCHES,
    cell_s=0.6,
)
TINY = Sizes(
    exact=((2_000, 32), (4_000, 64)),
    insert=((2_000, 32, "float16"), (3_000, 32, "float32")),
    engine=(2_000, 32),
    tiled=(2_000, 32),
    kmeans=((2_000, 16, 3), (3_000, 32, 2)),
    clustered=3_000,
    queries=32,
    product=128,
    copy_bytes=1 << 20,
    batches=(1, 8, 32),
    cell_s=0.005,
)


@dataclass(frozen=True, slots=True)
class Task:
    """One part of one run; goes to the child as JSON."""

    part: str
    module: str
    backend: str
    arrays: str
    tiny: bool
    seed: int
    rounds: int
    seconds: float
    folder: str
    lines: str

    def text(self) -> str:
        return json.dumps(asdict(self))


class Context:
    """What a part works with: the backend, the sizes, the time it has left, and where lines go.

    Each line is written at once, so a part that aborts or is killed leaves what it has measured.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.sizes = TINY if task.tiny else FULL
        self.folder = Path(task.folder)
        self._end_s = time.monotonic() + task.seconds

    @cached_property
    def backend(self) -> Backend:
        """Made on first use: a part that never asks for it starts no CUDA."""
        return backend_named(self.task.backend, self.task.arrays)

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    def put(self, kind: str = "case", **line: Any) -> None:
        text = json.dumps({"part": self.task.part, "kind": kind, **line})
        with Path(self.task.lines).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        said = line.get("case") or line.get("name") or self.task.part
        print(
            f"  {said}" if kind == "case" else f"  {said}: {kind} {line.get('why', '')}", flush=True
        )

    def fits(self, name: str, seconds: float) -> bool:
        """Whether some `seconds` are left for a case; where not, a line says that it was left out."""
        if self.left_s >= seconds:
            return True
        self.put(
            "left out",
            name=name,
            why=f"about {seconds:.0f} s needed, {max(self.left_s, 0):.0f} s left of this part's"
            f" {self.task.seconds:.0f} s",
        )
        return False

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A case whose exception, such as memory of the card that is full, costs only this case."""
        try:
            yield
        except Exception as error:
            self.put("failed", name=name, why=f"{type(error).__name__}: {str(error)[-300:]}")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file of lines; one that was cut off in the middle is not there."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines
