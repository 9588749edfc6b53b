"""A parsed filter: the nodes between the predicates, and how they share the work.

Every node answers for the rows of a `Scope` that its caller still wants, and may answer anything for
the others. `$and` narrows what is wanted from child to child and `$or` likewise, cheapest first, so
the parts that read the store (id text, documents) see only rows that nothing cheaper decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .columns import Columns
from .comparisons import Mask
from .predicates import Predicate, field_mask

COST_IDS, COST_NUMBER, COST_STRING, COST_ID_TEXT, COST_DOCUMENT = range(5)
"""Ranks of work, cheapest first: look-ups of ids, one pass over a column, one over its distinct
strings, ids as text, documents."""

_IDS_AT_ONCE = 65_536
_DOCUMENTS_AT_ONCE = 256
"""A document takes up to 16 MiB."""


class RowSource(Protocol):
    """What a filter needs of the store, all as of one moment. Called from the evaluating thread."""

    def rows_of_ids(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows that bear these ids, in any order; ids that are not stored are left out."""

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of rows, one each, in the given order."""

    def documents(self, rows: NDArray[np.int64]) -> list[str | None]:
        """Documents of rows, one each, in the given order; None where there is none."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Rows [start, stop) and where their values are."""

    columns: Columns
    source: RowSource
    start: int
    stop: int
    interrupt: Callable[[], None]

    def none(self) -> Mask:
        return np.zeros(self.stop - self.start, np.bool_)


class Node(Protocol):
    """One part of a filter."""

    @property
    def cost(self) -> int: ...

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        """Where the filter holds: bool, shape (stop - start,), a new array; see the module."""


@dataclass(frozen=True, slots=True)
class Everything:
    cost: int = COST_IDS

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        return ~scope.none()


@dataclass(frozen=True, slots=True)
class And:
    children: tuple[Node, ...]
    cost: int

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        for child in self.children:
            if not wanted.any():
                return scope.none()
            wanted = wanted & child.mask(scope, wanted)
        return wanted


@dataclass(frozen=True, slots=True)
class Or:
    children: tuple[Node, ...]
    cost: int

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        found = scope.none()
        for child in self.children:
            # What the child says outside `rest` is either found already or not wanted at all.
            rest = wanted & ~found
            if not rest.any():
                break
            found |= child.mask(scope, rest)
        return found


@dataclass(frozen=True, slots=True)
class Not:
    child: Node
    cost: int

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        return ~self.child.mask(scope, wanted)


@dataclass(frozen=True, slots=True)
class Field:
    """A predicate on a metadata path."""

    path: str
    predicate: Predicate
    cost: int

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        column = scope.columns.column(self.path)
        return field_mask(column, self.predicate, scope.start, scope.stop, wanted, scope.interrupt)


@dataclass(frozen=True, slots=True)
class IdIn:
    """One of these ids."""

    ids: tuple[str, ...]
    cost: int = COST_IDS

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        mask = scope.none()
        rows = scope.source.rows_of_ids(self.ids)
        mask[rows[(rows >= scope.start) & (rows < scope.stop)] - scope.start] = True
        return mask


@dataclass(frozen=True, slots=True)
class IdText:
    """A predicate on the id as text."""

    predicate: Predicate
    cost: int = COST_ID_TEXT

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        mask = scope.none()
        offsets = np.flatnonzero(wanted)
        for at in range(0, len(offsets), _IDS_AT_ONCE):
            scope.interrupt()
            some = offsets[at : at + _IDS_AT_ONCE]
            mask[some] = self.predicate.texts(scope.source.ids(some + scope.start))
        return mask


@dataclass(frozen=True, slots=True)
class Document:
    """A predicate on the document; False where there is none."""

    predicate: Predicate
    cost: int = COST_DOCUMENT

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        mask = scope.none()
        offsets = np.flatnonzero(wanted)
        for at in range(0, len(offsets), _DOCUMENTS_AT_ONCE):
            scope.interrupt()
            some = offsets[at : at + _DOCUMENTS_AT_ONCE]
            found = scope.source.documents(some + scope.start)
            present = np.array([text is not None for text in found], np.bool_)
            mask[some[present]] = self.predicate.texts([t for t in found if t is not None])
        return mask


def all_of(children: Sequence[Node]) -> Node:
    """The children joined by `$and`, cheapest first."""
    if len(children) == 1:
        return children[0]
    ordered = tuple(sorted(children, key=_cost))
    return And(ordered, ordered[-1].cost) if ordered else Everything()


def any_of(children: Sequence[Node]) -> Node:
    """The children, at least one, joined by `$or`, cheapest first."""
    if len(children) == 1:
        return children[0]
    ordered = tuple(sorted(children, key=_cost))
    return Or(ordered, ordered[-1].cost)


def none_of(child: Node) -> Node:
    return Not(child, child.cost)


def _cost(node: Node) -> int:
    return node.cost
