"""Changes of collections and aliases that come twice are done once: a lost answer, or a restart, harms nobody."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import AioProxy, StartServer, event_loop_thread, open_backend, wait_until
from server_process import spawn
from test_restart import free_port

import vecdb
from vecdb.errors import InvalidArgument, InvalidBatch, Unavailable
from vecdb.store import changes
from vecdb_client import aio, connect, errors
from vecdb_server.access import GuardedDatabase

BACKENDS = ("embedded", "client", "aio")
CHANGES: dict[str, tuple[Any, ...]] = {
    "create_collection": ("made",),
    "drop_collection": ("docs",),
    "rename_collection": ("docs", "other"),
    "set_alias": ("alias", "docs"),
    "drop_alias": ("spare",),
}


def prepare(db: Any) -> None:
    db.create_collection("docs", dimension=2)
    db.create_collection("second", dimension=2)
    db.set_alias("spare", "docs")


def do(db: Any, verb: str, **given: Any) -> Any:
    if verb == "create_collection":
        given["dimension"] = 2
    return getattr(db, verb)(*CHANGES[verb], **given)


def undo(db: Any, verb: str) -> None:
    """What another caller does meanwhile, so that a second time would harm him, or be refused."""
    if verb == "create_collection":
        db.drop_collection("made")
        db.create_collection("made", dimension=3)
    elif verb in ("drop_collection", "rename_collection"):
        db.create_collection("docs", dimension=3)
    elif verb == "set_alias":
        db.set_alias("alias", "second")
    else:
        db.set_alias("spare", "second")


def state(db: Any) -> Any:
    return {one.name: one.dimension for one in db.list_collections()}, db.list_aliases()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("verb", CHANGES)
def test_a_repetition_is_answered_and_changes_nothing(verb: str, name: str, tmp_path: Path) -> None:
    """With its id a change is answered again, whatever others have done since, also after the database was opened again;
    with the id another change is refused."""
    folder = tmp_path / "data"
    with open_backend(name, folder) as opened:
        prepare(opened.db)
        do(opened.db, verb, request_id="once")
        done = state(opened.db)
        again = do(opened.db, verb, request_id="once")
        assert state(opened.db) == done
        assert again is None or again.name == "made"
        with pytest.raises(opened.errors.InvalidArgument, match="another change"):
            opened.db.set_alias("unlike", "second", request_id="once")
        undo(opened.db, verb)
        after = state(opened.db)
    with open_backend(name, folder) as opened:
        if verb == "create_collection":
            # What it had made is gone; the one of that name is another's.
            with pytest.raises(opened.errors.CollectionNotFound):
                do(opened.db, verb, request_id="once")
        else:
            do(opened.db, verb, request_id="once")
        assert state(opened.db) == after


def test_a_collection_that_was_renamed_since_is_still_the_one(tmp_path: Path) -> None:
    """The repetition of what made it gives it under its present name."""
    with vecdb.open(tmp_path / "db", device="cpu") as db:
        made = db.create_collection("made", dimension=2, request_id="once")
        made.insert(["a"], [[1, 2]])
        db.rename_collection("made", "named")
        found = db.create_collection("made", dimension=2, request_id="once")
        assert (found.name, found.count()) == ("named", 1)
        assert db.collection_names() == ["named"]


def test_what_was_refused_is_not_remembered(tmp_path: Path) -> None:
    """A change that failed is tried again with its id, and done then."""
    with vecdb.open(tmp_path / "db", device="cpu") as db:
        with pytest.raises(vecdb.errors.CollectionNotFound):
            db.drop_collection("docs", request_id="once")
        db.create_collection("docs", dimension=2)
        db.drop_collection("docs", request_id="once")
        assert db.collection_names() == []


@pytest.mark.parametrize("given", ["", "x" * 65, 7, b"id"])
def test_what_is_no_id_is_refused(given: Any, start: StartServer, tmp_path: Path) -> None:
    """Empty and long texts, and what is no text; nothing is changed."""
    with vecdb.open(tmp_path / "own", device="cpu") as db:
        with pytest.raises(InvalidBatch):
            db.create_collection("docs", dimension=2, request_id=given)
        assert db.collection_names() == []
    with connect(start().address, retry_s=0) as client:
        with pytest.raises(errors.InvalidBatch):
            client.create_collection("docs", dimension=2, request_id=given)
        with pytest.raises(errors.InvalidBatch):
            client.create_collection("docs", dimension=2, request_id="ein ä\n")
        assert client.list_collections() == []


def test_a_few_hundred_are_remembered_for_an_hour() -> None:
    """The record holds the newest 512, none older than an hour; damaged it counts as none."""
    made = [changes.Change(b"%d" % n, b"drop\0x") for n in range(600)]
    raw: Any = None
    for n, change in enumerate(made):
        raw = changes.record(raw, change, "", 1_000 + n)
    assert len(raw) < 32_768
    found = [n for n, change in enumerate(made) if changes.find(raw, change, 2_000)]
    assert found == list(range(600 - changes.KEPT, 600))
    assert not changes.find(raw, made[-1], 1_599 + changes.KEPT_US)
    assert len(changes.record(raw, made[0], "", changes.KEPT_US + 1_590)) < 600
    for n in range(0, len(raw), 997):
        spoilt = bytearray(raw)
        spoilt[n] ^= 16
        assert changes.find(bytes(spoilt), made[-1], 2_000) is None
    with pytest.raises(InvalidArgument):
        changes.find(raw, changes.Change(b"599", b"drop\0y"), 2_000)


@pytest.fixture(params=["client", "aio"])
def clients(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """How to connect, the sync client and the asyncio one."""
    made: list[Any] = []
    with event_loop_thread() as loop:

        def connected(address: str) -> Any:
            client: Any = connect(address, timeout_s=60, retry_s=45)
            if request.param == "aio":
                client.close()
                client = AioProxy(aio.connect(address, timeout_s=60, retry_s=45), loop)
            made.append(client)
            return client

        yield connected
        for client in made:
            client.close()


def test_an_answer_that_is_lost_harms_nothing(
    clients: Callable[[str], Any], start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does each change and then breaks its answer off: the clients send it again and are told that it is done."""
    server = start()
    db = clients(server.address)
    prepare(db)
    for verb in ("set_alias", "drop_alias", "create_collection", "rename_collection"):
        lost = lose_one(monkeypatch, verb)
        do(db, verb)
        assert lost == [1, 2], verb
    lost = lose_one(monkeypatch, "drop_collection")
    db.drop_collection("other")
    assert lost == [1, 2]
    assert state(db) == ({"made": 2, "second": 2}, {})


