"""How much of headers a server takes from a caller of whom it does not know yet who he is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import StartServer, wait_until
from raw_http2 import CONTINUATION, END_HEADERS, HEADERS, SETTINGS, Raw, call, frame

from vecdb_client import aio, connect, errors
from vecdb_server import server as server_module
from vecdb_server.status import Border

LIMIT = server_module._METADATA_BYTES
ENTRY_BYTES = 32
SENT = 100_000
PART = 16_000


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many headers Python was given with each call."""
    counts: list[int] = []
    inner = Border.intercept_service

    def counted(self: Border, continuation: Any, details: Any) -> Any:
        counts.append(len(details.invocation_metadata))
        return inner(self, continuation, details)

    monkeypatch.setattr(Border, "intercept_service", counted)
    return counts


def many_headers(stream: int) -> bytes:
    """A call with a header that is defined once, and then meant again by one byte each time."""
    block = call("ListCollections") + b"\x40\x01x\x00" + SENT * b"\xbe"
    parts = [block[start : start + PART] for start in range(0, len(block), PART)]
    made = [frame(HEADERS, 0, stream, parts[0])]
    made += [frame(CONTINUATION, 0, stream, part) for part in parts[1:-1]]
    return b"".join([*made, frame(CONTINUATION, END_HEADERS, stream, parts[-1])])


def test_headers_are_counted_however_short_they_are_sent(
    start: StartServer, handed: list[int]
) -> None:
    """A hundred thousand headers of a byte each: the call is refused, Python sees no more than the limit has room for, and
    others are answered."""
    server = start()
    with connect(server.address) as client, Raw(server.address, confirms=True) as raw:
        wait_until(lambda: raw.came[SETTINGS] >= 2, "settings are confirmed on both sides")
        for n in range(5):
            before = raw.came[HEADERS]
            assert raw.send(many_headers(2 * n + 1))
            assert client.list_collections() == []
            wait_until(lambda most=before: raw.came[HEADERS] > most, "it is refused")
    assert max(handed) <= LIMIT // ENTRY_BYTES


def test_who_confirms_no_settings_is_sent_away(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits of a connection bind who has confirmed them, so nobody stays who has not."""
    monkeypatch.setattr(server_module, "_SETTINGS_MS", 300)
    server = start()
    with Raw(server.address) as silent, Raw(server.address, confirms=True) as other:
        assert silent.ended.wait(30)
        assert not other.ended.is_set()
        with connect(server.address) as client:
            assert client.list_collections() == []


def test_metadata_are_taken_or_refused_and_not_by_chance(start: StartServer) -> None:
    """What a client adds to its calls is taken below the limit each time, and refused above it each time, in words that name
    what is too large."""
    server = start()
    length = [0]

    def metadata() -> list[tuple[str, str]]:
        return [("x-added", "y" * length[0])]

    async def asynchronous() -> None:
        async with aio.connect(server.address, call_metadata=metadata) as db:
            await db.list_collections()

    with connect(server.address, call_metadata=metadata, retry_s=0) as client:
        length[0] = LIMIT - 1_000
        for _ in range(30):
            assert client.list_collections() == []
        length[0] = LIMIT
        expected = f"metadata of the call have more than the {LIMIT} bytes .*call_metadata"
        for _ in range(30):
            with pytest.raises(errors.LimitExceeded, match=expected):
                client.list_collections()
        with pytest.raises(errors.LimitExceeded, match=expected):
            asyncio.run(asynchronous())
