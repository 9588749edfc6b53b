"""The scalars that metadata and filters share: which values pass, and in which plain form.

Text, bool, int64, finite float, None and aware datetimes. Everything here may be called from any
thread.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from .types import Scalar

MAX_PATH_CHARS = 1_024
INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1


class Refused(ValueError):
    """Why a key or value is not accepted, in words for people; callers add where it stands."""


def shown(value: Any) -> str:
    """A value for a message: short, printable, with its type."""
    if value is None:
        return "null"
    kind = type(value).__name__
    try:
        return f"{value!r:.60} of type {kind}"
    except ValueError:  # An int of thousands of digits.
        return f"a value of type {kind}"


def plain_key(key: Any) -> str:
    """`key` as plain text if metadata may have it, otherwise Refused. Paths have the same rules."""
    if not isinstance(key, str):
        raise Refused(f"keys must be text, given {shown(key)}")
    if not key:
        raise Refused("keys must not be empty")
    if key[0] == "$":
        raise Refused(f"keys must not start with '$', given {shown(key)}")
    if "\0" in key:
        raise Refused("keys must not contain NUL")
    if len(key) > MAX_PATH_CHARS:
        raise Refused(f"a path has at most {MAX_PATH_CHARS:,} characters, given {len(key):,}")
    return plain_text(key)


def plain_text(text: str) -> str:
    """`text` as exactly a str, also from a subclass; Refused if it is not Unicode."""
    plain = str.__str__(text)
    if not plain.isascii():
        try:
            plain.encode()
        except UnicodeEncodeError:
            raise Refused("text holds half of a surrogate pair, which is not Unicode") from None
    return plain


def plain_scalar(item: Any, *, wide_ints: bool = False) -> Scalar:
    """`item` as a plain Python scalar: numpy scalars and subclasses converted, datetimes in UTC.

    Refused for other types, naive datetimes, non-finite floats, text that is not Unicode, and
    integers outside int64 (up to 1,024 bits pass with `wide_ints`, as the bound of a comparison).
    """
    if item is None or isinstance(item, (bool, np.bool_)):
        return None if item is None else bool(item)
    if isinstance(item, str):
        return plain_text(item)
    if isinstance(item, (int, np.integer)):
        whole = int(item)
        if not INT64_MIN <= whole <= INT64_MAX and not (wide_ints and whole.bit_length() <= 1_024):
            shown = f"{whole:,}" if whole.bit_length() <= 128 else f"{whole.bit_length():,} bits"
            raise Refused(f"integers must fit into 64 bits with sign, given {shown}")
        return whole
    if isinstance(item, (float, np.floating)):
        number = float(item)
        if not math.isfinite(number):
            raise Refused(f"numbers must be finite, given {number}; leave the field out instead")
        return number
    if isinstance(item, dt.datetime):
        return _utc(item)
    name = type(item).__name__
    if isinstance(item, (dt.date, np.datetime64)):
        raise Refused(f"{name} has no time zone; give a datetime.datetime with tzinfo")
    hint = "; call .tolist() first" if isinstance(item, np.ndarray) else ""
    raise Refused(
        f"type {name} is not supported; expected text, bool, int, float, None, aware datetime, "
        f"or a list of these{hint}"
    )


def date_text(moment: dt.datetime) -> str:
    """RFC 3339 text of an aware UTC datetime, such as `2024-01-31T12:00:00Z`."""
    return moment.replace(tzinfo=None).isoformat() + "Z"


def parse_date(value: Mapping[Any, Any]) -> dt.datetime | None:
    """The datetime of `{"$date": "RFC 3339 text"}`; None if `value` is another mapping."""
    if len(value) != 1 or "$date" not in value:
        return None
    text = value["$date"]
    try:
        if isinstance(text, str):
            return _utc(msgspec.convert(str.__str__(text), dt.datetime))
    except (msgspec.ValidationError, UnicodeEncodeError):  # the latter for half of a surrogate pair
        pass
    raise Refused(f"$date takes RFC 3339 text such as '2024-01-31T12:00:00Z', given {shown(text)}")


def _utc(moment: dt.datetime) -> dt.datetime:
    if moment.tzinfo is dt.UTC and type(moment) is dt.datetime:
        return moment
    try:
        offset = moment.utcoffset()
        utc = moment if offset is None else moment.astimezone(dt.UTC)
    except ValueError as error:
        # pandas.NaT is a datetime too, and none.
        raise Refused(f"{shown(moment)} is no moment: {error}") from None
    except OverflowError:
        raise Refused(f"datetime {moment} lies outside the years 1 to 9999 in UTC") from None
    if offset is None:
        raise Refused(f"datetime {moment} has no time zone; add tzinfo, such as datetime.UTC")
    if type(utc) is dt.datetime:
        return utc
    # A subclass, such as pandas.Timestamp, that may carry more than its printed value.
    return dt.datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second,
                       utc.microsecond, dt.UTC)  # fmt: skip
