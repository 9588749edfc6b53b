"""vecdb over gRPC: its server in a process of its own, and its client here.

Several callers in one process are tasks of the asyncio client.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..sources import Source
from . import collection
from .base import NAME
from .server import Server

TIMEOUT_S = 3600


class System(collection.System):
    """The knob is `target_recall`."""

    packages: ClassVar = ("vecdb_client", "vecdb_client.aio")
    transport: ClassVar = "grpc"
    apart: ClassVar = True
    callers: ClassVar = "asyncio"
    _server: Server | None = None

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        super().__init__(source)
        words = ["-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0"]
        words += ["--audit-share", "0"]
        self._server = Server([sys.executable, *words], heard=True)
        try:
            self._target = self._server.first_line().split()[-1]
            self._client = _connected(self._target)
            if create:
                self.collection = self._client.create_collection(NAME, dimension=source.dimension)
            else:
                self.collection = self._client.get_collection(NAME)
        except BaseException:
            self._server.stop()
            raise

    def link(self) -> Any:
        return self._target

    @classmethod
    def joined(cls, source: Source, link: Any) -> Self:
        made = cls.__new__(cls)
        collection.System.__init__(made, source)
        made._client = _connected(link)
        made.collection = made._client.get_collection(NAME)
        return made

    def _made(self, name: str) -> Any:
        return self._client.create_collection(name, dimension=self._source.dimension)

    async def begin(self) -> None:
        connect = importlib.import_module("vecdb_client.aio").connect
        self._tasks = connect(self._target, timeout_s=TIMEOUT_S)
        self._of_tasks = await self._tasks.get_collection(NAME)

    async def ask(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        found = await self._of_tasks.query(vector, k=k, filter=where, target_recall=setting)
        return found.ids[0], np.asarray(found.distances)[0]

    async def end(self) -> None:
        await self._tasks.close()

    def close(self) -> None:
        self._client.close()
        if self._server is not None:
            self._server.stop()


def _connected(target: str) -> Any:
    return importlib.import_module("vecdb_client").connect(target, timeout_s=TIMEOUT_S)
