"""Metadata and filters as JSON text.

A moment is {"$date": "2026-01-31T12:00:00Z"}. Only what JSON could not carry, or would quietly
change, is refused here; the engine judges the rest.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .errors import InvalidFilter, InvalidMetadata

_MOMENT_KEY = "$date"


def _json_value(value: Any) -> Any:
    """Called by json for what it does not know."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise TypeError(
                f"the datetime {value.isoformat()} has no time zone; give it one, such as UTC"
            )
        moment = value.astimezone(dt.UTC).replace(tzinfo=None)
        return {_MOMENT_KEY: moment.isoformat() + "Z"}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    raise TypeError(f"values of type {type(value).__name__} cannot be stored")


_encode_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_json_value
).encode


def _check_keys(mapping: Mapping[Any, Any]) -> None:
    # json would quietly turn the key 1 into "1".
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise TypeError(f"keys must be texts, given {key!r}")
        if isinstance(value, Mapping):
            _check_keys(value)


_MAX_SEARCH_DEPTH = 32
"""Deeper than anything the engine takes; what holds itself is found there."""
_JSON_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)


def _fault(value: Any, path: str, depth: int = 0) -> tuple[str, str]:
    """Path to the first part of `value` that JSON refuses, and why; only called once it has."""
    if depth > _MAX_SEARCH_DEPTH:
        return path, "nested too deeply, or within itself"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return path, f"keys must be texts, given {key!r}"
        parts = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"{path}[{i}]", item) for i, item in enumerate(value))
    for deeper, item in parts:
        try:
            _dump(item)
        except _JSON_ERRORS:
            return _fault(item, deeper, depth + 1)
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return path, f"{value} is no number that can be stored or compared"
    try:
        _dump(value)
    except _JSON_ERRORS as error:
        return path, str(error)
    return path, "cannot be written as JSON"


def _dump(value: Any) -> bytes:
    if isinstance(value, Mapping):
        _check_keys(value)
    return _encode_json(value).encode()


_PLAIN = frozenset({str, int, float, bool, type(None)})


def _encode_flat(entries: Sequence[Any]) -> list[bytes] | None:
    """`encode_metadata` of dicts without a list or mapping in them, by one call; None for all others."""
    if set(map(type, entries)) != {dict} or not all(entries):
        return None
    if set(map(type, chain.from_iterable(entries))) != {str}:
        return None
    if not set(map(type, chain.from_iterable(map(dict.values, entries)))) <= _PLAIN:
        return None
    try:
        text = _encode_json(entries).encode()
    except _JSON_ERRORS:
        return None  # The long way finds out which record it is.
    # Inside a record the mark can only stand in a text; then there are too many of it.
    parts = text[2:-2].split(b"},{")
    return [b"{" + part + b"}" for part in parts] if len(parts) == len(entries) else None


def encode_metadata(entries: Iterable[Any], ids: Sequence[str]) -> list[bytes]:
    """One JSON object for each entry: a mapping, None, or JSON bytes, which pass unread.

    None and an empty mapping become b"". InvalidMetadata names the record and the path. Costs about
    3 microseconds a small record, and less than half of it where all are dicts of scalars.
    """
    entries = entries if isinstance(entries, list) else list(entries)
    flat = _encode_flat(entries)
    if flat is not None:
        return flat
    found = []
    for i, entry in enumerate(entries):
        if isinstance(entry, bytes):
            found.append(entry)
        elif entry is None or (isinstance(entry, Mapping) and not entry):
            found.append(b"")
        else:
            record_id = ids[i] if i < len(ids) else ""
            place = f"metadata of record {record_id!r} (position {i})"
            if not isinstance(entry, Mapping):
                raise InvalidMetadata(
                    f"{place} must be a mapping, given {type(entry).__name__}", position=i
                )
            try:
                found.append(_dump(entry))
            except _JSON_ERRORS:
                path, reason = _fault(entry, "")
                raise InvalidMetadata(
                    f"{place} at {path!r}: {reason}", id=record_id, position=i, path=path
                ) from None
    return found


def _moments(value: dict[str, Any]) -> Any:
    text = value.get(_MOMENT_KEY)
    if len(value) == 1 and isinstance(text, str):
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    return value


def decode_metadata(entries: Sequence[bytes]) -> list[dict[str, Any]]:
    """One mapping for each JSON object; b"" becomes {}. Moments come back in UTC."""
    return decode_values([entry or b"{}" for entry in entries])


def encode_values(values: Iterable[Any]) -> list[bytes]:
    """One JSON value for each metadata value, such as a text, a number or a moment."""
    return [_encode_json(value).encode() for value in values]


def decode_values(entries: Iterable[bytes]) -> list[Any]:
    """The values of `encode_values`. Moments come back in UTC."""
    text = b"[" + b",".join(entries) + b"]"
    # The hook runs for every object and doubles the time, so only where it has something to find.
    hook = _moments if b'"$date"' in text else None
    found: list[Any] = json.loads(text, object_hook=hook)
    return found


def encode_filter(expression: Mapping[str, Any] | str | None) -> str:
    """A filter as JSON text, "" for None; a text passes unread. InvalidFilter if it cannot be."""
    if expression is None:
        return ""
    if isinstance(expression, str):
        if not expression.strip():
            raise InvalidFilter(
                "filter at $: the text is empty; leave the filter out, or write {} for everything",
                path="$",
            )
        try:
            expression.encode()
        except UnicodeEncodeError:
            raise InvalidFilter(
                "the filter holds a lone surrogate, which UTF-8 cannot express", path="$"
            ) from None
        return expression
    if not isinstance(expression, Mapping):
        raise InvalidFilter(
            f"a filter is a mapping or JSON text, given {type(expression).__name__}", path="$"
        )
    try:
        return _dump(expression).decode()
    except _JSON_ERRORS:
        path, reason = _fault(expression, "$")
        raise InvalidFilter(f"the filter at {path}: {reason}", path=path) from None
