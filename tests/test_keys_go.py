"""Rights that are taken away while a call is under way."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import AddKey, StartServer, wait_until

from vecdb.errors import InvalidSetting
from vecdb_client import connect, errors
from vecdb_server import guard
from vecdb_server.guard import KeyRing
from vecdb_server.security import Security


def _grant(keys_file: Path, key: int, role: str, collections: str) -> None:
    """Gives a key of the file another grant."""
    held = json.loads(keys_file.read_text())
    held["keys"][key]["grants"] = [{"role": role, "collections": collections}]
    keys_file.write_text(json.dumps(held))


@pytest.mark.parametrize("taken", ["role", "collection", "name"])
def test_an_ingest_ends_with_its_right(
    start: StartServer, add: AddKey, keys_file: Path, taken: str
) -> None:
    """Each batch is asked for: a key that may only read now, or only elsewhere, and a collection whose new name it may not
    write, end an ingest that is under way; what was acknowledged is there."""
    root, writer = add("admin"), add("write:docs*")
    server = start(keys_file=str(keys_file))
    with (
        connect(server.address, api_key=root) as admin,
        connect(server.address, api_key=writer) as client,
    ):
        docs = admin.create_collection("docs", dimension=2)

        def batches() -> Iterator[Any]:
            yield ["a"], [[1, 2]]
            wait_until(lambda: docs.count() == 1, "the first batch is there", 30)
            if taken == "name":
                admin.rename_collection("docs", "private")
            else:
                _grant(keys_file, 1, *(("read", "docs*") if taken == "role" else ("write", "else")))
                assert server.reload() == ["keys"]
            for number in range(50):
                yield [f"b{number}"], [[1, 2]]

        with pytest.raises(errors.PermissionDenied):
            list(client.get_collection("docs").ingest(batches()))
        name = "private" if taken == "name" else "docs"
        assert admin.get_collection(name).count() == 1


class _Held:
    def __init__(self, fault: str = "", changed: bool = False) -> None:
        self.fault, self.changed = fault, changed

    def reload(self) -> bool:
        if self.fault:
            raise InvalidSetting(self.fault)
        return self.changed


@pytest.mark.parametrize(
    ("ring", "certificates", "said", "read"),
    [
        (_Held("no keys"), _Held(changed=True), ["no keys"], "certificates"),
        (_Held(changed=True), _Held("no pair"), ["no pair"], "keys"),
        (_Held("no keys"), _Held("no pair"), ["no keys", "no pair"], ""),
    ],
)
def test_a_bad_file_keeps_no_other_from_being_read(
    ring: Any, certificates: Any, said: list[str], read: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file is read again; all that cannot be used are told of, and so is what was taken up."""
    security = Security.__new__(Security)
    security._ring, security.certificates = ring, certificates
    with caplog.at_level(logging.INFO), pytest.raises(InvalidSetting) as caught:
        security.reload()
    assert all(one in str(caught.value) for one in said)
    assert ("read again: " + read in caplog.text) == bool(read)


def test_a_bad_keys_file_is_told_of_once(
    add: AddKey,
    keys_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The file is looked at every second; one that stays bad has one line of the log for each fault, not one for each look."""
    text = (add("read"), keys_file.read_text())[1]
    looks, read = [0], KeyRing._read

    def counted(self: KeyRing) -> None:
        try:
            read(self)
        finally:
            looks[0] += 1

    def put(what: str) -> None:
        aside = keys_file.with_suffix(".new")
        aside.write_text(what)
        aside.replace(keys_file)

    monkeypatch.setattr(guard, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(guard, "_TELL_EVERY_S", 3_600.0)
    monkeypatch.setattr(KeyRing, "_read", counted)
    ring = KeyRing(keys_file, None)
    try:
        for change in (
            lambda: put("no keys"),
            keys_file.unlink,
            lambda: put(text + " "),
            keys_file.unlink,
        ):
            change()
            before = looks[0]
            wait_until(lambda: looks[0] > before + 5, "it is looked at")  # noqa: B023
    finally:
        ring.close()
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    faults = ("is not JSON", "cannot read", "cannot read")
    assert len(told) == len(faults)
    assert all(fault in line for fault, line in zip(faults, told, strict=True))
