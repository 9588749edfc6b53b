"""A parsed filter: the nodes between the predicates, and how they share the work.

A node answers in one of two ways. `few` names the matching rows where they are few and can be found
without a look at every row; `$and` starts from the shortest such list and asks its other parts about
the listed rows only. `mask` looks at all rows of a `Scope`: it answers for those that its caller still
wants, and may answer anything for the others. `$and` narrows what is wanted from child to child and
`$or` likewise, cheapest first, so the parts that read the store (id text, documents) see only rows that
nothing cheaper decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .columns import FEWEST_SORTED, Column, Columns
from .comparisons import Mask
from .predicates import MOST_SORTED, Compare, Equal, Few, Predicate, field_few, field_mask
from .selection import MOST_LISTED, once

COST_IDS, COST_NUMBER, COST_STRING, COST_ID_TEXT, COST_DOCUMENT = range(5)
"""Ranks of work, cheapest first: look-ups of ids, one pass over a column, one over its distinct
strings, ids as text, documents."""

Rows = NDArray[np.int64]

_IDS_AT_ONCE = 65_536
_DOCUMENTS_AT_ONCE = 256
"""A document takes up to 16 MiB."""
_CHARS_AT_ONCE = 1 << 20


class RowSource(Protocol):
    """What a filter needs of the store, all as of one moment. Called from the evaluating thread."""

    def rows_of_ids(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows that bear these ids, in any order; ids that are not stored are left out."""

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of rows, one each, in the given order."""

    def documents(self, rows: NDArray[np.int64]) -> list[str | None]:
        """Documents of rows, one each, in the given order; None where there is none."""


class Live(Protocol):
    """Which rows are live at one moment."""

    @property
    def live(self) -> Mask:
        """One bool a row."""

    def is_live(self, rows: Rows) -> Mask:
        """For these rows; costs what they cost."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The rows in question and where their values are."""

    columns: Columns
    source: RowSource
    at: range | Rows
    """A range of rows, or some, ascending."""
    interrupt: Callable[[], None]
    live: Live | None = None
    """Given, rows that are dead there are left out of lists before anything dear is asked of them."""

    def none(self) -> Mask:
        return np.zeros(len(self.at), np.bool_)

    def all(self) -> Mask:
        return np.ones(len(self.at), np.bool_)

    def rows(self, offsets: NDArray[np.int64]) -> Rows:
        """The rows at these places of the scope."""
        return offsets + self.at.start if isinstance(self.at, range) else self.at[offsets]

    def only(self, rows: Rows) -> Scope:
        """These rows instead, which are all wanted."""
        return Scope(self.columns, self.source, rows, self.interrupt)

    @property
    def n_rows(self) -> int | None:
        """How many, where they are all rows from the first on, and so many that a list may pay."""
        at = self.at
        whole = isinstance(at, range) and not at.start and at.stop >= FEWEST_SORTED
        return len(at) if whole else None


class Node(Protocol):
    """One part of a filter."""

    @property
    def cost(self) -> int: ...

    def few(self, scope: Scope) -> Few | None:
        """The matching rows, if they are few and cheap to list; asked of whole ranges only."""

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        """Where the filter holds: bool, shape (len(scope.at),), a new array; see the module."""


def marked(node: Node, scope: Scope, wanted: Mask) -> Mask:
    """`node.mask`, made from a list where there is one."""
    scope.interrupt()
    few = node.few(scope)
    if few is None:
        return node.mask(scope, wanted)
    assert isinstance(scope.at, range)
    mask = scope.none()
    mask[few.rows() - scope.at.start] = True
    return mask


@dataclass(frozen=True, slots=True)
class Everything:
    cost: int = COST_IDS

    def few(self, scope: Scope) -> Few | None:
        return None

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        return scope.all()


@dataclass(frozen=True, slots=True)
class And:
    children: tuple[Node, ...]
    cost: int

    def few(self, scope: Scope) -> Few | None:
        lists = [(child.few(scope), child) for child in self.children]
        known = [(few, child) for few, child in lists if few is not None]
        if not known:
            return None
        shortest, first = min(known, key=lambda pair: pair[0].about)
        if shortest.about > len(scope.at) // MOST_SORTED:
            # Picking so many rows out of columns takes as long as a look at all.
            return None

        def rows() -> Rows:
            found = shortest.rows()
            if scope.live is not None:
                found = found[scope.live.is_live(found)]
            for child in self.children:
                if child is not first and len(found):
                    scope.interrupt()
                    inner = scope.only(found)
                    found = found[child.mask(inner, inner.all())]
            return found

        return Few(shortest.about, rows)

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        for child in self.children:
            if not wanted.any():
                return scope.none()
            mask = marked(child, scope, wanted)
            mask &= wanted
            wanted = mask
        return wanted


@dataclass(frozen=True, slots=True)
class Or:
    children: tuple[Node, ...]
    cost: int

    def few(self, scope: Scope) -> Few | None:
        lists = [few for few in (child.few(scope) for child in self.children) if few is not None]
        about = sum(few.about for few in lists)
        if len(lists) < len(self.children) or about > len(scope.at) // MOST_SORTED:
            return None

        def rows() -> Rows:
            found = np.concatenate([few.rows() for few in lists])
            found.sort()
            return once(found)

        return Few(about, rows)

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        found = scope.none()
        for child in self.children:
            # What the child says outside `rest` is either found already or not wanted at all.
            rest = wanted & ~found
            if not rest.any():
                break
            found |= marked(child, scope, rest)
        return found


