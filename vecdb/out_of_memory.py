"""Running out of memory as one of our errors, at the border where callers meet the engine.

Within it a MemoryError stays one: whoever can do with less catches it, and a transaction that it ends is undone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import isfunction
from types import GeneratorType
from typing import Any, ParamSpec, TypeVar

from .errors import LimitExceeded

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")
Border = TypeVar("Border", bound=type)

_WRITES = {"insert", "upsert", "prepare_put", "_write", "update", "delete"}
"""They happen as a whole or not at all: what fails after their commit is not raised."""
_CALLED = {"__init__": "opening", "prepare_put": "a batch", "_write": "a write"}


def memory_told(call: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
    """`call`, with LimitExceeded where it runs out of memory, also later where it gives an iterator; 0.1 us."""
    what = call.__name__

    @wraps(call)
    def told(*given: Asked.args, **named: Asked.kwargs) -> Answer:
        try:
            found = call(*given, **named)
        except MemoryError as error:
            raise _in_our_words(what, error) from error
        except (OSError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            raise _in_our_words(what, error) from error
        if isinstance(found, GeneratorType):
            return _each(what, found)  # type: ignore[return-value]
        return found

    return told


def tells_memory(border: Border) -> Border:
    """A class all of whose public methods, but `close`, are `memory_told`."""
    for name, member in list(vars(border).items()):
        public = name == "__init__" or not name.startswith("_")
        if isfunction(member) and public and name != "close":
            setattr(border, name, memory_told(member))
    return border


def _each(what: str, items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except MemoryError as error:
        raise _in_our_words(what, error) from error
    except (OSError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        raise _in_our_words(what, error) from error


def is_of_memory(error: BaseException) -> bool:
    """Whether memory, or a thread, which takes some, was not to be had."""
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


def _in_our_words(what: str, error: Exception) -> LimitExceeded:
    done = "; nothing of it was written" if what in _WRITES else ""
    return LimitExceeded(
        f"not enough memory for {_CALLED.get(what, what)}{done}. Ask for less at once, free some, or lift the limit "
        f"(ulimit -v), and repeat{f' ({error})' if str(error) else ''}"
    )
