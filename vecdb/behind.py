"""What an opened collection reads behind while it answers already: the vectors of its graphs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from .errors import Closed, VecdbError
from .field import Field
from .store import CollectionStore

log = logging.getLogger("vecdb")

_FIRST_S = 0.05
"""Left to the queries that the collection was opened for."""


class Behind:
    """One reading of what the graphs of these fields lack. `start` and `stop` once, from any thread."""

    def __init__(self, name: str, fields: Sequence[Field], store: CollectionStore) -> None:
        """`name` is the collection's."""
        self._name, self._store = name, store
        self._fields = [field for field in fields if field.index.is_late]
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Returns at once. Without a thread all goes on as it is: graphs are walked over codes in memory, and the store
        is read for what they find."""
        if not self._fields or self._stopped.is_set():
            return
        thread = threading.Thread(target=self._read, name="vecdb-behind", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.error("collection %s: no thread to read its vectors: %s", self._name, error)
            return
        self._thread = thread

    def followed_by(self, other: Behind) -> Behind:
        """Ends this one, whose fields serve no more, and starts the other."""
        self.stop(wait=False)
        other.start()
        return other

    def stop(self, *, wait: bool) -> None:
        """Ends it within some milliseconds; what has been read so far is read again by whoever needs it."""
        self._stopped.set()
        if wait and self._thread is not None:
            self._thread.join()

    def _read(self) -> None:
        if self._stopped.wait(_FIRST_S):
            return
        for field in self._fields:
            which = self._name + f", vectors {field.name}" * bool(field.name)
            started = time.monotonic()
            try:
                if not field.index.fill(self._stopped):
                    return
                # Each vector was read once; without this the map would count beside the copies.
                self._store.let_pages_go()
            except Closed:
                return
            except (VecdbError, MemoryError, OSError) as error:
                what = "not enough memory" if isinstance(error, MemoryError) else str(error)
                log.error(
                    "collection %s: its vectors stay in the store: %s. Queries read there what they need, which takes "
                    "them longer; a build, or opening it again, tries again",
                    which,
                    what,
                )
            else:
                seconds = time.monotonic() - started
                log.info("collection %s: vectors read in %.2f s behind its opening", which, seconds)
