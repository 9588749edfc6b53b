"""What tests share: hypothesis profiles, data folders, the full WordNet set, and the backends."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import hypothesis
import hypothesis.internal.conjecture.engine as hypothesis_engine
import numpy as np
import pytest
from seeds import pytest_sessionstart  # noqa: F401  a hook: names the seeds of a run

CLI_DIMENSION = 8
_through_reader = False
BACKENDS = ("embedded", "client", "aio")
ALL_BACKENDS = (*BACKENDS, "stand-in", pytest.param("gpu", marks=pytest.mark.gpu))
"""The embedded database twice more, every collection on a GPU of numpy or a real one; `--device=stand-in` pretends that."""
WORDNET = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "wordnet"

# Random examples on every run: each failure prints a blob that replays it. HYPOTHESIS_PROFILE=many
# for a long search. No deadline: the machine may be busy with other things.
hypothesis.settings.register_profile(
    "default", max_examples=50, stateful_step_count=30, deadline=None, print_blob=True
)
hypothesis.settings.register_profile(
    "many", max_examples=2_000, stateful_step_count=60, deadline=None, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
# By itself it shrinks a failure for as long as a test may take: the process was ended before it had told of it.
hypothesis_engine.MAX_SHRINKING_SECONDS = 90


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["gpu", "stand-in"],
        default="gpu",
        help="what the backend `gpu` of the contract tests runs on: a GPU, or one of numpy",
    )
    parser.addoption(
        "--through",
        choices=["writer", "reader"],
        default="writer",
        help="which process of a server the clients of the contract tests ask",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # A job in the background of a shell ignores SIGINT, and so would every process that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Chosen here instead of by hypothesis, so that the header can name it: --hypothesis-seed=N with
    # the same number replays a run.
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(int.from_bytes(os.urandom(4), "little"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        from dealing import longest_first

        items[:] = longest_first(items)


@pytest.fixture(scope="session", autouse=True)
def which_process_is_asked(pytestconfig: pytest.Config) -> None:
    global _through_reader
    _through_reader = pytestconfig.getoption("--through") == "reader"


@pytest.fixture(scope="session", autouse=True)
def what_the_backend_gpu_is(pytestconfig: pytest.Config) -> Iterator[None]:
    import shared_device

    shared_device.gpu_is_pretended = pytestconfig.getoption("--device") == "stand-in"
    yield
    shared_device.close_devices()


@pytest.fixture(scope="session")
def wordnet() -> Path:
    """Folder of the full WordNet set: 116,659 embeddings, too large for the repository."""
    if not WORDNET.is_dir():
        pytest.skip("the full WordNet set is not at ../shared/data/wordnet")
    return WORDNET


MEMORY = Path("/dev/shm")
_LEAST_ROOM = 4 << 30


@pytest.fixture
def data_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder that does not exist yet, for a database.

    In memory where all backends keep one contract: that promises nothing of disks, and thousands of commits wait for them.
    """
    room = shutil.disk_usage(MEMORY).free if MEMORY.is_dir() else 0
    if "backend" not in request.fixturenames or room < _LEAST_ROOM:
        yield tmp_path / "data"
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="vecdb-tests-") as made:
        yield Path(made) / "data"


