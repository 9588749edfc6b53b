"""PostgreSQL with pgvector: a cluster of our own in the folder that is measured, or a server that runs already.

`BENCH_PGVECTOR` holds the words to connect to the latter, as libpq takes them; its tables are made in a schema of
their own, `vecdb_bench`, which is dropped first. Vectors travel in pgvector's binary form.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..datasets import Vectors
from ..sources import Condition, Part, Source
from . import EF_CONSTRUCTION, EF_SEARCH, M, postgres
from .base import NAME, Adapter, Unsupported
from .fields import ID, TEXT, VECTOR, Fields

VARIABLE = "BENCH_PGVECTOR"
_SCHEMA = "vecdb_bench"
_ITERATIVE = (0, 8)
"""Since this version a filter that leaves too few of what a walk found has it go on."""
_CORES = os.cpu_count() or 1
_TYPES = {str: "text", int: "int8", float: "float8", bool: "bool"}


class _Packed(bytes):
    """A vector as pgvector receives it: dimension, nothing, numbers; all with the most significant byte first."""

    @classmethod
    def of(cls, vector: Any) -> _Packed:
        numbers = np.asarray(vector)
        return cls(np.array([len(numbers), 0], ">i2").tobytes() + numbers.astype(">f4").tobytes())


class System(Adapter):
    """The knob is hnsw.ef_search. Each caller has a connection to itself while it asks."""

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("psycopg",)
    transport: ClassVar = "postgres"
    apart: ClassVar = True
    chosen: ClassVar[dict[str, Any]] = {
        "index": "HNSW, float32, built after the load",
        "m": M,
        "ef_construction": EF_CONSTRUCTION,
        "hnsw.iterative_scan": "strict_order, from pgvector 0.8 on",
        "indexes": "B-trees of the fields of filters",
        "plan_cache_mode": "force_custom_plan",
        "batches": "over as many connections as cores",
        "writes": "COPY for loads, INSERT ON CONFLICT for upserts",
        "shared_buffers": "4 x the raw vectors, 128 MiB at least, a quarter of the memory at most",
        "maintenance_work_mem": "3 x the raw vectors, 64 MiB at least, an eighth of the memory at most",
        "jit": "off",
    }
    _cluster: postgres.Cluster | None = None

    @classmethod
    def look(cls) -> None:
        cls.outside = VARIABLE in os.environ
        if not cls.outside:
            postgres.look()
        else:
            cls.chosen = {
                name: value
                for name, value in cls.chosen.items()
                if name not in ("shared_buffers", "maintenance_work_mem", "jit")
            }
        cls.durable = cls._durable_outside() if cls.outside else postgres.DURABLE
        held = ", ".join(f"{name} {value}" for name, value in cls.durable.items())
        cls.durability = f"every call a transaction; {held}"

    @classmethod
    def _durable_outside(cls) -> dict[str, str]:
        with _connected(os.environ[VARIABLE]) as connection:
            return _durable(connection)

    @classmethod
    def version(cls) -> str:
        vector, server = cls._version_outside() if cls.outside else postgres.versions()
        return f"{vector}, PostgreSQL {server}"

    @classmethod
    def _version_outside(cls) -> tuple[str, str]:
        with _connected(os.environ[VARIABLE]) as connection:
            server = connection.info.parameter_status("server_version")
            there = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
            found = connection.execute(there).fetchone()
        if found is None:
            raise Unsupported(f"PostgreSQL {server} there has no pgvector")
        return found[0], server

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        self._source = source
        self._fields = Fields.of(source)
        self._free: list[Any] = []
        self._set = "SET plan_cache_mode = force_custom_plan"
        self._table = f"{_SCHEMA}.{NAME}"
        if VARIABLE in os.environ:
            self._words = os.environ[VARIABLE]
            folder.mkdir(parents=True, exist_ok=True)
        else:
            self._cluster = postgres.Cluster(folder, source.raw_bytes, create=create)
        try:
            self._begin(create=create)
        except BaseException:
            self.close()
            raise

    def _begin(self, *, create: bool) -> None:
        if self._cluster is not None:
            self._words = self._cluster.words
            self._cluster.reached(lambda: _connected(self._words)).close()
        with _connected(self._words) as plain:
            if create:
                plain.execute(f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE")
                plain.execute("CREATE EXTENSION IF NOT EXISTS vector")
                plain.execute(f"CREATE SCHEMA {_SCHEMA}")
            if self._cluster is not None and (there := _durable(plain)) != postgres.DURABLE:
                raise RuntimeError(f"the server is not durable: {there}")
            asked = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
            number = plain.execute(asked).fetchone()[0]
        if tuple(map(int, number.split(".")[:2])) >= _ITERATIVE:
            self._set += "; SET hnsw.iterative_scan = strict_order"
        if create:
            self._create()

    def _create(self) -> None:
        fields = "".join(f'"{name}" {_TYPES[kind]}, ' for name, kind in self._fields.kinds.items())
        self._run(
            f"CREATE TABLE {self._table} ({ID} text PRIMARY KEY, {VECTOR} vector({self._source.dimension}), "
            f"{fields}{TEXT} text)"
        )

    def _columns(self) -> list[str]:
        return [VECTOR, *(f'"{name}"' for name in self._fields.kinds), TEXT]

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """One that nobody uses now, or a new one."""
        try:
            held = self._free.pop()
        except IndexError:
            held = _connected(self._words, packed=True)
            held.execute(self._set)
        try:
            yield held
        finally:
            self._free.append(held)

    def _run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        with self._connection() as connection:
            return connection.execute(statement, values)

    def tune(self, setting: float) -> None:
        self._set = (
            f"{self._set.partition('; SET hnsw.ef_search')[0]}; SET hnsw.ef_search = {int(setting)}"
        )
        for connection in self._free:
            connection.execute(self._set)

    def insert(self, start: int, part: Part) -> None:
        columns = f"({ID}, {', '.join(self._columns())})"
        types = ["text", "vector", *(_TYPES[kind] for kind in self._fields.kinds.values()), "text"]
        words = f"COPY {self._table} {columns} FROM STDIN (FORMAT BINARY)"
        with (
            self._connection() as connection,
            connection.transaction(),
            connection.cursor().copy(words) as copied,
        ):
            copied.set_types(types)
            for record in self._records(part):
                copied.write_row(record)

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        names = self._columns()
        places = ", ".join(["%s"] * (len(names) + 1))
        replaced = ", ".join(f"{name} = EXCLUDED.{name}" for name in names)
        statement = (
            f"INSERT INTO {self._table} ({ID}, {', '.join(names)}) VALUES ({places}) "
            f"ON CONFLICT ({ID}) DO UPDATE SET {replaced}"
        )
        with self._connection() as connection, connection.transaction():
            connection.cursor().executemany(statement, self._records(part))

    def _records(self, part: Part) -> list[tuple[Any, ...]]:
        return [
            (
                part.ids[i],
                _Packed.of(part.vectors[i]),
                *self._fields.values(one).values(),
                part.documents[i],
            )
            for i, one in enumerate(part.metadata)
        ]

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        self._run(f"DELETE FROM {self._table} WHERE {ID} = ANY(%s)", [list(ids)])

    def count(self) -> int:
        return int(self._run(f"SELECT count(*) FROM {self._table}").fetchone()[0])

    def ready(self) -> None:
        table, name = self._table, self._table.rpartition(".")[2]
        self._run(
            f"CREATE INDEX IF NOT EXISTS {name}_vector ON {table} USING hnsw ({VECTOR} vector_cosine_ops) "
            f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
        )
        for field in self._fields.indexed:
            self._run(f'CREATE INDEX IF NOT EXISTS "{name}_{field}" ON {table} ("{field}")')
        self._run(f"ANALYZE {table}")

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return [_Packed.of(one) for one in queries]

    def where(self, condition: Condition) -> Any:
        return f'WHERE "{condition.field}" {condition.op} %s', condition.value

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        text, values = ("", ()) if where is None else (where[0], (where[1],))
        found = self._run(
            f"SELECT {ID}, {VECTOR} <=> %s AS distance FROM {self._table} {text} "
            f"ORDER BY distance LIMIT {k}",
            (vector, *values),
        ).fetchall()
        return [one[0] for one in found], [one[1] for one in found]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        packed = [_Packed.of(one) for one in queries]
        # A connection is a process of PostgreSQL, which has no call for several: as many are asked as there are cores.
        with ThreadPoolExecutor(_CORES) as pool:
            return list(pool.map(lambda one: self.query(one, k, None, setting)[0], packed))

    def rows(self, ids: Any) -> Sequence[int]:
        return self._source.rows_of(ids)

    def in_force(self) -> dict[str, str]:
        with self._connection() as connection:
            return _durable(connection)

    def link(self) -> Any:
        return self._words, self._set, self._table

    @classmethod
    def joined(cls, source: Source, link: Any) -> Self:
        made = cls.__new__(cls)
        made._source, made._fields, made._free = source, Fields.of(source), []
        made._words, made._set, made._table = link
        return made

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made._table = f"{_SCHEMA}.{name.replace('-', '_')}"
        made._create()
        return made

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        if self._cluster is not None:
            self._cluster.stop()


def _connected(words: str, *, packed: bool = False) -> Any:
    """A connection that commits by itself. `packed`: vectors can be sent in their binary form, for which pgvector has to
    be there already."""
    psycopg: Any = importlib.import_module("psycopg")
    held = psycopg.connect(words, autocommit=True)
    if packed:
        kind = importlib.import_module("psycopg.types").TypeInfo.fetch(held, "vector")
        kind.register(held)
        held.adapters.register_dumper(_Packed, _dumper(kind.oid))
    return held


def _dumper(number: int) -> Any:
    """What sends vectors as they are packed; `number` is the type's in that database."""
    plain: Any = importlib.import_module("psycopg.types.string").BytesBinaryDumper
    return type("PackedDumper", (plain,), {"oid": number})


def _durable(connection: Any) -> dict[str, str]:
    """The settings that decide it, as they are in force."""
    return {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in postgres.DURABLE}
