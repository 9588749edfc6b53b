"""Chroma's server (`chroma run`) over HTTP.

Several callers in one process are tasks of its asyncio client, which served more than its blocking client did from threads.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

from ..sources import Source
from . import chroma
from .base import NAME
from .server import Server, free_port

_HOST = "127.0.0.1"


class System(chroma.Collection):
    """An `HttpClient`, and the server in a process of its own."""

    transport: ClassVar = "http"
    apart: ClassVar = True
    callers: ClassVar = "asyncio"
    _server: Server | None = None

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        self._prepare(source)
        self._folder = folder
        self._start()
        try:
            self.collection = self._create(NAME) if create else self._get()
        except BaseException:
            self.close()
            raise

    def _prepare(self, source: Source) -> None:
        chroma.Collection.__init__(self, source)
        self._chroma: Any = importlib.import_module("chromadb")
        # The loopback device is reached without a proxy that the environment may name.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = _HOST

    def _start(self) -> None:
        command = str(Path(sys.executable).with_name("chroma"))
        self._port = free_port()
        words = ["run", "--path", str(self._folder), "--host", _HOST, "--port", str(self._port)]
        self._server = Server([command, *words], heard=False)
        try:
            self.client = self._server.reached(self._connected)
        except BaseException:
            self.close()
            raise

    def _connected(self) -> Any:
        return self._chroma.HttpClient(_HOST, self._port, settings=chroma.quiet())

    def link(self) -> Any:
        return self._port

    @classmethod
    def joined(cls, source: Source, link: Any) -> Self:
        made = cls.__new__(cls)
        made._prepare(source)
        made._port = link
        made.client = made._connected()
        made.collection = made._get()
        return made

    def _reopen(self) -> None:
        self.close()
        self._start()
        self.collection = self._get()

    async def begin(self) -> None:
        client = await self._chroma.AsyncHttpClient(_HOST, self._port, settings=chroma.quiet())
        self._of_tasks = await client.get_collection(NAME, embedding_function=None)

    async def ask(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        found = await self._of_tasks.query(
            query_embeddings=[vector], n_results=k, where=where, include=["distances"]
        )
        return found["ids"][0], found["distances"][0]

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
