"""What reading processes beside the writer bring: queries a second of several clients, each a process of its own.

    python -m bench serving readers

Servers over copies of one folder, alike but for `read_processes`, are asked in turn by the same number of client
processes through the port that their processes share, so that the kernel deals out the connections: by chance,
and not evenly. Each client has asyncio tasks or threads with one query each under way. Servers and clients are on
the same machine and share its cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .. import datasets
from ..index.tables import table
from ..peers.server import Server
from . import pages
from .queries import NAME, K, asked, fill

CLIENTS = ("1x8", "2x4", "4x2", "2x16")
KINDS = ("vecdb, asyncio", "vecdb, threads")


class _Serving:
    """A server over a folder, with so many reading processes."""

    def __init__(self, folder: Path, readers: int) -> None:
        words = ["-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0"]
        more = ["--read-processes", str(readers)]
        self._server = Server([sys.executable, *words, *more], heard=True)
        self.address = self._server.first_line().split()[-1]

    def close(self) -> None:
        self._server.stop()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench serving readers", description=__doc__)
    parser.add_argument("--rows", type=int, help="rows to take; default: all of the set")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure (default 2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--readers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clients", nargs="+", default=list(CLIENTS), help="processes x callers")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args(arguments)
    results = {
        **pages.begun("serving", "readers", *arguments),
        **run(args.rows, args.queries, args.seconds, args.rounds, args.readers, args.clients),
    }
    pages.save(args.results, "serving-readers", results, page(results))
    return 0


def run(
    rows: int | None,
    queries: int,
    seconds: float,
    rounds: int,
    readers: Sequence[int],
    clients: Sequence[str],
) -> dict[str, Any]:
    import vecdb

    dataset = datasets.load(rows, queries, 1)
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as root:
        first = Path(root) / f"{readers[0]}"
        with vecdb.open(first) as database:
            fill(database.create_collection(NAME, dimension=dataset.vectors.shape[1]), dataset)
        folders = {count: Path(root) / f"{count}" for count in readers}
        for folder in folders.values():
            if folder != first:
                shutil.copytree(first, folder)
        servers: dict[int, _Serving] = {}
        try:
            for count, folder in folders.items():
                servers[count] = _Serving(folder, count)
            figures = _rounds(servers, dataset.queries, seconds, rounds, clients)
        finally:
            for server in servers.values():
                server.close()
    return {
        "dataset": {"name": dataset.name, "rows": len(dataset.ids)},
        "dimension": int(dataset.vectors.shape[1]),
        "rounds": rounds,
        "seconds": seconds,
        "figures": figures,
    }


def _rounds(
    servers: dict[int, _Serving], queries: Any, seconds: float, rounds: int, clients: Sequence[str]
) -> list[dict[str, Any]]:
    seen: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for turn in range(-1, rounds):
        for one in clients:
            for kind in KINDS:
                for count, server in servers.items():
                    processes, callers = map(int, one.split("x"))
                    found = asked(("", server.address, queries), kind, processes, callers, seconds)
                    if turn >= 0:  # the round before only brings collections into memory
                        seen.setdefault((one, kind, count), []).append(found)
    return [
        {
            "clients": one,
            "kind": kind,
            "read_processes": count,
            **{name: median(each[name] for each in all_) for name in all_[0]},
            "lowest": min(each["queries_per_s"] for each in all_),
            "highest": max(each["queries_per_s"] for each in all_),
        }
        for (one, kind, count), all_ in seen.items()
    ]


def page(results: dict[str, Any]) -> str:
    """The page of a run."""
    dataset, figures = results["dataset"], results["figures"]
    least = min(f["read_processes"] for f in figures)
    alone = {
        (f["clients"], f["kind"]): f["queries_per_s"]
        for f in figures
        if f["read_processes"] == least
    }
    lines = [
        (
            f["clients"],
            f["kind"].removeprefix("vecdb, "),
            str(f["read_processes"]),
            f"{f['queries_per_s']:,.0f} ({f['lowest']:,.0f}-{f['highest']:,.0f})",
            f"{f['queries_per_s'] / alone[f['clients'], f['kind']]:.2f}",
            f"{f['p50_ms']:.2f}",
            f"{f['p99_ms']:.2f}",
        )
        for f in figures
    ]
    header = ("processes x callers", "who", "read_processes", "queries/s", f"of that with {least}",
              "p50, ms", "p99, ms")  # fmt: skip
    return pages.page(
        "Reading processes",
        results,
        (
            f"{dataset['name']}: {dataset['rows']:,} rows of {results['dimension']} dimensions, k = {K}, ids and "
            f"distances. Servers and clients on the same machine; medians of {results['rounds']} rounds of "
            f"{results['seconds']:g} s in turns, lowest and highest rate in brackets; p99 of the slowest client.\n",
            table(header, lines),
        ),
    )
