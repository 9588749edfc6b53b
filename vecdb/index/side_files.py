"""Graphs for filters in files, so that a restart does not take what they were earned for.

A file has one graph. Its name is that of the main index's graph file, which is never used twice, and a digest of
the filter; nothing else names it. It is a copy like all of the index: what cannot be read or does not serve any more
is removed, and the filter earns a graph again. Beside the rows that are joined nothing of the main index is in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import disk
from ..errors import Corrupted
from ..stopping import Interrupt
from .blocks import Allowed
from .calibrate import Curve, Point
from .door import faiss
from .main import Main
from .makers import joined_among
from .side import MOST_DEAD, MOST_KEPT, SideGraph

log = logging.getLogger("vecdb")

_WHAT = "index"
_MARK = ".filter-"
_OURS = re.compile(
    rf"index-[0-9a-f]{{16}}\.(rows|codes|faiss({re.escape(_MARK)}[0-9a-f]{{16}})?)({re.escape(disk.ASIDE_SUFFIX)})?"
)
"""What `files.save` and `save` name theirs, and what these were before they were complete."""
_MAGIC = b"vecdb filter graph 1\n"
_SEAL_BYTES = 32
_NO_GRAPH = "move it away: it is no graph, and none is missed"


def is_beside(name: str, main_file: str) -> bool:
    """Whether a file has a graph for a filter of the main index whose graph is in `main_file`."""
    return name.startswith(main_file + _MARK) and not name.endswith(disk.ASIDE_SUFFIX)


def is_ours(name: str) -> bool:
    """Whether a file in the folder of a collection has a name that an index gives, also of one not complete."""
    return _OURS.fullmatch(name) is not None


def known(folder: Path, main_file: str, *, read_only: bool) -> dict[str, Path]:
    """The files of a main index by the keys of their filters; reads the head of each, and removes those that have
    none unless `read_only`."""
    found = {}
    for path in _beside(folder, main_file):
        try:
            disk.must_be_file(path, _NO_GRAPH)
            with open(path, "rb") as file:
                found[str(_head(file)["key"])] = path
        except (OSError, ValueError, KeyError, TypeError, Corrupted) as error:
            if not read_only:
                remove(path, f"its head cannot be read: {error!r}")
    return found


def save(graph: SideGraph, key: str, folder: Path, main_file: str, most_bytes: int) -> Path:
    """Writes a graph durably, about 150 bytes a joined row; then removes the oldest files of this main index
    beyond `MOST_KEPT`, and beyond `most_bytes`. OSError when it cannot."""
    hnsw = graph.index.hnsw
    levels = faiss.vector_to_array(hnsw.levels)
    positions = np.flatnonzero(levels)
    links = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    head = {
        "key": key,
        "rows": positions.size,
        "main_rows": len(graph.rows),
        "links": len(links),
        "entry": int(hnsw.entry_point),
        "curve": asdict(graph.curve),
    }
    parts = [
        json.dumps(head, separators=(",", ":")).encode(),
        positions.astype("<i4").tobytes(),
        levels[positions].astype("<i4").tobytes(),
        links.astype("<i4").tobytes(),
    ]
    parts.insert(0, _MAGIC + len(parts[0]).to_bytes(4, "little"))
    seal = hashlib.sha256()
    path = folder / (main_file + _MARK + hashlib.blake2b(key.encode(), digest_size=8).hexdigest())
    with disk.written_aside(path, _WHAT) as file:
        for part in parts:
            seal.update(part)
            file.write(part)
        file.write(seal.digest())
    _keep_few(folder, main_file, most_bytes)
    return path


def load(path: Path, key: str, main: Main, allowed: Allowed) -> SideGraph | None:
    """The saved graph, over `main`, if it serves a filter that allows these positions now; None where it does
    not: too many of its rows have died, or it is not of this filter. Corrupted when it cannot be read."""
    head, positions, levels, links = _read(path)
    if head["key"] != key or head["main_rows"] != main.n:
        return None
    if allowed.count < (1.0 - MOST_DEAD) * positions.size:
        return None
    if np.count_nonzero(allowed.holds(positions[None])) != allowed.count:
        return None  # it lacks rows that may answer
    slots = faiss.vector_to_array(main.index.hnsw.cum_nneighbor_per_level)
    if not levels.size or levels.max() >= len(slots) or slots[levels].sum() != len(links):
        return None  # links as another version has laid them
    curve = dict(head["curve"])
    points = tuple(Point(**point) for point in curve.pop("points"))
    graph = joined_among(main, positions, levels, links, head["entry"])
    return SideGraph(main, graph, positions, Curve(points, **curve))


def faults(folder: Path, main_file: str, interrupt: Interrupt = lambda: None) -> list[str]:
    """What is wrong with the files of a main index, a sentence each. `interrupt` is called before each, and may
    raise."""
    found = []
    for path in _beside(folder, main_file):
        interrupt()
        try:
            _read(path)
        except Corrupted as error:
            if path.exists():  # else it was replaced while we looked
                found.append(error.message)
    return found


def remove(path: Path, why: str) -> None:
    """Removes a file that is of no use."""
    log.info("filter graph %s removed: %s", path.name, why)
    try:
        disk.remove(path, _WHAT)
    except OSError as error:
        log.warning("filter graph %s cannot be removed: %s", path.name, error)


def _beside(folder: Path, main_file: str) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if is_beside(path.name, main_file))


def _head(file: BinaryIO) -> dict[str, Any]:
    """ValueError where it is none."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not a filter graph of this version")
    found = json.loads(file.read(int.from_bytes(file.read(4), "little")))
    if not isinstance(found, dict):
        raise ValueError("its head is no object")
    return found


def _read(path: Path) -> tuple[dict[str, Any], Any, Any, Any]:
    """Head, positions (n,) int64 ascending, levels (n,) int32, links (m,) int32; Corrupted."""
    try:
        disk.must_be_file(path, _NO_GRAPH)
        raw = path.read_bytes()
        body, seal = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
        if hashlib.sha256(body).digest() != seal:
            raise Corrupted(
                f"index file {path.name} fails its checksum: its content was changed",
                file=path.name,
            )
        file = io.BytesIO(body)
        head, at = _head(file), file.tell()
        rows, count = int(head["rows"]), int(head["links"])
        numbers = np.frombuffer(body, "<i4", 2 * rows + count, at)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupted(
            f"index file {path.name} cannot be read: {error!r}", file=path.name
        ) from error
    positions, levels, links = np.split(numbers, [rows, 2 * rows])
    return head, positions.astype(np.int64), levels, links


def _keep_few(folder: Path, main_file: str, most_bytes: int) -> None:
    """Removes the oldest beyond `MOST_KEPT` files, and beyond so many bytes."""
    held = sorted(_beside(folder, main_file), key=lambda path: -path.stat().st_mtime_ns)
    taken = 0
    for number, path in enumerate(held):
        taken += path.stat().st_size
        if number and (number >= MOST_KEPT or taken > most_bytes):
            remove(path, "newer ones take the room")
