"""Durable inserts through the server, beside the same batches inserted by the engine without a network.

    python -m bench serving ingest

Batches of 1,000 rows with document and four fields, no index built behind, an acknowledgement for each once it is
on the disk. In turns, each on a fresh database: embedded; the client's `ingest`, one stream; `insert`, a call a
batch; the asyncio client's `ingest`. Server and sender have a process each, on the same machine. Batches lie in memory before the clock
starts.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..children import Child
from ..index.tables import table
from ..sources import DATASETS, Part, Source, WordNet, prepare
from ..stages import Stages
from . import pages

NAME = "bench"
BATCH = 1_000
KINDS = ("embedded", "client, ingest", "client, insert", "asyncio, ingest")

ENGINE = (
    ("engine: check and encode", "vecdb.batch", "check_columns"),
    ("engine: check and encode", "vecdb.writes", "Put.__init__"),
    ("engine: LMDB transaction", "vecdb.store", "CollectionStore.commit"),
    ("engine: index, ids, columns", "vecdb.core", "Core._publish"),
)
SERVER = (
    ("server: bytes to message", "grpc._common", "deserialize"),
    ("server: limits", "vecdb_server.limits", "Limits.check"),
    ("server: message to columns", "vecdb_server.service_records", "_columns"),
    *ENGINE,
)
CLIENT = (
    ("client: columns", "vecdb_client.batches", "to_columns"),
    ("client: columns", "vecdb_client.batches", "cut"),
    ("client: message", "vecdb_client.wire", "encode_columns"),
    ("client: bytes", "grpc._common", "serialize"),
)


def _batches(source: Source) -> list[Part]:
    rows = source.rows
    return [source.part(start, min(start + BATCH, rows)) for start in range(0, rows, BATCH)]


class Embedded:
    """Runs in a child."""

    def __init__(self, source: Source, folder: Path) -> None:
        import vecdb

        self._stages = Stages(ENGINE)
        self._database = vecdb.open(folder, auto_build=False)
        self._collection = self._database.create_collection(NAME, dimension=source.dimension)
        self._parts = _batches(source)

    def run(self) -> dict[str, Any]:
        begun_s, used_s = time.perf_counter(), time.process_time()
        for part in self._parts:
            self._collection.insert(
                part.ids, part.vectors, metadata=part.metadata, documents=part.documents
            )
        return _figures(begun_s, used_s, self._stages)

    def close(self) -> None:
        self._database.close()


class Sender:
    """Runs in a child; sends to a server at `address`."""

    def __init__(self, source: Source, address: str) -> None:
        import vecdb_client.aio

        self._stages = Stages(CLIENT)
        self._address = address
        self._client = vecdb_client.connect(address, timeout_s=600)
        self._collection = self._client.create_collection(NAME, dimension=source.dimension)
        self._parts = _batches(source)

    def run(self, kind: str) -> dict[str, Any]:
        self._stages.reset()
        batches = [(p.ids, p.vectors, p.metadata, p.documents) for p in self._parts]
        begun_s, used_s = time.perf_counter(), time.process_time()
        if kind == "client, ingest":
            sent = sum(ack.count for ack in self._collection.ingest(batches))
        elif kind == "client, insert":
            sent = sum(
                self._collection.insert(ids, vectors, metadata=metadata, documents=documents).count
                for ids, vectors, metadata, documents in batches
            )
        else:
            sent = asyncio.run(self._by_asyncio(batches))
        figures = _figures(begun_s, used_s, self._stages)
        wanted = sum(len(part.ids) for part in self._parts)
        if not sent == wanted == self._collection.count():
            raise RuntimeError(f"{sent} of {wanted} rows were acknowledged")
        return figures

    async def _by_asyncio(self, batches: Sequence[Any]) -> int:
        from vecdb_client.aio import connect

        async with connect(self._address) as client:
            collection = await client.get_collection(NAME)
            return sum([ack.count async for ack in collection.ingest(batches)])


def _figures(begun_s: float, used_s: float, stages: Stages) -> dict[str, Any]:
    return {
        "seconds": time.perf_counter() - begun_s,
        "processor_s": time.process_time() - used_s,
        "taken_s": stages.taken_s,
        "absent": stages.absent,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench serving ingest", description=__doc__)
    parser.add_argument("--dataset", choices=DATASETS, help="default: WordNet where it is")
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="of the databases; default: a temporary one")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args(arguments)
    dataset = args.dataset or ("wordnet" if WordNet.available() else "clusters")
    cache = Path(tempfile.gettempdir()) / "vecdb-bench"
    source = prepare(dataset, args.rows, 1, 1, cache)
    results = pages.begun("serving", "ingest", *arguments)
    results["dataset"] = {"name": source.name, "rows": source.rows, "dimension": source.dimension}
    results["rounds"] = []
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=args.folder) as folder:
        for _ in range(args.rounds):
            results["rounds"].append({kind: _turn(kind, source, Path(folder)) for kind in KINDS})
    pages.save(args.results, "serving-ingest", results, page(results))
    return 0


def _turn(kind: str, source: Source, folder: Path) -> dict[str, Any]:
    """Figures of one way on a fresh database: rows/s, and seconds by part."""
    place = folder / "database"
    if kind == "embedded":
        with Child("bench.serving.ingest:Embedded", source, place) as child:
            found = child.call("run")
            child.call("close")
    else:
        settings = {"auto_build": False}
        with Child("bench.serving.inside:Server", place, SERVER, settings) as server:
            with Child("bench.serving.ingest:Sender", source, server.call("address")) as sender:
                server.call("reset")
                found = sender.call("run", kind)
                there = server.call("taken")
            server.call("stop")
        found["taken_s"] = {**found["taken_s"], **there["taken_s"]}
        found["absent"] += there["absent"]
        found["server_processor_s"] = there["processor_s"]
    shutil.rmtree(place)
    return {"rows_per_s": source.rows / found["seconds"], **found}


def page(results: dict[str, Any]) -> str:
    """The page of a run."""
    rounds, data = results["rounds"], results["dataset"]
    batches = data["rows"] / BATCH
    rates = {kind: [one[kind]["rows_per_s"] for one in rounds] for kind in KINDS}

    def ratio(kind: str) -> list[float]:
        return [one[kind]["rows_per_s"] / one["embedded"]["rows_per_s"] for one in rounds]

    def ms(kind: str, *names: str) -> str:
        """Milliseconds a batch, median of the rounds; nothing where the way has no such part."""
        found = []
        for one in rounds:
            figure: Any = one[kind]
            for name in names:
                figure = figure.get(name, {} if name != names[-1] else None)
            if figure is None:
                return ""
            found.append(1e3 * figure / batches)
        return f"{median(found):.2f}"

    lines = [
        (
            kind,
            f"{median(rates[kind]):,.0f} ({min(rates[kind]):,.0f}-{max(rates[kind]):,.0f})",
            f"{median(ratio(kind)):.2f} ({min(ratio(kind)):.2f}-{max(ratio(kind)):.2f})",
        )
        for kind in KINDS
    ]
    names = list(dict.fromkeys(name for name, *_ in (*CLIENT, *SERVER)))
    parts = [(name, *(ms(kind, "taken_s", name) for kind in KINDS)) for name in names]
    parts += [
        ("wall clock", *(ms(kind, "seconds") for kind in KINDS)),
        ("processor, sender or embedded", *(ms(kind, "processor_s") for kind in KINDS)),
        ("processor, server", *(ms(kind, "server_processor_s") for kind in KINDS)),
    ]
    absent = sorted({name for one in rounds for kind in KINDS for name in one[kind]["absent"]})
    missing = [f"Not timed, because not found: {', '.join(absent)}.\n"] if absent else []
    return pages.page(
        "Inserts through the server",
        results,
        (
            f"{data['name']}: {data['rows']:,} rows of {data['dimension']} dimensions in batches of {BATCH:,} with "
            f"document and four fields, durable when acknowledged; medians of {len(rounds)} rounds, in each of which "
            "the ways take turns on fresh databases, lowest and highest in brackets.\n",
            table(("way", "rows/s", "of embedded"), lines),
            "Where it goes, in milliseconds a batch, each part without those inside it. Parts overlap: the client "
            "encodes, and the server reads and checks, while an earlier batch is committed.\n",
            table(("part", *KINDS), parts),
            *missing,
        ),
    )
