"""Filters as callers give them, parsed once for those that come again and again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Hashable, Mapping
from typing import Any

from .filters import Filter, parse

FilterLike = str | bytes | Mapping[str, Any] | Filter | None

_KEPT = 256
_LONGEST_TEXT = 2_048
"""Characters of a filter that is kept: 256 of them take some MB at most."""
_MOST_PARTS = 64
"""Entries of one mapping or list; a longer filter costs more to compare than it is worth keeping."""
_SCALARS = frozenset((int, float, bool, type(None)))

_kept: dict[Hashable, Filter] = {}


class _Unkept(Exception):
    """The filter holds something whose equality we do not know enough about."""


def parsed(given: FilterLike) -> Filter | None:
    """The filter, None where none was given. An empty text is no filter: InvalidFilter.

    About 1 us for a short one that was given before, else as `filters.parse`. Any thread.
    """
    if given is None or isinstance(given, Filter):
        return given
    try:
        key = _key(given)
    except (_Unkept, RecursionError):  # `parse` says what is nested too deep
        return parse(given)
    found = _kept.get(key)
    if found is None:
        found = parse(given)
        if len(found.text) <= _LONGEST_TEXT:
            if len(_kept) >= _KEPT:
                _kept.clear()
            _kept[key] = found
    return found


def _key(value: Any) -> Hashable:
    """Equal for values that mean the same: 1, 1.0 and True are equal in Python, but not here."""
    kind = type(value)
    if kind is dict and len(value) <= _MOST_PARTS:
        if len(value) == 1:  # the commonest filter: one field and its text
            ((name, part),) = value.items()
            if type(name) is str and type(part) is str and len(part) <= _LONGEST_TEXT:
                return name, part
        for name in value:
            if type(name) is not str:
                raise _Unkept
        return dict, tuple([(name, _key(part)) for name, part in value.items()])
    if kind in (list, tuple) and len(value) <= _MOST_PARTS:
        return list, tuple([_key(part) for part in value])
    if kind is str or kind is bytes:
        if len(value) <= _LONGEST_TEXT:
            return kind, value
    elif kind is dt.datetime:
        # Equal in Python also where `fold` tells two hours apart, at the end of summer time.
        return kind, value, value.fold
    elif kind in _SCALARS:
        return kind, value
    raise _Unkept
