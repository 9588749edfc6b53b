"""`python -m bench NAME`: runs one measurement."""

from __future__ import annotations

import importlib
import sys

from .sources.errors import BadDataset

MEASUREMENTS = (
    "backup",
    "durability",
    "gpu",
    "index",
    "profile",
    "report",
    "run",
    "serving",
    "syncs",
    "vectordbbench",
)
"""Modules of this package, each with a `main`. Only the chosen one is loaded: `gpu` does with the engine's part that drives a card."""


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in MEASUREMENTS:
        print(f"usage: python -m bench {{{','.join(MEASUREMENTS)}}} [--help]", file=sys.stderr)
        return 2
    try:
        code: int = importlib.import_module(f".{sys.argv[1]}", __package__).main(sys.argv[2:])
    except BadDataset as error:
        print(f"python -m bench {sys.argv[1]}: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
