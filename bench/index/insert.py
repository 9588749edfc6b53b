"""Durable inserts as a collection grows, beside bare LMDB, with the shares of the time.

One process inserts batches of 1,000 rows with document and four fields, without an index being built behind; after every
10,000 rows it writes the same bytes to a bare LMDB file: vectors, ids, metadata and documents, one value a
row each, by `putmulti`, a commit with fsync a batch. Encoding is not part of the bare time. What happens to
both at the same moment is the disk's; what happens to one is its own.

A machine and its disk change within the minutes of a load, so the last mark's rate against the first's is not what
growth costs. That is measured at one moment: before each mark, every batch goes into the grown collection and then into a
fresh one of the same process, batch by batch in turn, and the same with bare LMDB.
"""

from __future__ import annotations

import shutil
import struct
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lmdb

from .. import host_memory
from ..children import Child
from ..peers import engine
from ..sources import Part, Source, encode
from ..stages import Stages
from ..worker import BATCH
from .plan import Plan
from .tables import count, number, table

MARKS = (10_000, 100_000, 1_000_000)
TURN = 10_000
"""Rows that one of the two inserts before it is the other's turn."""
WINDOW = 50_000
"""Rows before a mark that its rate is taken from. Ten commits are too few: where the disk holds a few of them
for 20 to 100 ms, the same code gave 0.66 and 0.90 of its first rate."""

STAGES = (
    ("LMDB transaction", "vecdb.store", "CollectionStore.commit"),
    ("encoding", "vecdb.batch", "check_columns"),
    ("encoding", "vecdb.writes", "Put.__init__"),
    ("index", "vecdb.index", "Index.append"),
    ("ids and columns", "vecdb.core", "Core._publish"),
)
"""What is timed: a name for the share, and the function. A stage inside another is taken off it. What the
engine does beside a commit, as the copy of a large batch into the tail, is in nobody's share."""


