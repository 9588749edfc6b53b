"""Which settings a running server takes up when they change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .settings import SETTINGS

log = logging.getLogger("vecdb.server")


def taken_up(
    used: dict[str, Any], engine_used: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
    """Puts those of `wanted` that may change into `used`, which others read at each call; their names.

    Others that differ are told to the log: they wait for the next start.
    """
    changed, waiting = [], []
    for row in SETTINGS:
        now = engine_used[row.name] if row.name in engine_used else used[row.name]
        if wanted[row.name] == now:
            continue
        if row.reload:
            used[row.name] = wanted[row.name]
            changed.append(row.name)
        elif row.name != "port" or wanted["port"]:
            waiting.append(row.name)
    if waiting:
        log.warning(
            "settings that are taken up at the next start only",
            extra={"changed": ",".join(waiting)},
        )
    return changed
