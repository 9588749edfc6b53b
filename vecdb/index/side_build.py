"""Making, reading and keeping the graph that a filter wants; see `side.py`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import Corrupted
from . import choice, side_files
from .build import Build
from .makers import Job
from .side import MEMORY_SHARE, SideGraph, Sides, Wanted

log = logging.getLogger("vecdb")


class Served(Job, Protocol):
    """An index, as far as a graph of it needs to know."""

    settings: Mapping[str, Any]


def serve_next(
    job: Served, sides: Sides, cancel: threading.Event, folder: Path | None, main_file: str
) -> int:
    """Puts the next graph that is wanted into service; its rows, 0 for none. See `Index.build_side`."""
    wanted, graph = sides.wanted(), None
    if wanted is None:
        return 0
    if wanted.path is not None:
        return _read(sides, wanted, wanted.path)
    code = wanted.main.code
    build = Build(job, "hnsw", code, 1, cancel, lambda share: None, lambda *_: None)
    try:
        # Only the codes that it is built over are copied; see `makers.graph_among`.
        small = code if code == "float16" else "sq8"
        choice.check_budget("hnsw", small, job.dimension, 0, wanted.allowed.count, 0, job.settings)
        graph = build.beside(wanted)
    finally:
        if not cancel.is_set():
            sides.put(wanted, graph)
    if graph is None:
        return 0
    if folder is not None and not cancel.is_set():
        _keep(sides, wanted, graph, folder, main_file)
    return graph.n


def _read(sides: Sides, wanted: Wanted, path: Path) -> int:
    why = "too many of its rows are dead, or others may answer"
    try:
        graph = side_files.load(path, wanted.key, wanted.main, wanted.allowed)
    except Corrupted as error:
        graph, why = None, error.message
    if graph is None:
        sides.unsaved(wanted.key)
        side_files.remove(path, why)
        return 0
    sides.put(wanted, graph)
    return graph.n


def _keep(sides: Sides, wanted: Wanted, graph: SideGraph, folder: Path, main_file: str) -> None:
    most_bytes = int(MEMORY_SHARE * wanted.main.nbytes)
    try:
        path = side_files.save(graph, wanted.key, folder, main_file, most_bytes)
    except OSError as error:
        # It serves all the same, and is earned again after a restart.
        log.warning("a graph for a filter is not kept in a file: %s", error)
    else:
        sides.saved(wanted.key, path)
