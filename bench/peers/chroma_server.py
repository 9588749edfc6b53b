"""Chroma's server (`chroma run`) over HTTP.

Several callers are tasks of its asyncio client, which served more than its blocking client did from threads.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

from ..sources import Source
from . import chroma
from .base import NAME
from .server import Server, free_port

_HOST = "127.0.0.1"


class System(chroma.Collection):
    """An `HttpClient`, and the server in a process of its own."""

    transport: ClassVar = "http"
    callers: ClassVar = "asyncio"
    chosen: ClassVar = {
        **chroma.Collection.chosen,
        "client": "HttpClient for one caller and for writes, AsyncHttpClient for several callers",
    }

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        super().__init__(source)
        self._chroma: Any = importlib.import_module("chromadb")
        self._folder = folder
        # The loopback device is reached without a proxy that the environment may name.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = _HOST
        self._start()
        try:
            self.collection = self._create(NAME) if create else self._get()
        except BaseException:
            self._server.stop()
            raise

    def _start(self) -> None:
        command = str(Path(sys.executable).with_name("chroma"))
        self._port = free_port()
        words = ["run", "--path", str(self._folder), "--host", _HOST, "--port", str(self._port)]
        self._server = Server([command, *words], heard=False)
        try:
            self.client = self._server.reached(
                lambda: self._chroma.HttpClient(_HOST, self._port, settings=chroma.quiet())
            )
        except BaseException:
            self._server.stop()
            raise

    def _reopen(self) -> None:
        self._server.stop()
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
        self._server.stop()
