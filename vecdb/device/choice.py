"""The word `device`: what a server, and within it a collection, is to be searched by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InvalidSetting

_GPUS = re.compile(r"gpu(?::((?:0|[1-9]\d{0,2})(?:,(?:0|[1-9]\d{0,2}))*))?")


@dataclass(frozen=True, slots=True)
class Choice:
    """A checked `device`."""

    kind: Literal["auto", "cpu", "gpu"]
    numbers: tuple[int, ...] = ()
    """Of the GPUs that are asked for by number, ascending; empty for all that there are."""

    @property
    def names(self) -> tuple[str, ...]:
        """The GPUs that are asked for by number, as "gpu:0"."""
        return tuple(f"gpu:{number}" for number in self.numbers)

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.numbers))}" if self.numbers else self.kind


def parse(given: Any, setting: str = "device") -> Choice:
    """The choice of `auto`, `cpu`, `gpu`, `gpu:0` or `gpu:0,1`; InvalidSetting, naming `setting`, for all
    else. Whether such devices are there is not asked here."""
    if isinstance(given, str):
        if given == "auto":
            return Choice("auto")
        if given == "cpu":
            return Choice("cpu")
        found = _GPUS.fullmatch(given)
        if found is not None:
            numbers = [int(text) for text in (found[1] or "").split(",") if text]
            if len(set(numbers)) == len(numbers):
                return Choice("gpu", tuple(sorted(numbers)))
    raise InvalidSetting(
        f"{setting} must be auto, cpu, gpu (all of them), or GPUs by their numbers, each once, such as "
        f"gpu:0 or gpu:0,1; given {given!r:.80}",
        setting=setting,
    )
