"""Named points beside each durable step, where a test may stop the process or make the step fail.

`vecdb.disk` reaches one before and one after each thing that it does, so a campaign can kill at all of them.
Off, which is the rule, a point costs a comparison. The variable VECDB_FAILPOINTS of the environment arms
them when this module is imported, see `arm`.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import InvalidSetting

VARIABLE = "VECDB_FAILPOINTS"

Hook = Callable[[str, Path], None]

hook: Hook | None = None
"""Called with the name of each point that is reached and the file or folder it is about, in the thread that
reaches it; what it raises, the step raises. None: off."""


def reach(name: str, path: Path) -> None:
    """The point `name` is reached, about the file or folder `path`."""
    if hook is not None:
        hook(name, path)


def install(new: Hook | None) -> Hook | None:
    """Makes `new` the hook of this process, None for none; the one before."""
    global hook
    before, hook = hook, new
    return before


def arm(text: str) -> None:
    """Installs what `text` asks for: rules `NAME=ACTION`, separated by commas; "" switches all off.

    NAME is that of a point, or a pattern with `*` and `?`. An action is
      kill[@N]         SIGKILL to this process when a matching point is reached for the N-th time (default 1)
      error:CODE[@N]   raise OSError with that code of `errno`, as ENOSPC, at the N-th time; with `+` behind N
                       at each time from there on
      record:FILE      append the names of the points that are reached to FILE, one a line
    Raises InvalidSetting for anything else.
    """
    rules = [_rule(part.strip()) for part in text.split(",") if part.strip()]

    def check(name: str, path: Path) -> None:
        for rule in rules:
            rule.reached(name, path)

    install(check if rules else None)


@dataclass(slots=True)
class _Rule:
    pattern: str
    action: str
    argument: str
    first: int
    last: int | None
    hits: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reached(self, name: str, path: Path) -> None:
        if not fnmatch.fnmatchcase(name, self.pattern):
            return
        if self.action == "record":
            with open(self.argument, "a", encoding="utf-8") as file:
                file.write(name + "\n")
            return
        with self.lock:
            self.hits += 1
            hits = self.hits
        if hits < self.first or (self.last is not None and hits > self.last):
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.argument)
        raise OSError(code, os.strerror(code), str(path))


def _rule(text: str) -> _Rule:
    pattern, _, asked = text.partition("=")
    action, _, argument = asked.partition(":")
    if action == "record" and pattern and argument:
        return _Rule(pattern, action, argument, 1, None)
    asked, _, times = asked.partition("@")
    action, _, argument = asked.partition(":")
    number = times.removesuffix("+") or "1"
    known = (action == "kill" and not argument) or (action == "error" and hasattr(errno, argument))
    if not pattern or not known or not number.isdecimal() or not int(number):
        raise InvalidSetting(
            f"{VARIABLE} has the rule {text!r}; expected NAME=kill[@N], NAME=error:CODE[@N[+]] or "
            "NAME=record:FILE",
            given=text,
        )
    first = int(number)
    return _Rule(pattern, action, argument, first, None if times.endswith("+") else first)


if os.environ.get(VARIABLE):
    arm(os.environ[VARIABLE])
