"""Arguments of verbs that the wire could not carry, or that would mean something else there.

In the contract 0 and "" stand for the default, so a 0 that the caller wrote is refused here, with
the same error as the engine's. The engine judges everything else.
"""

from __future__ import annotations

import operator
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np

from .errors import InvalidArgument, InvalidBatch, InvalidName, InvalidQuery
from .types import MAX_REQUEST_ID_BYTES

UINT64_MAX = 2**64 - 1
_NUMBER_BYTES = 12
"""Room behind a request id for the number of a message."""


def text(what: str, value: Any, kind: type[InvalidArgument] = InvalidName) -> str:
    if not isinstance(value, str) or not value:
        raise kind(f"{what} must be a text of at least one character, given {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise kind(f"{what} holds a lone surrogate, which UTF-8 cannot express") from None
    return value


def whole(
    what: str,
    value: Any,
    low: int,
    high: int,
    kind: type[InvalidArgument] = InvalidQuery,
) -> int:
    # 0 means "default" in the contract, so a 0 that the caller wrote must not get there.
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise kind(f"{what} must be a whole number from {low} to {high}, given {value!r:.80}")
    return number


def optional_whole(what: str, value: Any, low: int, high: int) -> int:
    return 0 if value is None else whole(what, value, low, high)


def request_id(given: Any, number: int | None = None) -> str:
    """The id of one message of a write: the caller's, with `number` behind it; a random one for None."""
    if given is None:
        return uuid.uuid4().hex
    own = text("request_id", given, InvalidBatch)
    if len(own.encode()) > MAX_REQUEST_ID_BYTES - _NUMBER_BYTES:
        raise InvalidBatch(
            f"request_id has at most {MAX_REQUEST_ID_BYTES - _NUMBER_BYTES} bytes, given {own!r:.80}"
        )
    return own if number is None else f"{own}/{number}"


def change_id(given: Any) -> str:
    """The id of a change of names: the caller's, a random one for None. It travels in a header, so it is of visible
    ASCII; InvalidBatch otherwise, as the engine's."""
    if given is None:
        return uuid.uuid4().hex
    fine = isinstance(given, str) and given.isascii() and given.isprintable() and " " not in given
    if not fine or not 0 < len(given) <= MAX_REQUEST_ID_BYTES:
        raise InvalidBatch(
            f"request_id of a change of names is 1 to {MAX_REQUEST_ID_BYTES} visible ASCII characters, given "
            f"{given!r:.80}"
        )
    return str(given)


def number(what: str, value: Any, kind: type[InvalidArgument] = InvalidQuery) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise kind(f"{what} must be a number, given {value!r:.80}") from None


def recall(value: Any, kind: type[InvalidArgument]) -> float:
    share = number("target_recall", value, kind)
    if not 0.5 <= share <= 1.0:
        raise kind(f"target_recall must be from 0.5 to 1.0, given {value!r:.80}")
    return share


def sequence(value: Any) -> int:
    return optional_whole("min_sequence", value, 0, UINT64_MAX)


def flag(what: str, value: Any, kind: type[InvalidArgument] = InvalidQuery) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise kind(f"{what} must be True or False, given {value!r:.80}")
    return bool(value)


def names(include: Iterable[str]) -> tuple[str, ...]:
    return (include,) if isinstance(include, str) else tuple(include)


def plain_text(what: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value:
        raise InvalidQuery(f"{what} must be a text of at least one character, given {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidQuery(f"{what} holds a lone surrogate, which UTF-8 cannot express") from None
    return value
