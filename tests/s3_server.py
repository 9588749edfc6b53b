"""An S3 endpoint over real HTTP, of the standard library, for tests: strict where S3 is, and with faults to plant.

It holds one bucket in memory, addressed by path; `s3_door` says what it knows.
"""

from __future__ import annotations

import datetime as dt
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from s3_door import KEY, REGION, SECRET, TOKEN, Door


@dataclass
class Fault:
    """What goes wrong with calls of some name (`*`: any) on keys in which `key` stands, `left` times.

    `slow_down`, `timeout`, `denied`, `no_bucket`, `no_key`, `full`, `mismatch`: an answer of that error, and nothing is done;
    `cut`: the connection ends in the middle of what is sent, either way; `unheard`: it is done, and the connection ends
    before the answer; `gone`: likewise, and from then on nobody is answered; `late`: the connection ends, and it is done when
    `released` is set; `slow`: nothing is done before that; `held`: it is done, and the answer waits for that; `flipped`,
    `short`: what is kept is not what was sent, and the answer is as ever; `stale`: a list of what was there when this was
    planted.
    """

    call: str
    how: str
    left: int
    key: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    seen: dict[str, bytes] = field(default_factory=dict)


class S3:
    """The bucket, what has been called, and the faults. Any thread may call."""

    def __init__(self, bucket: str = "bucket") -> None:
        self.bucket = bucket
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.page_keys = 1_000
        self.calls: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._planted: list[Fault] = []
        self._numbers = itertools.count(1)
        self._connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("DoorOfOne", (Door,), {"s3": self})
        )
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach it by a URL."""
        return {
            "AWS_ENDPOINT": self.endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN,
        }  # fmt: skip

    def store(
        self, prefix: str = "", *, retries: int = 3, timeout_s: float = 30.0, **more: Any
    ) -> Any:
        """The same as a store object, which repeats calls quickly and gives up soon."""
        from obstore.store import S3Store

        asked: dict[str, Any] = {
            "endpoint": self.endpoint, "region": REGION, "access_key_id": KEY, "secret_access_key": SECRET,
            "session_token": TOKEN,
        }  # fmt: skip
        return S3Store(
            self.bucket,
            prefix=prefix or None,
            client_options={"allow_http": True, "timeout": dt.timedelta(seconds=timeout_s)},
            retry_config={
                "max_retries": retries,
                "retry_timeout": dt.timedelta(seconds=60),
                "backoff": {
                    "init_backoff": dt.timedelta(milliseconds=1),
                    "max_backoff": dt.timedelta(milliseconds=5),
                    "base": 2,
                },
            },
            **{**asked, **more},
        )

    def plant(self, call: str, how: str, times: int = 1 << 30, **more: Any) -> Fault:
        with self.lock:
            fault = Fault(call, how, times, seen=dict(self.objects), **more)
            self.faults.append(fault)
            self._planted.append(fault)
            return fault

    def mend(self) -> None:
        """Takes all faults away, but for those that have begun."""
        with self.lock:
            self.faults.clear()

    def of(self, call: str, key: str) -> Fault:
        """The fault that this call meets, counted; one that does nothing where there is none."""
        with self.lock:
            self.calls[call] += 1
            for fault in self.faults:
                if fault.left > 0 and fault.call in ("*", call) and fault.key in key:
                    fault.left -= 1
                    return fault
        return Fault(call, "", 0)

    def next_id(self) -> str:
        return f"upload-{next(self._numbers)}"

    def connected(self, connection: socket.socket) -> None:
        with self.lock:
            self._connections.add(connection)

    def close(self) -> None:
        """Ends it: from now on nobody is answered, not even who has been connected before."""
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            for fault in self._planted:
                fault.released.set()
            for connection in self._connections:
                with suppress(OSError):  # it has ended
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def s3_server() -> Iterator[S3]:
    """An endpoint for as long as the block lasts."""
    s3 = S3()
    try:
        yield s3
    finally:
        s3.close()