def lose_one(monkeypatch: pytest.MonkeyPatch, verb: str) -> list[int]:
    """Has the first answer of a verb be lost; counts its calls."""
    right, seen = getattr(GuardedDatabase, verb), list[int]()

    def lossy(self: Any, *args: Any, **given: Any) -> Any:
        seen.append(len(seen) + 1)
        found = right(self, *args, **given)
        if len(seen) == 1:
            raise Unavailable("the connection broke")
        return found

    monkeypatch.setattr(GuardedDatabase, verb, lossy)
    return seen


def gone_on(rounds: list[int], aims: list[int], failures: list[Any]) -> bool:
    return bool(failures) or all(a >= b for a, b in zip(rounds, aims, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_loses_no_change_of_names(
    how: signal.Signals, clients: Callable[[str], Any], tmp_path: Path
) -> None:
    """While a server is stopped or killed and started again on its port, every change of clients that retry is done, once:
    each makes, renames, names and drops collections of its own, and meets no error."""
    folder, port = tmp_path / "db", free_port()
    process, address = spawn(folder, "--log-level", "error", port=port)
    rounds, failures, end = [0, 0, 0], list[BaseException](), threading.Event()

    def work(number: int, db: Any) -> None:
        try:
            while not end.is_set():
                name = f"c{number}-{rounds[number]}"
                db.create_collection(name, dimension=2).insert(["a"], np.ones((1, 2)))
                db.set_alias(f"a{number}", name)
                db.rename_collection(name, f"{name}-new")
                assert db.get_collection(f"a{number}").count() == 1
                db.drop_alias(f"a{number}")
                db.drop_collection(f"{name}-new")
                rounds[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(n, clients(address)), daemon=True) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            aims = [done + 1 for done in rounds]
            wait_until(partial(gone_on, rounds, aims, failures), "changes are made")
            time.sleep(0.05)
            process.send_signal(how)
            process.communicate(timeout=60)
            process, _ = spawn(folder, "--log-level", "error", port=port)
        end.set()
        for thread in threads:
            thread.join(60)
        assert failures == []
    finally:
        end.set()
        process.terminate()
        process.communicate(timeout=60)
    with vecdb.open(folder, device="cpu") as db:
        assert state(db) == ({}, {})
