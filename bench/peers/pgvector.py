"""PostgreSQL with pgvector, a server that runs already: `BENCH_PGVECTOR` holds the words to connect to it.

Its tables are made in a schema of their own, `vecdb_bench`, which is dropped first.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..datasets import Vectors
from ..sources import Condition, Part, Source
from . import EF_CONSTRUCTION, EF_SEARCH, M
from .base import NAME, Adapter, Unsupported
from .fields import ID, TEXT, VECTOR, Fields

VARIABLE = "BENCH_PGVECTOR"
_SCHEMA = "vecdb_bench"


class System(Adapter):
    """The knob is hnsw.ef_search. Each caller has a connection to itself while it asks."""

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("psycopg",)
    transport: ClassVar = "postgres"
    outside: ClassVar = True
    durability: ClassVar = "every call a transaction; what synchronous_commit of the server says"
    chosen: ClassVar = {
        "index": "HNSW, float32",
        "m": M,
        "ef_construction": EF_CONSTRUCTION,
        "hnsw.iterative_scan": "strict_order",
        "indexes": "the fields of filters",
    }

    @classmethod
    def look(cls) -> None:
        if VARIABLE not in os.environ:
            raise Unsupported(f"{VARIABLE} names no server")

    @classmethod
    def version(cls) -> str:
        with importlib.import_module("psycopg").connect(os.environ[VARIABLE]) as connection:
            server = connection.info.parameter_status("server_version")
            there = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
            found = connection.execute(there).fetchone()
        if found is None:
            raise Unsupported(f"PostgreSQL {server} there has no pgvector")
        return f"{found[0]}, PostgreSQL {server}"

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        self._source = source
        self._fields = Fields.of(source)
        self._psycopg: Any = importlib.import_module("psycopg")
        self._free: list[Any] = []
        self._set = "SET hnsw.iterative_scan = strict_order"
        self._table = f"{_SCHEMA}.{NAME}"
        folder.mkdir(parents=True, exist_ok=True)
        if create:
            self._run(f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE")
            self._run("CREATE EXTENSION IF NOT EXISTS vector")
            self._run(f"CREATE SCHEMA {_SCHEMA}")
            self._create()

    def _create(self) -> None:
        of = {str: "text", int: "bigint", float: "double precision", bool: "boolean"}
        fields = "".join(f'"{name}" {of[kind]}, ' for name, kind in self._fields.kinds.items())
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
            held = self._psycopg.connect(os.environ[VARIABLE], autocommit=True)
            held.execute(self._set)
        try:
            yield held
        finally:
            self._free.append(held)

    def _run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        with self._connection() as connection:
            return connection.execute(statement, values)

    def tune(self, setting: float) -> None:
        self._set = f"SET hnsw.iterative_scan = strict_order; SET hnsw.ef_search = {int(setting)}"
        for connection in self._free:
            connection.execute(self._set)

    def insert(self, start: int, part: Part) -> None:
        columns = f"({ID}, {', '.join(self._columns())})"
        with (
            self._connection() as connection,
            connection.transaction(),
            connection.cursor().copy(f"COPY {self._table} {columns} FROM STDIN") as copy,
        ):
            for record in self._records(part):
                copy.write_row(record)

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
                _text(part.vectors[i]),
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
        return [_text(one) for one in queries]

    def where(self, condition: Condition) -> Any:
        return f'WHERE "{condition.field}" {condition.op} %s', condition.value

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        text, values = ("", ()) if where is None else (where[0], (where[1],))
        found = self._run(
            f"SELECT {ID}, {VECTOR} <=> %s::vector AS distance FROM {self._table} {text} "
            f"ORDER BY distance LIMIT {k}",
            (vector, *values),
        ).fetchall()
        return [one[0] for one in found], [one[1] for one in found]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        return [self.query(_text(one), k, None, setting)[0] for one in queries]

    def rows(self, ids: Any) -> Sequence[int]:
        return self._source.rows_of(ids)

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made._table = f"{_SCHEMA}.{name.replace('-', '_')}"
        made._create()
        return made

    def close(self) -> None:
        for connection in self._free:
            connection.close()


def _text(vector: Any) -> str:
    return "[" + ",".join(map(str, np.asarray(vector).tolist())) + "]"
