"""Names of a package that are imported when they are first asked for (PEP 562).

So who needs one part of the engine, as the process that copies for a backup, does not wait for all of it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from .errors import LimitExceeded

_NO_MORE_FILES = errno.EMFILE, errno.ENFILE


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for the package of this name. `homes` maps its modules to the names, with
    spaces between them, that they give it: `new:old` for one that they call `old`. Asking for a name is LimitExceeded
    where no file can be opened to load it."""
    home = {}
    for module, names in homes.items():
        for name in names.split():
            new, _, old = name.partition(":")
            home[new] = module, old or new

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, there = home[name]
        try:
            found = getattr(import_module(f"{package}.{module}"), there)
        except (OSError, ImportError) as error:
            if not any(os.strerror(number) in str(error) for number in _NO_MORE_FILES):
                raise
            raise LimitExceeded(
                f"too many files are open to load {package}.{module}; raise the limit (ulimit -n), or close some"
            ) from error
        # Asked for once.
        setattr(sys.modules[package], name, found)
        return found

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, listed
