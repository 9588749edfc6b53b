"""Stores without an engine around them, and rows to put into them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from vecdb import errors
from vecdb.store import CollectionStore, EncodedRows, FieldShape, Shape, checksums, problems, vacuum

OPTIONS = {
    "map_initial_bytes": 1 << 26,
    "map_limit_bytes": 1 << 40,
    "durability": "commit",
    "durability_interval_ms": 100.0,
    "keep_old_format": True,
}
PLAIN = Shape(8, "float32")
NAMED = Shape(8, "float32", (FieldShape(24, "binary"), FieldShape(3, "float16")))


def create(folder, shape=PLAIN, **options):
    """A new store in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return CollectionStore.create(folder, b"{}", shape, {**OPTIONS, **options})


def reopen(folder, shape=PLAIN, *, read_only=False, **options):
    options = {**OPTIONS, **options}
    return CollectionStore.open(folder, lambda _: shape, options, read_only=read_only)


def row(number, shape=PLAIN):
    """What record version `number` holds: (vectors by field, metadata, document, content, uri)."""
    rng = np.random.default_rng(number)
    vectors = {}
    for field, one in enumerate(shape.fields):
        drawn = rng.integers(0, 100, one.width).astype(one.dtype)
        if not field or rng.random() < 0.6:
            vectors[field] = drawn
    parts = [b"%s of %d" % (part, number) if rng.random() < 0.7 else None
             for part in (b"metadata", b"document", b"\x01content", b"uri")]  # fmt: skip
    return vectors, *parts


def encode(numbers, shape=PLAIN):
    """`EncodedRows` of a mapping of id to version."""
    rows = [row(number, shape) for number in numbers.values()]
    named = {}
    for field, one in enumerate(shape.named, 1):
        vectors = np.full((len(rows), one.width), 77, one.dtype)
        present = np.array([field in r[0] for r in rows])
        for n in np.flatnonzero(present).tolist():
            vectors[n] = rows[n][0][field]
        if present.any():
            named[field] = (vectors, present)
    columns = [[r[part] for r in rows] for part in range(1, 5)]
    ids = [i.encode() for i in numbers]
    return EncodedRows(ids, np.stack([r[0][0] for r in rows]), *columns, named=named)


def put(store, numbers, shape=PLAIN):
    """Upserts records as one commit; its sequence."""
    rows = encode(numbers, shape)
    sums = checksums(rows)

    def work(writer, sequence):
        held = writer.rows_of_ids(rows.ids)
        writer.kill(held[held >= 0], sequence)
        writer.append(rows, sums)

    return store.commit(work)[1]


def delete(store, ids):
    def work(writer, sequence):
        names = [i.encode() for i in ids]
        held = writer.rows_of_ids(names)
        writer.forget([n for n, r in zip(names, held, strict=True) if r >= 0])
        writer.kill(held[held >= 0], sequence)

    return store.commit(work)[1]


def purge(store, horizon=None, **options):
    """Purges up to a commit (None: the newest); the rows that each step took."""
    if horizon is None:
        with store.read() as reader:
            horizon = reader.state().sequence
    return list(store.purge(horizon, **options))


def held(reader, ids, shape=PLAIN):
    """What a moment holds of these ids, each as `row` gives it, in the order of `ids`."""
    rows = reader.rows_of_ids([i.encode() for i in ids])
    assert (rows >= 0).all(), [i for i, r in zip(ids, rows, strict=True) if r < 0][:5]
    columns = [reader.raw(t, rows) for t in ("metadata", "documents", "contents", "uris")]
    vectors = [reader.vectors(rows, field) for field in range(len(shape.fields))]
    present = [reader.present(rows, field) for field in range(len(shape.fields))]
    return [
        ({f: v[n] for f, v in enumerate(vectors) if present[f][n]}, *(c[n] for c in columns))
        for n in range(len(rows))
    ]


def assert_holds(store, model, shape=PLAIN):
    """The store holds exactly the records of `model`, a mapping of id to version, and is sound."""
    with store.read() as reader:
        assert [*problems(reader)] == []
        assert_moment(reader, model, shape)


def assert_moment(reader, model, shape=PLAIN):
    assert reader.state().live == len(model)
    assert reader.rows_of_ids([b"never stored", b""]).tolist() == [-1, -1]
    for (vectors, *parts), number in zip(held(reader, model, shape), model.values(), strict=True):
        expected, *expected_parts = row(number, shape)
        assert parts == expected_parts
        assert vectors.keys() == expected.keys()
        assert all(np.array_equal(vectors[f], expected[f]) for f in expected)


def names(first, count):
    """Records with ids r<n> and versions n."""
    return {f"r{n}": n for n in range(first, first + count)}


def filled(folder, count=600):
    """(a store with a third of its records dead and purged, what it holds)."""
    store = create(folder)
    for first in range(0, count, 100):
        put(store, names(first, 100))
    delete(store, [f"r{n}" for n in range(0, count, 3)])
    purge(store)
    return store, {i: n for i, n in names(0, count).items() if n % 3}


def files(folder):
    return {path.name for path in folder.iterdir()}


# -- other processes

_CHILD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import os, random, resource, signal
from pathlib import Path
import store_rows
from vecdb import errors
from vecdb.store import vacuum
folder = Path(sys.argv[1])
"""


def child(code, *arguments):
    """A process that runs `code`, with pipes; its first argument is `folder`."""
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


READER = """
    shape = store_rows.Shape(int(sys.argv[2]), "float32")
    store = store_rows.reopen(folder, shape, read_only=True)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.startswith("open "):
            store.close()
            store = store_rows.reopen(Path(line[5:-1]), shape, read_only=True)
            continue
        with store.read() as reader:
            problems = [*store_rows.problems(reader)]
            ids = [i.encode() for i in line.split()]
            found = "".join("x" if r >= 0 else "-" for r in reader.rows_of_ids(ids))
            print(reader.format(), reader.state().sequence, found, *problems, flush=True)
"""


def reader_beside(folder, shape=PLAIN):
    """A process that has the store open read-only; see `ask`."""
    process = child(READER, folder, shape.dimension)
    assert process.stdout.readline() == "ready\n"
    return process


def ask(process, *ids):
    """[format, sequence, an x or - for each id, problems if there are any], as it reads them now."""
    process.stdin.write(" ".join(ids) + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip().split(maxsplit=3)


def close_between(store, monkeypatch):
    """Compacts a store whose new file cannot be put in its place, and closes it, as a crash at that moment leaves it."""

    def refuse(*_):
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(vacuum, "move_in", refuse)
        with pytest.raises(errors.ReadOnly):
            store.vacuum()
        store.close()
