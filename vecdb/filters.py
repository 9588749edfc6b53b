"""The filter language: from JSON text or a mapping to a tree, and from a tree to the rows that match.

    {"lang": "en", "year": {"$gte": 2020}, "$or": [{"tags": {"$in": ["a", "b"]}}, {"$document":
    {"$contains": "vector"}}]}

Fields are `id`, `$document` and dotted metadata paths; several in one object must all hold, and so
must several operators of one field. Rules: null and missing are the same; a negative operator is the
exact complement of its positive one; types never mix, but int and float compare as exact numbers; a
list matches when any element does. README.md, section Filters, has them for users.

Parsing and evaluating may be done from any thread.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Columns
from .errors import Internal, InvalidFilter
from .filter_tree import (
    COST_NUMBER,
    COST_STRING,
    Document,
    Field,
    IdIn,
    IdText,
    Live,
    Node,
    RowSource,
    Scope,
    all_of,
    any_of,
    none_of,
)
from .predicates import MOST_SORTED, Compare, Contains, Equal, Exists, Predicate, Regex
from .scalars import Refused, date_text, parse_date, plain_key, plain_scalar, shown
from .selection import Selection
from .stopping import evaluating, stop_if_unwanted
from .types import Scalar

__all__ = ["Filter", "Live", "RowSource", "evaluate", "parse", "select"]

MAX_TEXT_BYTES = 1024 * 1024
MAX_DEPTH = 32
"""Filter objects inside each other, the outermost included."""
MAX_PATTERNS = 100
"""`$regex` operators of one filter."""
_PARTS = 1_000
"""Filters and fields between two looks at whether anybody still waits: 1 MiB holds 350,000 of them, which take seconds."""
MAX_OPERANDS = 10_000
"""Operands of one `$in`."""

_NEGATIVE = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}
_ON_FIELDS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains",
              "$not_contains", "$regex")  # fmt: skip
_ON_ID = tuple(op for op in _ON_FIELDS if op != "$exists")
_ON_DOCUMENT = ("$contains", "$not_contains", "$regex", "$eq", "$ne", "$exists")
_LOGICAL = ("$and", "$or", "$not")


@dataclass(frozen=True, slots=True)
class Filter:
    """A checked filter."""

    text: str
    """Canonical JSON: filters that are written differently but say the same share it where that is
    cheap to see (order of keys, white space, `{"a": 1}` for `{"a": {"$eq": 1}}`)."""
    uses_id: bool
    uses_document: bool
    tree: Node
    depth: int = 1
    """Filter objects inside each other, the outermost included."""
    n_patterns: int = 0
    """`$regex` operators."""
    pattern_bytes: int = 0
    """Bytes of the longest pattern of these."""


def parse(expression: str | bytes | Mapping[str, Any]) -> Filter:
    """Checks a filter given as JSON text or as a mapping, which may hold datetimes.

    InvalidFilter says what is wrong and `details["path"]` where, such as `$.year.$in[2]`. At most
    1 MiB as text (a mapping: as canonical text), 32 deep, 10,000 operands in one `$in`. Takes some
    microseconds an operator; Cancelled and LimitExceeded as the evaluation of a filter.
    """
    if isinstance(expression, (str, bytes)):
        expression = _from_text(expression)
    parser = _Parser()
    node, canonical = parser.filter(expression, "$", 1)
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise _too_long(len(text.encode()))
    return Filter(
        text, parser.uses_id, parser.uses_document, node, parser.depth, parser.n_patterns,
        parser.pattern_bytes,
    )  # fmt: skip


def select(
    filter: Filter,
    columns: Columns,
    source: RowSource,
    n_rows: int,
    live: Live | None = None,
    *,
    interrupt: Callable[[], None] = lambda: None,
) -> Selection:
    """The rows [0, n_rows) that match: listed where they are few, otherwise marked in a mask.

    `n_rows` is at most the `columns.n_rows` that the caller has seen. With `live` the dead rows are
    left out; ids as text and documents are read for live rows only, and only for those that the cheaper
    parts of the filter leave open. `interrupt` is called every few milliseconds of a long evaluation
    and may raise. LimitExceeded where it takes longer than whom this thread works for is allowed.

    At 1 million rows a look at all takes 0.3 ms a comparison, 0.05 us ($contains) to 1.5 us ($regex) a
    distinct string of the column. A column whose filters find few is sorted in the background (0.1 us
    a row, once); from then on a rare value takes about 10 us, and what is joined to it by `$and`
    is asked of its rows only.
    """
    _check(0, n_rows, columns)
    scope = Scope(columns, source, range(n_rows), evaluating(interrupt), live)
    few = filter.tree.few(scope)
    if few is None:
        wanted = scope.all() if live is None else live.live
        mask = filter.tree.mask(scope, wanted)
        if live is not None:
            mask &= wanted
        count = int(np.count_nonzero(mask))
        if count > n_rows // MOST_SORTED:
            return Selection(n_rows, mask=mask, count=count)
        return Selection(n_rows, rows=np.flatnonzero(mask))
    rows = few.rows()
    return Selection(n_rows, rows=rows if live is None else rows[live.is_live(rows)])


def evaluate(
    filter: Filter,
    columns: Columns,
    source: RowSource,
    at: range | NDArray[np.int64],
    *,
    interrupt: Callable[[], None] = lambda: None,
) -> NDArray[np.bool_]:
    """Where the filter holds among some rows: bool, shape (len(at),), a new array.

    `at`: a range, or rows ascending, all below the `columns.n_rows` that the caller has seen. Costs what
    these rows cost; text predicates are asked of their distinct strings. `interrupt` and LimitExceeded as for
    `select`.
    """
    if len(at):
        _check(int(at[0]), int(at[-1]) + 1, columns)
    scope = Scope(columns, source, at, evaluating(interrupt))
    return filter.tree.mask(scope, scope.all())


def _check(start: int, stop: int, columns: Columns) -> None:
    if not 0 <= start <= stop <= columns.n_rows:
        raise Internal(f"rows [{start}, {stop}) asked for, {columns.n_rows} are in the columns")


class _Parser:
    """Each method returns the node and the canonical form of what it was given."""

    def __init__(self) -> None:
        self.uses_id = False
        self.uses_document = False
        self.depth = 0
        self.n_patterns = 0
        self.pattern_bytes = 0
        self._parts = 0
        self._interrupt = evaluating(stop_if_unwanted)

    def filter(self, given: Any, path: str, depth: int) -> tuple[Node, dict[str, Any]]:
        if not isinstance(given, Mapping):
            raise _wrong(path, f"a filter is an object such as {{'year': {{'$gte': 2020}}}}, given {shown(given)}")  # fmt: skip
        if depth > MAX_DEPTH:
            raise _wrong(path, f"filters nest at most {MAX_DEPTH} deep")
        self.depth = max(self.depth, depth)
        self._parts += 1 + len(given)
        if self._parts >= _PARTS:
            self._parts = 0
            self._interrupt()
        nodes: list[Node] = []
        canonical: dict[str, Any] = {}
        for name, condition in given.items():
            at = f"{path}.{name}" if isinstance(name, str) else path
            if name == "$not":
                child, canonical["$not"] = self.filter(condition, at, depth + 1)
                nodes.append(none_of(child))
            elif name in ("$and", "$or"):
                node, canonical[name] = self.logical(name, condition, at, depth)
                nodes.append(node)
            else:
                node, canonical[name] = self.field(name, condition, at)
                nodes.append(node)
        return all_of(nodes), canonical

    def logical(self, name: str, given: Any, path: str, depth: int) -> tuple[Node, list[Any]]:
        if not isinstance(given, (list, tuple)) or not given:
            raise _wrong(path, f"{name} takes a list of one or more filters, given {shown(given)}")
        pairs = [self.filter(one, f"{path}[{i}]", depth + 1) for i, one in enumerate(given)]
        nodes = [node for node, _ in pairs]
        return all_of(nodes) if name == "$and" else any_of(nodes), [form for _, form in pairs]

    def field(self, name: Any, condition: Any, path: str) -> tuple[Node, dict[str, Any]]:
        if isinstance(name, str) and name in _ON_FIELDS:
            raise _wrong(path, f"{name} belongs behind a field: {{'year': {{'{name}': ...}}}}")
        if name == "$document":
            self.uses_document = True
        elif isinstance(name, str) and name.startswith("$"):
            known = ", ".join((*_LOGICAL, "$document"))
            raise _wrong(path, f"unknown {name!r:.60}; known here are {known} and fields")
        elif name == "id":
            self.uses_id = True
        else:
            try:
                plain_key(name)
            except Refused as reason:
                raise _wrong(path, str(reason)) from None
        operators = self.operators(name, condition, path)
        if operators is None:
            node, form = self.operator(name, "$eq", condition, path)
            return node, {"$eq": form}
        nodes: list[Node] = []
        canonical: dict[str, Any] = {}
        for op, operand in operators.items():
            node, canonical[op] = self.operator(name, op, operand, f"{path}.{op}")
            nodes.append(node)
        return all_of(nodes), canonical

    def operators(self, name: str, condition: Any, path: str) -> Mapping[str, Any] | None:
        """`condition` if it is an object of operators, None if it is a value to be equal to."""
        if isinstance(condition, (list, tuple)):
            raise _wrong(path, "a list is no value to compare with; use $in for one of several "
                               "values, $contains for an element of a list field")  # fmt: skip
        if not isinstance(condition, Mapping) or set(condition) == {"$date"}:
            return None
        if not condition:
            raise _wrong(
                path, f"an empty object says nothing; operators are {', '.join(_ON_FIELDS)}"
            )
        for op in condition:
            if not isinstance(op, str) or not op.startswith("$"):
                raise _wrong(f"{path}.{op}", f"{op!r:.60} is no operator; nested fields are addressed by a dotted path such as {f'{name}.{op}'!r:.120}")  # fmt: skip
        return condition

    def operator(self, name: str, op: str, operand: Any, path: str) -> tuple[Node, Any]:
        allowed = {"id": _ON_ID, "$document": _ON_DOCUMENT}.get(name, _ON_FIELDS)
        if op not in allowed:
            what = (
                f"{op} cannot be used on {name}"
                if op in _ON_FIELDS
                else f"unknown operator {op!r:.60}"
            )
            hint = "; $not stands before a field: {'$not': {...}}" if op == "$not" else ""
            raise _wrong(path, f"{what}; it takes {', '.join(allowed)}{hint}")
        positive = _NEGATIVE.get(op, op)
        if positive == "$exists":
            if not isinstance(operand, (bool, np.bool_)):
                raise _wrong(path, f"$exists takes true or false, given {shown(operand)}")
            node = _leaf(name, Exists(), COST_NUMBER)
            return node if operand else none_of(node), bool(operand)
        if positive == "$in":
            if not isinstance(operand, (list, tuple)) or not operand:
                raise _wrong(
                    path, f"{op} takes a list of one or more values, given {shown(operand)}"
                )
            if len(operand) > MAX_OPERANDS:
                raise _wrong(
                    path, f"{op} takes at most {MAX_OPERANDS:,} values, given {len(operand):,}"
                )
            values = [self.scalar(name, item, f"{path}[{i}]") for i, item in enumerate(operand)]
            node, form = self.equal(name, values), [_form(value) for value in values]
        else:
            value = self.scalar(name, operand, path)
            node, form = self.single(name, op, positive, value, path), _form(value)
        return none_of(node) if op in _NEGATIVE else node, form

    def single(self, name: str, op: str, positive: str, value: Scalar, path: str) -> Node:
        if positive == "$eq":
            return self.equal(name, [value])
        if positive == "$contains":
            if value is None:
                raise _wrong(
                    path, f"{op} takes a value, given null; use $exists for missing fields"
                )
            cost = COST_STRING if isinstance(value, str) else COST_NUMBER
            return _leaf(name, Contains(value), cost)
        if positive == "$regex":
            if not isinstance(value, str):
                raise _wrong(path, f"$regex takes a pattern as text, given {shown(value)}")
            self.n_patterns += 1
            self.pattern_bytes = max(self.pattern_bytes, len(value.encode()))
            if self.n_patterns > MAX_PATTERNS:
                # Each costs some milliseconds and 100 KiB to compile, before any deadline is looked at.
                raise _wrong(
                    path, f"a filter has at most {MAX_PATTERNS} patterns; join them with |"
                )
            try:
                return _leaf(name, Regex(value), COST_STRING)
            except ValueError as error:
                raise _wrong(path, f"$regex {shown(value)} is not RE2 syntax: {error}") from None
        if value is None or isinstance(value, bool):
            raise _wrong(path, f"{op} takes text, a number or a datetime, given {shown(value)}")
        return _leaf(
            name, Compare(op, value), COST_STRING if isinstance(value, str) else COST_NUMBER
        )

    def equal(self, name: str, values: list[Scalar]) -> Node:
        if name == "id":
            return IdIn(tuple(dict.fromkeys(str(value) for value in values)))
        present = [value for value in values if value is not None]
        nodes: list[Node] = []
        if present:
            nodes.append(_leaf(name, Equal(present), COST_NUMBER))
        if len(present) < len(values):
            nodes.append(none_of(_leaf(name, Exists(), COST_NUMBER)))
        return any_of(nodes)

    def scalar(self, name: str, item: Any, path: str) -> Scalar:
        if isinstance(item, (list, tuple)):
            raise _wrong(path, f"one value is expected here, given {shown(item)}")
        try:
            date = parse_date(item) if isinstance(item, Mapping) else None
            value = plain_scalar(item if date is None else date, wide_ints=True)
        except Refused as reason:
            raise _wrong(path, str(reason)) from None
        if name == "id" and not isinstance(value, str):
            raise _wrong(path, f"ids are text, given {shown(item)}")
        if name == "$document" and not (value is None or isinstance(value, str)):
            raise _wrong(path, f"documents are text, given {shown(item)}")
        return value


def _leaf(name: str, predicate: Predicate, cost: int) -> Node:
    if name == "id":
        return IdText(predicate)
    return Document(predicate) if name == "$document" else Field(str(name), predicate, cost)


def _form(value: Scalar) -> Any:
    return {"$date": date_text(value)} if isinstance(value, dt.datetime) else value


def _wrong(path: str, message: str) -> InvalidFilter:
    path = path[:1_000].encode(errors="replace").decode()
    return InvalidFilter(f"filter at {path}: {message}", path=path)


def _too_long(n_bytes: int) -> InvalidFilter:
    return _wrong("$", f"a filter has at most {MAX_TEXT_BYTES:,} bytes of JSON, given {n_bytes:,}")


def _from_text(expression: str | bytes) -> Any:
    try:
        raw = expression.encode() if isinstance(expression, str) else expression
        if len(raw) > MAX_TEXT_BYTES:
            raise _too_long(len(raw))
        if not raw.strip():
            raise _wrong("$", "the text is empty; leave the filter out, or write {} for everything")
        return json.loads(raw.decode(), object_pairs_hook=_unique)
    except InvalidFilter:
        raise
    except (ValueError, RecursionError) as error:
        raise _wrong("$", f"not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # Once through: 100,000 names counted one by one, in a filter of a stranger's, take minutes.
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, _ in pairs if counts[name] > 1)
        raise _wrong("$", f"the key {twice!r:.60} is given twice in one object; use $and")
    return found