@dataclass(frozen=True, slots=True)
class Not:
    child: Node
    cost: int

    def few(self, scope: Scope) -> Few | None:
        return None

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        mask = marked(self.child, scope, wanted)
        return np.logical_not(mask, out=mask)


@dataclass(frozen=True, slots=True)
class Field:
    """A predicate on a metadata path."""

    path: str
    predicate: Predicate
    cost: int

    def few(self, scope: Scope) -> Few | None:
        return _listed(scope, self.path, (self.predicate,))

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        column = scope.columns.column(self.path)
        mask = field_mask(column, self.predicate, scope.at, wanted, scope.interrupt)
        if column is not None and self.predicate.by_order(column):
            _learn(
                column,
                scope,
                mask,
                MOST_LISTED if isinstance(self.predicate, Equal) else MOST_SORTED,
            )
        return mask


@dataclass(frozen=True, slots=True)
class Between:
    """Several bounds of one metadata path, which together may leave little of what each allows."""

    path: str
    predicates: tuple[Predicate, ...]
    cost: int

    def few(self, scope: Scope) -> Few | None:
        return _listed(scope, self.path, self.predicates)

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        column = scope.columns.column(self.path)
        mask = scope.all()
        for predicate in self.predicates:
            mask &= field_mask(column, predicate, scope.at, wanted, scope.interrupt)
        if column is not None and all(one.by_order(column) for one in self.predicates):
            _learn(column, scope, mask, MOST_SORTED)
        return mask


def _learn(column: Column, scope: Scope, mask: Mask, share: int) -> None:
    """After a look at every row that found few of them: next time they are looked up."""
    n_rows = scope.n_rows
    if n_rows is None or column.has_postings:
        return
    if np.count_nonzero(mask) <= n_rows // share:
        column.want_postings(n_rows)


def _listed(scope: Scope, path: str, predicates: Sequence[Predicate]) -> Few | None:
    n_rows = scope.n_rows
    if n_rows is None:
        return None
    scope.interrupt()  # A filter may have ten thousands of these.
    return field_few(scope.columns.column(path), predicates, n_rows, scope.interrupt)


@dataclass(frozen=True, slots=True)
class IdIn:
    """One of these ids."""

    ids: tuple[str, ...]
    cost: int = COST_IDS

    def few(self, scope: Scope) -> Few | None:
        at = scope.at
        if not isinstance(at, range) or len(self.ids) > len(at) // MOST_LISTED:
            return None

        def rows() -> Rows:
            found = np.sort(scope.source.rows_of_ids(self.ids))
            return found[slice(*np.searchsorted(found, [at.start, at.stop]))]

        return Few(len(self.ids), rows)

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        rows = scope.source.rows_of_ids(self.ids)
        if not isinstance(scope.at, range):
            return np.isin(scope.at, rows)
        mask = scope.none()
        mask[rows[(rows >= scope.at.start) & (rows < scope.at.stop)] - scope.at.start] = True
        return mask


@dataclass(frozen=True, slots=True)
class IdText:
    """A predicate on the id as text."""

    predicate: Predicate
    cost: int = COST_ID_TEXT

    def few(self, scope: Scope) -> Few | None:
        return None

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        mask = scope.none()
        offsets = np.flatnonzero(wanted)
        for at in range(0, len(offsets), _IDS_AT_ONCE):
            scope.interrupt()
            some = offsets[at : at + _IDS_AT_ONCE]
            mask[some] = self.predicate.texts(scope.source.ids(scope.rows(some)), scope.interrupt)
        return mask


@dataclass(frozen=True, slots=True)
class Document:
    """A predicate on the document; False where there is none."""

    predicate: Predicate
    cost: int = COST_DOCUMENT

    def few(self, scope: Scope) -> Few | None:
        return None

    def mask(self, scope: Scope, wanted: Mask) -> Mask:
        mask = scope.none()
        offsets = np.flatnonzero(wanted)
        for at in range(0, len(offsets), _DOCUMENTS_AT_ONCE):
            scope.interrupt()
            some = offsets[at : at + _DOCUMENTS_AT_ONCE]
            found = scope.source.documents(scope.rows(some))
            present = np.array([text is not None for text in found], np.bool_)
            mask[some[present]] = _asked([t for t in found if t is not None], self.predicate, scope)
        return mask


def _asked(texts: list[str], predicate: Predicate, scope: Scope) -> list[bool]:
    """The answer for each of some texts, with an interrupt after each megabyte or so of them, beside those of the predicate."""
    answers: list[bool] = []
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= _CHARS_AT_ONCE or end == len(texts):
            answers += predicate.texts(texts[start:end], scope.interrupt)
            start, size = end, 0
            scope.interrupt()
    return answers


def all_of(children: Sequence[Node]) -> Node:
    """The children joined by `$and`, cheapest first, the bounds of one path together."""
    nodes: list[Node] = []
    bounds: dict[str, list[Field]] = {}
    for child in children:
        if isinstance(child, Field) and isinstance(child.predicate, Compare):
            bounds.setdefault(child.path, []).append(child)
        else:
            nodes.append(child)
    for path, fields in bounds.items():
        predicates = tuple(field.predicate for field in fields)
        cost = max(field.cost for field in fields)
        nodes.append(fields[0] if len(fields) == 1 else Between(path, predicates, cost))
    if len(nodes) == 1:
        return nodes[0]
    ordered = tuple(sorted(nodes, key=_cost))
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
