"""A planted system that callers in other processes can join: what it holds lies in a file, and each query says who asked.

`fault` comes with the link, so that only who has joined has it: "raises" or "ends".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Self

import bench_planted


class System(bench_planted.System):
    apart: ClassVar = True

    def __init__(self, source: Any, folder: Path, *, create: bool, joined: str = "none") -> None:
        super().__init__(source, folder, create=create)
        self._joined = joined

    def link(self) -> Any:
        self.save()
        return str(self._file.parent), self._joined

    @classmethod
    def joined(cls, source: Any, link: Any) -> Self:
        made = cls(source, Path(link[0]), create=False)
        made._fault = link[1]
        return made

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        with (self._file.parent / "asked").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().query(vector, k, where, setting)