class AioProxy:
    """An asyncio client with synchronous verbs: coroutines run on one event loop of their own.

    Values that are neither verbs nor objects of the client pass through as they are, so that tests
    see exactly what the asyncio client returns.
    """

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return self._verb(value) if inspect.ismethod(value) else self._wrapped(value)

    def _verb(self, verb: Any) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            async def on_loop() -> Any:
                # Called on the loop: a client may need the running loop when it makes a call.
                value = verb(*args, **keywords)
                return await value if inspect.isawaitable(value) else value

            return self._wrapped(self._wait(on_loop()))

        return call

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=120)

    def _wrapped(self, value: Any) -> Any:
        if hasattr(value, "__anext__"):
            return self._iterated(value)
        if type(value).__module__.startswith("vecdb_client.aio"):
            return AioProxy(value, self._loop)
        return value

    def _iterated(self, values: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._wait(_next(values))
                except StopAsyncIteration:
                    return
        finally:
            if hasattr(values, "aclose"):
                self._wait(values.aclose())


async def _next(values: AsyncIterator[Any]) -> Any:
    return await anext(values)


@contextmanager
def event_loop_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-event-loop")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True)
class Backend:
    """One way to the same verbs. `errors` and `types` are the modules whose classes it uses."""

    name: str
    db: Any
    errors: ModuleType
    types: ModuleType
    folder: Path


@contextmanager
def open_backend(
    name: str, folder: Path, devices: Any = None, **engine_settings: Any
) -> Iterator[Backend]:
    """A database in `folder`, reached as `name` says; the server runs in this process. `devices`: its source of devices. "gpu" is
    embedded, with a GPU, and skips the test where there is none; "stand-in" is that with a device of numpy."""
    with ExitStack() as stack:
        from vecdb import Database, errors, types

        db: Any
        if name in ("gpu", "stand-in"):
            import shared_device

            db = stack.enter_context(shared_device.opened(name, folder, engine_settings))
            yield Backend("gpu", db, errors, types, folder)
            return
        if name == "embedded":
            db = Database(folder, read_only=False, settings=engine_settings, devices=devices)
            yield Backend(name, stack.enter_context(db), errors, types, folder)
            return
        import vecdb_client
        from vecdb_client import aio
        from vecdb_client import errors as client_errors
        from vecdb_client import types as client_types

        address = stack.enter_context(serving(folder, devices, **engine_settings))
        if name == "client":
            db = stack.enter_context(vecdb_client.connect(address))
        else:
            loop = stack.enter_context(event_loop_thread())
            db = stack.enter_context(_aio_connected(aio, address, loop))
        yield Backend(name, db, client_errors, client_types, folder)


@contextmanager
def _aio_connected(aio: Any, address: str, loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    async def connected() -> Any:
        made = aio.connect(address)
        return await made if inspect.isawaitable(made) else made

    client = asyncio.run_coroutine_threadsafe(connected(), loop).result(timeout=60)
    proxy = AioProxy(client, loop)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def serving(folder: Path, devices: Any = None, **settings: Any) -> Iterator[str]:
    """A server in this process on a free port of the loopback device; yields its address."""
    from vecdb_server.server import Server

    processes = {"read_processes": 1} if _through_reader else {}
    server = Server(
        {"data": str(folder), "port": 0, "drain_timeout_s": 5.0, **processes, **settings}, devices
    )
    server.start()
    try:
        yield server.address if server.readers is None else server.readers.address("reader-1")
    finally:
        stopped = server.stop()
    assert stopped, "calls were still running when the test had ended"


StartServer = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers on free ports; each must stop in order when the test ends."""
    from vecdb_server.server import Server

    started: list[Server] = []

    def start_one(devices: Any = None, **given: Any) -> Server:
        settings = {"data": str(tmp_path / "db"), "port": 0, "drain_timeout_s": 5.0, **given}
        server = Server(settings, devices)
        server.start()
        started.append(server)
        return server

    yield start_one
    for server in started:
        assert server.stop()


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Takes back what a server in this process changed about logging."""
    logger = logging.getLogger("vecdb")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {limit_s} s: {what}"
        time.sleep(0.01)


@pytest.fixture(params=ALL_BACKENDS)
def backend(request: pytest.FixtureRequest, data_folder: Path) -> Iterator[Backend]:
    """Each test that takes it runs embedded, through the client, through the asyncio client, and on a GPU."""
    reason = request.node.get_closest_marker("host_only")
    if request.param in ("gpu", "stand-in") and reason is not None:
        pytest.skip(reason.args[0])
    with open_backend(request.param, data_folder) as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_is_not_few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of the index have few rows: most of their filters should meet its plans all the same."""
    if request.module.__name__.startswith("test_index_"):
        from vecdb.index import chosen, codes

        monkeypatch.setattr(chosen, "FEW_ROWS", 64)
        # And few dimensions: graphs should be walked over small codes all the same.
        monkeypatch.setattr(codes, "LEAST_GUIDED_DIMENSION", 8)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VECDB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients repeat failing calls four times as ever, but for 40 ms in all: for tests that ask how a call ends, not when."""
    from vecdb_client import transport

    monkeypatch.setattr(transport, "retry_pauses_s", lambda *_: iter([0.01] * 4))


class Terminal(io.StringIO):
    """A stream that says it is a terminal, for what is drawn for people only."""

    def isatty(self) -> bool:
        return True


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture(params=["embedded", "server"])
def run(
    request: pytest.FixtureRequest, data_folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Run]:
    """Runs a command in this process against a folder, and against a server of that folder."""

    from vecdb_server import __main__ as command_line

    def call(*words: str, target: list[str]) -> Done:
        try:
            code = command_line.main([*words, *target])
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Done(code, out.decode(), err.decode())

    if request.param == "embedded":
        yield lambda *words: call(*words, target=["--data", str(data_folder)])
        return
    with serving(data_folder) as address:
        yield lambda *words: call(*words, target=["--server", address])


def rows_file(folder: Path, count: int, name: str = "rows.jsonl") -> Path:
    """A file with every kind of value that a record can hold."""
    rng = np.random.default_rng(7)
    lines = []
    for i in range(count):
        row: dict[str, Any] = {
            "id": f"r{i}",
            "vector": rng.standard_normal(CLI_DIMENSION).astype(np.float32).tolist(),
            "metadata": {
                "n": i,
                "big": 2**62 + i,
                "x": i / 7,
                "whole": float(i),
                "even": i % 2 == 0,
                "tags": [f"t{i % 3}", "ä"],
                "deep": {"er": {"value": i}},
                "at": {"$date": f"2025-01-01T00:00:{i % 60:02}.000125Z"},
            },
        }
        if i % 2:
            row["document"] = f"text {i} ✓"
        if i % 3 == 0:
            row["uri"] = f"file:///{i}"
        if i % 4 == 0:
            row |= {"content": "AAEC/w==", "media_type": "image/png"}
        lines.append(json.dumps(row, ensure_ascii=False))
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """See `on_devices.using`."""
    from on_devices import using

    return using(request.param, monkeypatch)


AddKey = Callable[..., str]


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def add(keys_file: Path) -> AddKey:
    """Makes a key with some grants; its text."""

    from vecdb_server import keys

    def add_one(*grants: str, ends_in_s: float | None = None) -> str:
        end = None if ends_in_s is None else time.time() + ends_in_s
        return keys.add(keys_file, tuple(map(keys.parse_grant, grants)), "", time.time(), end)[1]

    return add_one


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    from authority import Authority

    return Authority(tmp_path)
