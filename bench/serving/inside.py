"""A server in a process of its own whose parts are timed; the process has nothing else to do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..stages import Stage, Stages


class Server:
    """Runs in a child. `settings` are those of the server; the parts are timed from the start."""

    def __init__(self, folder: Path, stages: Sequence[Stage], settings: dict[str, Any]) -> None:
        import vecdb_server.server
        import vecdb_server.service_records

        self._stages = Stages(stages)
        self._server = vecdb_server.server.Server({"data": str(folder), "port": 0, **settings})
        self._server.start()
        self._used_s = time.process_time()

    def address(self) -> str:
        return self._server.address

    def reset(self) -> None:
        """Forgets what was until now."""
        self._stages.reset()
        self._used_s = time.process_time()

    def taken(self) -> dict[str, Any]:
        """Seconds and calls by part, seconds of the processor that the process took, and what was not found."""
        return {
            "taken_s": self._stages.taken_s,
            "calls": self._stages.calls,
            "processor_s": time.process_time() - self._used_s,
            "absent": self._stages.absent,
        }

    def stop(self) -> None:
        self._server.stop()
