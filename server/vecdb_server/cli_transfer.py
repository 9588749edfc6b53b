"""The commands `import` and `export`: records between files and a collection."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from .cli_export import sink
from .cli_files import Batch, Fields, read_batches
from .cli_target import EXIT_OK, EXIT_USAGE, CommandFailed, Target, opened

# Errors after which a write may have happened all the same.
_UNCERTAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL"}

_CREATION_FLAGS = (
    "metric", "storage", "index", "quantization", "target_recall", "device", "description",
)  # fmt: skip


def run_import(args: argparse.Namespace, target: Target) -> int:
    """Writes a file into a collection, batch by batch; each is durable when the next one starts."""
    from vecdb_client.progress import Progress

    fields = Fields(
        id=args.id_field,
        vector=args.vector_field,
        document=args.document_field,
        uri=args.uri_field,
        metadata=None if args.metadata_fields is None else _names(args.metadata_fields),
    )
    batches = read_batches(
        Path(args.file), args.vectors, fields, batch_size=args.batch_size, skip=args.skip
    )
    started_s = time.perf_counter()
    done = 0
    sequence = 0
    progress = Progress(f"into {args.collection}")
    with opened(target, write=True) as database:
        try:
            collection = None
            for batch in batches:
                if collection is None:
                    collection = _collection(database, args, batch)
                write = collection.upsert if args.upsert else collection.insert
                with _undisturbed():
                    sequence = write(**batch.columns()).sequence
                    done += len(batch.ids)
                progress.show(done, batch.share)
        except BaseException as error:
            progress.close()
            # Of a batch that took several messages some may be stored.
            done += getattr(error, "details", {}).get("acknowledged", 0)
            if done:
                print(_stored(done, args.skip, error), file=sys.stderr)
            raise
        progress.close()
        if collection is None:
            collection = _without_rows(database, args)
        if args.build_index:
            collection.build_index(wait=True, timeout_s=target.no_limit_s)
    seconds = time.perf_counter() - started_s
    if args.json:
        print(json.dumps({"count": done, "sequence": sequence, "seconds": round(seconds, 3)}))
    else:
        rate = done / max(seconds, 1e-9)
        print(f"{done:,} rows into {args.collection} in {seconds:.1f} s ({rate:,.0f} rows/s)")
    return EXIT_OK


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, so that a batch is never stored without being counted.

    A second Ctrl-C does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    pending = False

    def handle(_: int, __: FrameType | None) -> None:
        nonlocal pending
        if pending:
            raise KeyboardInterrupt
        pending = True

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        raise KeyboardInterrupt


def _stored(done: int, skip: int, error: BaseException) -> str:
    text = f"vecdb: {done:,} rows are stored; go on behind them with --skip {skip + done}"
    if getattr(error, "reason", "") in _UNCERTAIN:
        text += " --upsert (the batch behind them may be stored as well)"
    return text


def _collection(database: Any, args: argparse.Namespace, first: Batch) -> Any:
    if not args.create:
        return database.get_collection(args.collection)
    settings = creation_settings(args)
    width = first.vectors.shape[1]
    fields = {name: {"dimension": width} for name, width in first.named_widths().items()}
    if fields:
        settings["vectors"] = {**fields, **settings.get("vectors", {})}
    return database.create_collection(
        args.collection,
        dimension=8 * width if args.storage == "binary" else width,
        exist_ok=True,
        **settings,
    )


def _without_rows(database: Any, args: argparse.Namespace) -> Any:
    """The collection that no row came for: an import into one that is not there fails all the same."""
    try:
        return database.get_collection(args.collection)
    except LookupError:
        if not args.create:
            raise
        raise CommandFailed(
            f"{args.file} gave no rows, so the dimension of the new collection {args.collection!r} is"
            " not known; make it with `vecdb create`"
        ) from None


def creation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `create_collection` that were given; defaults are the engine's."""
    given = {
        name: getattr(args, name) for name in _CREATION_FLAGS if getattr(args, name) is not None
    }
    if args.fields:
        given["vectors"] = dict(args.fields)
    if args.schema is not None:
        try:
            given["schema"] = json.loads(args.schema)
        except ValueError as error:
            raise CommandFailed(f"--schema takes a JSON object: {error}", EXIT_USAGE) from error
        if not isinstance(given["schema"], dict):
            raise CommandFailed(
                f"--schema takes a JSON object, given {args.schema[:60]}", EXIT_USAGE
            )
    return given


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def run_export(args: argparse.Namespace, target: Target) -> int:
    """Writes all records of a collection, or those that match a filter, to a file."""
    from vecdb_client.progress import Progress

    path = Path(args.file)
    started_s = time.perf_counter()
    done = 0
    include = tuple(_names(args.include))
    if "vector" not in include and path.name.endswith((".npz", ".npy")):
        raise CommandFailed("a NumPy file needs the vectors: add vector to --include", EXIT_USAGE)
    with opened(target) as database:
        collection = database.get_collection(args.collection)
        progress = Progress(f"from {args.collection}", collection.count(args.filter))
        with sink(path, collection.info, named="named_vectors" in include) as out:
            try:
                for records in collection.scan(filter=args.filter, include=include):
                    out.write(records)
                    done += len(records)
                    progress.show(done)
            finally:
                progress.close()
    seconds = time.perf_counter() - started_s
    if path.name == "-":
        return EXIT_OK
    if args.json:
        print(json.dumps({"count": done, "file": str(path), "seconds": round(seconds, 3)}))
    else:
        print(f"{done:,} rows into {path} in {seconds:.1f} s")
    return EXIT_OK
