"""The setting `device`: what it says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class Choice:
    """What `device` says. `kind` is auto, cpu or gpu; `numbers` are those named, None for all."""

    kind: str
    numbers: tuple[int, ...] | None = None


def parse(text: str) -> Choice:
    """`auto`, `cpu`, `gpu`, `gpu:0` or `gpu:0,1`; InvalidSetting for everything else."""
    word = text.strip().lower()
    if word in ("auto", "cpu", "gpu"):
        return Choice(word)
    named = re.fullmatch(r"gpu:(\d{1,4}(?:,\d{1,4})*)", word)
    if named is not None:
        numbers = tuple(int(one) for one in named[1].split(","))
        if len(set(numbers)) == len(numbers):
            return Choice("gpu", numbers)
    raise InvalidSetting(
        f"setting 'device' must be auto, cpu, gpu, or gpu with numbers that differ, as in gpu:0,1; "
        f"given {text!r}",
        setting="device",
    )