class Bare:
    """LMDB with the bytes of the rows and nothing else."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._environment = lmdb.open(str(folder), map_size=limit_bytes, max_dbs=4, readahead=False)
        names = (b"vectors", b"metadata", b"documents", b"ids")
        self._tables = [self._environment.open_db(name) for name in names]

    @staticmethod
    def columns(start: int, part: Part) -> list[list[tuple[bytes, bytes]]]:
        """Keys and values of the four tables; not timed."""
        keys = [struct.pack(">Q", row) for row in range(start, start + len(part.ids))]
        return [
            [(key, vector.tobytes()) for key, vector in zip(keys, part.vectors, strict=True)],
            [(key, encode(one)) for key, one in zip(keys, part.metadata, strict=True)],
            [(key, text.encode()) for key, text in zip(keys, part.documents, strict=True)],
            [(name.encode(), key) for key, name in zip(keys, part.ids, strict=True)],
        ]

    def put(self, columns: list[list[tuple[bytes, bytes]]]) -> None:
        with self._environment.begin(write=True) as transaction:
            for number_, (table_, items) in enumerate(zip(self._tables, columns, strict=True)):
                # Ids need not come in order; row numbers do.
                cursor = transaction.cursor(db=table_)
                cursor.putmulti(items, append=number_ < len(columns) - 1)

    def close(self) -> None:
        self._environment.close()


class Batch(NamedTuple):
    """One commit."""

    end: int
    """The row behind its last one."""
    rows: int
    taken_s: float


Batches = list[Batch]


class Fresh:
    """An empty collection and an empty bare file beside the grown ones, which get the rows before one mark too."""

    def __init__(self, mark: int, system: engine.System, folder: Path, limit_bytes: int) -> None:
        self.mark = mark
        self.grown: dict[str, Batches] = {"vecdb": [], "bare": []}
        self.fresh: dict[str, Batches] = {"vecdb": [], "bare": []}
        self._name = f"fresh-{mark}"
        self._folder = folder / self._name
        self._folder.mkdir(parents=True)
        self.system = system.another(self._name)
        self.bare = Bare(self._folder, limit_bytes)

    def close(self) -> None:
        """Takes both away again."""
        self.bare.close()
        self.system.database.drop_collection(self._name)
        shutil.rmtree(self._folder)

    def figures(self) -> dict[str, float]:
        return {
            f"{name}_{age}_{figure}": value
            for age, taken in (("grown", self.grown), ("fresh", self.fresh))
            for name, batches in taken.items()
            for figure, value in _of(batches).items()
        }


class Inserter:
    """Runs in a child."""

    def __init__(self, source: Source, folder: Path, bare: Path) -> None:
        self._source = source
        self._stages = Stages(STAGES)
        self._system = engine.System(source, folder, create=True, auto_build=False)
        self._limit_bytes = 4 * (source.raw_bytes + source.encoded_bytes) + (1 << 28)
        self._bare = Bare(bare, self._limit_bytes)
        self._aside = bare
        self._beside: dict[int, Fresh] = {}

    def run(self) -> dict[str, Any]:
        rows = self._source.rows
        starts = range(0, rows, BATCH)
        own: Batches = []
        bare: Batches = []
        first_touch: dict[int, float] = {}
        for first in range(0, len(starts), TURN // BATCH):
            window = [(s, min(s + BATCH, rows)) for s in starts[first : first + TURN // BATCH]]
            parts = [(start, self._source.part(start, stop)) for start, stop in window]
            beside = [self._fresh(stop) for _, stop in window]
            for (start, part), other in zip(parts, beside, strict=True):
                own.append(_insert(self._system, start, part))
                if other is not None:
                    other.grown["vecdb"].append(own[-1])
                    other.fresh["vecdb"].append(_insert(other.system, start, part))
            encoded = [self._bare.columns(start, part) for start, part in parts]
            for (start, part), columns, other in zip(parts, encoded, beside, strict=True):
                bare.append(_put(self._bare, start, part, columns))
                if other is not None:
                    other.grown["bare"].append(bare[-1])
                    other.fresh["bare"].append(_put(other.bare, start, part, columns))
            end = window[-1][1]
            first_touch[end] = host_memory.fresh_ms_a_mib()
            if end in self._beside:
                self._beside[end].close()
        all_own = own + [one for other in self._beside.values() for one in other.fresh["vecdb"]]
        total_s = sum(one.taken_s for one in all_own)
        shares = {name: taken_s / total_s for name, taken_s in self._stages.taken_s.items()}
        shares["other"] = 1 - sum(shares.values())
        self._system.close()
        self._bare.close()
        return {
            "vecdb": _rates(own),
            "bare": _rates(bare),
            "windows": _windows(own, bare),
            "beside": {str(mark): other.figures() for mark, other in self._beside.items()},
            "fresh_ms_a_mib": {str(mark): first_touch[mark] for mark in _marks(rows)},
            "shares": shares,
            "not_timed": self._stages.absent,
        }

    def _fresh(self, end: int) -> Fresh | None:
        """What else gets the batch that ends there: nothing, unless a mark is near."""
        before = 0
        for mark in _marks(self._source.rows):
            if max(before, mark - WINDOW) < end <= mark:
                if mark not in self._beside:
                    made = Fresh(mark, self._system, self._aside.parent, self._limit_bytes)
                    self._beside[mark] = made
                return self._beside[mark]
            before = mark
        return None


def _insert(system: engine.System, start: int, part: Part) -> Batch:
    begun_s = time.perf_counter()
    system.insert(start, part)
    return Batch(start + len(part.ids), len(part.ids), time.perf_counter() - begun_s)


def _put(bare: Bare, start: int, part: Part, columns: list[list[tuple[bytes, bytes]]]) -> Batch:
    begun_s = time.perf_counter()
    bare.put(columns)
    return Batch(start + len(part.ids), len(part.ids), time.perf_counter() - begun_s)


def _rates(batches: Batches) -> dict[str, float]:
    """Rows/s of the last rows before each mark and before the end, and of all."""
    rates = {"all": _of(batches)["rate"]}
    for mark in _marks(batches[-1].end):
        rates[str(mark)] = _of([one for one in batches if mark - WINDOW < one.end <= mark])["rate"]
    return rates


def _windows(own: Batches, bare: Batches) -> list[dict[str, float]]:
    """Rates of both, and the median commit in ms, over all rows, a window after the other."""
    batches = WINDOW // BATCH
    return [
        {
            "rows": own[min(first + batches, len(own)) - 1].end,
            **{
                f"{name}_{figure}": value
                for name, taken in (("vecdb", own), ("bare", bare))
                for figure, value in _of(taken[first : first + batches]).items()
            },
        }
        for first in range(0, len(own), batches)
    ]


def _of(batches: Batches) -> dict[str, float]:
    times_s = [one.taken_s for one in batches]
    rows = sum(one.rows for one in batches)
    return {"rate": rows / sum(times_s), "median_ms": 1e3 * median(times_s)}


def _marks(rows: int) -> list[int]:
    return sorted({rows, *(mark for mark in MARKS if mark <= rows)})


def _loads(plan: Plan, cached: host_memory.Cached | None) -> list[dict[str, Any]]:
    rounds = []
    for _ in range(plan.loads):
        if cached is not None:
            cached.read()
        folder, bare = plan.folder / "inserted", plan.folder / "bare"
        with Child("bench.index.insert:Inserter", plan.source, folder, bare) as child:
            rounds.append(child.call("run"))
        for done in (folder, bare):
            shutil.rmtree(done, ignore_errors=True)
        plan.say(
            f"  {rounds[-1]['vecdb']['all']:,.0f} rows/s, bare {rounds[-1]['bare']['all']:,.0f}"
        )
    return rounds


def run(plan: Plan) -> dict[str, Any]:
    with host_memory.taken(plan.folder) if plan.take_memory else nullcontext() as cached:
        rounds = _loads(plan, cached)

    def medians(name: str) -> dict[str, float]:
        return {key: median(one[name][key] for one in rounds) for key in rounds[0][name]}

    return {
        "rounds": rounds,
        "vecdb": medians("vecdb"),
        "bare": medians("bare"),
        "fresh_ms_a_mib": medians("fresh_ms_a_mib"),
        "beside": {
            mark: {key: median(one["beside"][mark][key] for one in rounds) for key in figures}
            for mark, figures in rounds[0]["beside"].items()
        },
        "took_memory": plan.take_memory,
        "shares": medians("shares"),
        "not_timed": rounds[0]["not_timed"],
    }


_AGES = ("grown", "fresh", "ratio", "median ms, grown", "fresh", "ratio")


def _ages(name: str, one: dict[str, float]) -> tuple[str, ...]:
    grown, fresh = one[f"{name}_grown_rate"], one[f"{name}_fresh_rate"]
    grown_ms, fresh_ms = one[f"{name}_grown_median_ms"], one[f"{name}_fresh_median_ms"]
    return (
        count(grown), count(fresh), number(grown / fresh),
        number(grown_ms), number(fresh_ms), number(grown_ms / fresh_ms),
    )  # fmt: skip


def page(found: dict[str, Any]) -> list[str]:
    own, bare, fresh = found["vecdb"], found["bare"], found["fresh_ms_a_mib"]
    held = ", all memory held by cached files before" if found["took_memory"] else ""
    rows = [
        (f"rows {int(mark):,}" if mark != "all" else mark, count(own[mark]), count(bare[mark]),
         number(own[mark] / bare[mark]), number(fresh[mark]) if mark in fresh else "")
        for mark in own
    ]  # fmt: skip
    marks = [mark for mark in own if mark != "all"]
    steady, bare_steady = (rates[marks[-1]] / rates[marks[0]] for rates in (own, bare))
    beside = [
        (f"{int(mark):,}", *_ages("vecdb", one), *_ages("bare", one))
        for mark, one in found["beside"].items()
    ]
    windows = [
        (f"{one['rows']:,}", count(one["vecdb_rate"]), count(one["bare_rate"]),
         number(one["vecdb_median_ms"]), number(one["bare_median_ms"]))
        for one in found["rounds"][0]["windows"]
    ]  # fmt: skip
    parts = [
        "## Insert\n\nDurable batches of 1,000 with document and four fields; rows/s of the last"
        f" {WINDOW:,} rows before each mark, or of all that there were; {len(found['rounds'])} load(s), alternating with bare"
        f" `putmulti` of the same bytes with the same fsyncs{held}. Fresh memory: the first touch of"
        " memory that belongs to no database, at that moment.\n",
        table(
            ("up to", "vecdb rows/s", "bare LMDB rows/s", "ratio", "fresh memory, ms a MiB"), rows
        ),
        f"Last mark to first: {steady:.2f}, of bare LMDB {bare_steady:.2f}. Share of the time: "
        + ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())
        + ".\n",
        "At one moment: before each mark every batch goes into the grown collection and then into a fresh one of the"
        f" same process, in turn, up to {WINDOW // BATCH} batches; the same with bare LMDB. Rows/s grown and fresh, the"
        " first by the second, and the same of the median commits.\n",
        table(
            ("rows", *(f"{name} {what}" for name in ("vecdb", "bare") for what in _AGES)), beside
        ),
    ]
    if len(windows) > 1:
        parts.append(f"Every {WINDOW:,} rows of the first load, and the median time of a commit:\n")
        heads = ("up to", "vecdb rows/s", "bare LMDB rows/s", "vecdb ms", "bare ms")
        parts.append(table(heads, windows))
    if found["not_timed"]:
        parts.append(f"Not timed, because not found: {', '.join(found['not_timed'])}.\n")
    return parts
