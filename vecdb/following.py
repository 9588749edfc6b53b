"""How a collection that another process writes finds out what is new, and takes up indexes built there."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable

from .errors import Corrupted
from .field import Field
from .index import BuiltIndex, IndexRecord
from .store import CollectionStore, Reader

log = logging.getLogger("vecdb")

_AGAIN_S = 1.0

Take = Callable[[Field, bytes, "tuple[BuiltIndex, IndexRecord] | None", str], None]
"""Puts a loaded index of a field into service, or says why its record `raw` is of no use; in the lane, and if it
`is_newest` there."""


class Following:
    """Of one read-only collection. Any thread may ask; `saw` and `takes_up` are called in its lane."""

    def __init__(self, name: str, store: CollectionStore, take: Take) -> None:
        self._name = name
        self._store = store
        self._take = take
        self._moment: tuple[int, int] | None = None
        self._loading: dict[int, bytes] = {}
        self._threads: list[threading.Thread] = []
        self._again_s = math.inf
        """When an index that no thread was to be had for is tried again."""

    def has_news(self) -> bool:
        """Whether there was a commit since `saw`; 8 us, without the lane and without a transaction."""
        return self._store.moment() != self._moment or time.monotonic() >= self._again_s

    def saw(self, reader: Reader) -> None:
        """All that this transaction shows is known. By the number of its snapshot: the newest commit of the file
        may be one that no transaction shows yet."""
        self._moment = self._store.moment_of(reader)

    def takes_up(self, reader: Reader, fields: Iterable[Field]) -> bool:
        """Has indexes of the writer that serve not yet loaded by a thread, while the one before serves: no query
        waits for that. False where an index is gone, so that all is to be made anew."""
        new = {
            field: raw
            for field in fields
            if (raw := reader.index_record(field.number)) != field.raw_record
        }
        if None in new.values():
            return False
        self._again_s = math.inf
        for field, raw in new.items():
            assert raw is not None
            if self._loading.get(field.number) != raw:
                self._begin(field, raw)
        return True

    def _begin(self, field: Field, raw: bytes) -> None:
        thread = threading.Thread(
            target=self._load, args=(field, raw), name="vecdb-follow", daemon=True
        )
        before = self._loading.get(field.number)
        self._loading[field.number] = raw  # first: the thread asks for it
        try:
            thread.start()
        except RuntimeError as error:
            # The index before serves, and it is tried again.
            log.warning("collection %s: a new index is not taken up yet: %s", self._name, error)
            self._loading.pop(field.number, None)
            if before is not None:
                self._loading[field.number] = before
            self._again_s = time.monotonic() + _AGAIN_S
            return
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]

    def is_newest(self, field: Field, raw: bytes) -> bool:
        """Whether no other index was found since; in the lane. The older of two may be the later to be loaded."""
        return self._loading.get(field.number) == raw

    def _load(self, field: Field, raw: bytes) -> None:
        try:
            record = IndexRecord.from_json(raw)
            loaded = field.index.load(record, self._store.folder)
        except Corrupted as error:
            # The file of a build that another has followed is gone by now, and its record is none any more.
            self._take(field, raw, None, error.message)
        except Exception as error:
            # Closed meanwhile, or no memory for it: the index before serves, and the next commit has it tried again.
            log.info("collection %s: a new index was not taken up: %s", self._name, error)
            self._loading.pop(field.number, None)
        else:
            self._take(field, raw, (loaded, record), "")

    def stop(self) -> None:
        """Returns when nothing is being loaded any more. Not in the lane, which loaders wait for."""
        for thread in self._threads:
            thread.join()
