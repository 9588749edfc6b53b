"""What is added to a collection's file of an earlier version when it is opened for writing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import StorageFull
from ..layout import COLLECTION_FORMAT, KEYED, META_FORMAT, META_KEYED
from .environment import Environment
from .meta_sums import Keeper, sums_of_meta
from .reader import Reader
from .shape import Shape


def sum_up(environment: Environment) -> None:
    """Makes the checksums of a file whose last writer knew none."""

    def is_due(transaction: Any) -> tuple[bool, int]:
        reader = Reader(environment, transaction, Shape(1, "float32"))
        return sums_of_meta(reader) is None, reader.state().sequence

    with environment.read() as transaction:
        due, _ = is_due(transaction)
    if due:
        # Without room the next commit makes them.
        with suppress(StorageFull):
            environment.write(
                lambda txn: Keeper(environment, txn, is_due(txn)[1]).finish(), "tables"
            )


def upgrade(environment: Environment) -> None:
    """Makes format 2 of format 1, in one commit: tables are added, and all rows are in `keys`."""

    def work(transaction: Any) -> None:
        environment.make_tables(transaction)
        rows = Reader(environment, transaction, Shape(1, "float32")).n_rows
        meta = environment.table("meta")
        transaction.put(META_KEYED, KEYED.pack(rows, rows), db=meta)
        transaction.put(META_FORMAT, str(COLLECTION_FORMAT).encode(), db=meta)

    environment.write(work, "upgrade")
