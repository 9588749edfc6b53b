"""Azurite, Azure's own emulator of its blob store, as a process that tests can end and begin again, behind a door that breaks
connections. It is found in tests/azurite/node_modules, where `npm install --prefix tests/azurite` puts it."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until

MAIN = (
    Path(__file__).parent
    / "azurite"
    / "node_modules"
    / "azurite"
    / "dist"
    / "src"
    / "blob"
    / "main.js"
)
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # gitleaks:allow
"""Of the emulator, the same everywhere, published by Microsoft."""
CONTAINER = "container"
_VERSION = "2023-11-03"


class Azurite:
    """The emulator with its files in `folder`, and its door."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.cuts: list[tuple[str, int]] = []
        """Ways (`up`, `down`) and bytes after which the next connections break off, each once."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes az:// URLs lead here."""
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": self.endpoint}

    def begin(self) -> None:
        """Starts it; returns when it answers."""
        self._process = subprocess.Popen(
            ["node", str(MAIN), "--blobHost", "127.0.0.1", "--blobPort", str(self._port),
             "--location", str(self._folder), "--silent", "--disableTelemetry"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._answers, "Azurite answers", 120)

    def end(self) -> None:
        """Ends it in order: one that is killed forgets what it has acknowledged within the last seconds."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(120)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._listening.close()

    def make_container(self, name: str = CONTAINER) -> None:
        date = dt.datetime.now(dt.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        path = f"/{ACCOUNT}/{name}"
        signed = f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{_VERSION}\n/{ACCOUNT}{path}\nrestype:container"
        mac = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}?restype=container", data=b"", method="PUT",
            headers={
                "x-ms-date": date, "x-ms-version": _VERSION, "Content-Type": "",
                "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}",
            },
        )  # fmt: skip
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 201

    def store(self, prefix: str = "deep/er", *, retries: int = 3, **more: Any) -> Any:
        """A store object that repeats calls quickly and gives up soon."""
        from obstore.store import AzureStore

        given = {
            "account_name": ACCOUNT,
            "endpoint": f"{self.endpoint}/{ACCOUNT}",
            **(more or {"account_key": KEY}),
        }
        return AzureStore(
            CONTAINER, prefix=prefix, client_options={"allow_http": True, "timeout": dt.timedelta(seconds=60)},
            retry_config={
                "max_retries": retries,
                "backoff": {"init_backoff": dt.timedelta(milliseconds=10), "max_backoff": dt.timedelta(milliseconds=20)},
            },
            **given,
        )  # fmt: skip

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with (
            client,
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._port)) as server,
        ):
            down = threading.Thread(target=self._flow, args=("down", server, client), daemon=True)
            down.start()
            self._flow("up", client, server)
            down.join()

    def _flow(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        """Passes bytes on. Where a cut is planted, the part in which its bytes are over is passed up to there, and both
        connections end."""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                cut = next((one for one in self.cuts if one[0] == way and len(data) > one[1]), None)
                if cut is not None:
                    with suppress(ValueError):
                        self.cuts.remove(cut)
                        sink.sendall(data[: cut[1]])
                        break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def azurite(folder: Path) -> Iterator[Azurite]:
    """One that answers and has a container; skips the test where there is none."""
    if shutil.which("node") is None or not MAIN.is_file():
        pytest.skip("Azurite is not installed (npm install --prefix tests/azurite)")
    made = Azurite(folder)
    made.begin()
    try:
        made.make_container()
        yield made
    finally:
        made.close()
